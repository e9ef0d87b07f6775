"""Every command that README and docs show exists: scripts, make targets, subcommands, files."""

import re
from pathlib import Path

import pytest

from rlsgd.cli.main import COMMANDS, TRAINING

DOCUMENTS = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", Path("Makefile").read_text(), re.MULTILINE))


def shown_commands(document: Path) -> list[str]:
    """Lines of the document's shell blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_shown_commands_exist(document):
    for command in shown_commands(document):
        words = command.split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        program = Path(words[0]).name
        if program == "make":
            assert set(w for w in words[1:] if "=" not in w) <= MAKE_TARGETS, command
        elif program == "rlsgd":
            assert words[1] in {*COMMANDS, *TRAINING}, command
        elif program.startswith("python") and not words[1].startswith("-"):
            assert Path(words[1]).exists(), command
        else:
            assert program in {"pip", "git", "cd", "tensorboard", "python", "python3", "source"}, (
                command
            )
        for word in words:
            if re.match(r"(configs|tools|docs|tests)/", word):
                assert Path(word).exists(), f"{command}: {word} is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_linked_files_and_figures_exist(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document}: {target} is not there"


def test_every_test_that_contributing_names_exists():
    text = Path("CONTRIBUTING.md").read_text()
    named = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", text)
    assert len(named) > 25
    bodies = {path.name: path.read_text() for path in Path("tests").rglob("test_*.py")}
    for file, name in named:
        where = [bodies[file]] if file else bodies.values()
        assert any(f"def {name}(" in body for body in where), f"{file}::{name} is not there"
