"""`rlsgd recipes`: what ships, and a copy of one to edit."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.command import PlainParser, run_command
from rlsgd.core.recipes import FOLDER, find_config, find_named, recipes

DESCRIPTION = """\
List the configs that ship with rlsgd, or copy one into the present folder to edit. A recipe goes
by its name wherever a config is asked for: rlsgd fit --config grpo_embedded, rlsgd study
quickstart.
"""
NAMING = ("include", "config", "overlays", "published")  # keys whose values name other configs
NO_SENTENCE = re.compile(r"rlsgd |python tools/|\(which makes|With completions from|Once before")


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd recipes` and return its exit status."""
    parser = PlainParser(
        prog="rlsgd recipes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="[copy]")
    copy = commands.add_parser("copy", help="rlsgd recipes copy NAME [TARGET]")
    copy.add_argument("NAME", help="recipe, as the list has it, or its last part")
    copy.add_argument(
        "TARGET", nargs="?", help="file or folder to copy to; default: NAME.yaml here"
    )
    return run_command("recipes", argv, parser, _run)


def _run(given: argparse.Namespace) -> None:
    if given.command is None:
        print("\n".join(listing()))
        return
    target = copy_recipe(given.NAME, given.TARGET)
    command = "study" if is_study(target) else "fit --config"
    print(f"written: {target}; run it with: rlsgd {command} {target}")


def listing() -> Iterator[str]:
    """The lines of `rlsgd recipes`: a heading for each folder, then names and descriptions."""
    found = recipes()
    width = max(map(len, found))
    folder = None
    for name in sorted(found, key=lambda one: (one.rpartition("/")[0], one)):
        if folder != (folder := name.rpartition("/")[0]):
            yield ""
        text = textwrap.shorten(describe(found[name]), 96, placeholder=" ...")
        yield f"{name:{width}}  {text}"


def describe(path: Path) -> str:
    """First sentence of a config's first comment, without its commands; or a study's question."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not NO_SENTENCE.search(line):
            comment.append(line.strip("# "))
    text = " ".join(comment) or " ".join(str(_mapping(path).get("question", "")).split())
    return re.split(r"(?<!Dr\.)(?<=[.?]) (?=[A-Z])", text)[0].removesuffix(".")


def copy_recipe(name: str, target: str | None = None) -> Path:
    """Copy a recipe; the configs that it names become recipes' names, which need no folder.

    Args:
        name: Of the recipe.
        target: File or folder; None for the present folder.

    Raises:
        ValueError: There is no such recipe, or the target exists.
    """
    path = find_config(name, "NAME")
    if not path.is_relative_to(FOLDER):
        raise ValueError(f"NAME {name}: is a file of yours, which needs no copy to be edited")
    to = Path(target or ".")
    if to.is_dir():
        to = to / path.name
    if to.exists():
        raise ValueError(f"TARGET {to}: exists already; name another file")
    text = path.read_text(encoding="utf-8")
    for named in set(_named(_mapping(path))):
        found = find_named(path, named)
        if found is not None:
            alone = r"(?<=[\s\[])" + re.escape(named) + r"(?=[\s,\]}])"
            text = re.sub(alone, _name_of(found), text)
    text = re.sub(r"^#.*", lambda line: _renamed(line[0], path, to), text, flags=re.MULTILINE)
    to.write_text(text, encoding="utf-8")
    return to


def is_study(path: Path) -> bool:
    """Whether a config is a study's, which lists arms."""
    return "arms" in _mapping(path)


def _renamed(comment: str, path: Path, to: Path) -> str:
    """A comment in which the copy has its own name, and other configs have their recipes'."""

    def name(shown: re.Match[str]) -> str:
        file = FOLDER / shown[1]
        return str(to) if file == path else _name_of(file)

    return re.sub(r"configs/([\w./-]+\.yaml)", name, comment)


def _name_of(path: Path) -> str:
    return path.resolve().relative_to(FOLDER).as_posix().removesuffix(".yaml")


def _mapping(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _named(value: Any) -> Iterator[str]:
    """Texts below the keys that name configs, at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _named(inner)
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in NAMING:
                yield from (
                    one
                    for one in (inner if isinstance(inner, list) else [inner])
                    if isinstance(one, str)
                )
            yield from _named(inner)
