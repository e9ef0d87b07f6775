"""Configs that are laid over others: `include: [FILE, ...]` at the top of a YAML file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.recipes import find_config, find_named

INCLUDE = "include"


def composed(path: Path) -> dict[str, Any]:
    """Settings of a config file over those that it includes.

    Args:
        path: A YAML mapping. Files under `include`, relative to it, or recipes by their names, come
            first and in their order.

    Raises:
        ValueError: A file is missing, no YAML mapping, or includes itself.
    """
    return _composed(path, ())


def composed_bytes(path: Path) -> bytes:
    """The bytes of a config file and of all that it includes, for a hash that sees every change."""
    included = [composed_bytes(file) for file in _included(path, _mapping(path))]
    return b"\0".join([path.read_bytes(), *included])


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`: mappings key by key, everything else replaced.

    A mapping that names another `class_path` replaces the whole of the one below: the arguments of
    one class are not those of another.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    classes = [mapping.get("class_path") for mapping in (base, over)]
    if None not in classes and classes[0] != classes[1]:
        return over
    common = {key: merged(base[key], value) for key, value in over.items() if key in base}
    return {**base, **over, **common}


@contextmanager
def composed_arguments(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Command-line arguments in which every `--config` is a file that includes no other.

    The files that had to be made are gone afterwards.

    Raises:
        ValueError: A config is neither a file nor a recipe.
    """
    with tempfile.TemporaryDirectory(prefix="rlsgd-config-") as folder:
        plain: list[str] = []
        for i, argument in enumerate(arguments):
            flag, separator, value = argument.partition("=")
            if flag == "--config" and separator:
                argument = f"--config={_plain(value, Path(folder) / str(i))}"
            elif i and arguments[i - 1] in ("--config", "-c"):
                argument = _plain(argument, Path(folder) / str(i))
            plain.append(argument)
        yield plain


def _plain(name: str, folder: Path) -> str:
    if "\n" in name or name.startswith("{"):
        return name  # settings themselves
    path = find_config(name, "--config")
    if not path.is_file() or f"{INCLUDE}:" not in path.read_text(encoding="utf-8"):
        return str(path)
    folder.mkdir()
    plain = folder / path.name  # the name that messages will show
    plain.write_text(yaml.safe_dump(composed(path), sort_keys=False), encoding="utf-8")
    return str(plain)


def _composed(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"--config {path}: it includes itself; take it out of `{INCLUDE}`")
    own = _mapping(path)
    settings: dict[str, Any] = {}
    for file in _included(path, own):
        settings = merged(settings, _composed(file, (*above, path.resolve())))
    return merged(settings, {key: value for key, value in own.items() if key != INCLUDE})


def _included(path: Path, settings: dict[str, Any]) -> list[Path]:
    names = settings.get(INCLUDE, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"--config {path}: `{INCLUDE}` must be a list of files, not {names!r}")
    files = []
    for name in names:
        if (file := find_named(path, name)) is None:
            raise ValueError(
                f"--config {path}: it includes {name}, which does not exist beside it, nor as a "
                "recipe (rlsgd recipes lists them)"
            )
        files.append(file)
    return files


def _mapping(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: no valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: must hold a mapping")
    return settings
