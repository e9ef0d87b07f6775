"""Configs that ship with rlsgd, found by name from any folder."""

from __future__ import annotations

import difflib
from pathlib import Path

# a link to `configs/` of the repository; in a wheel, the files themselves
FOLDER = (Path(__file__).parents[1] / "configs").resolve()


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe: its path below `configs/`, without `.yaml`."""
    return {path.relative_to(FOLDER).as_posix()[:-5]: path for path in FOLDER.rglob("*.yaml")}


def find_config(name: str, flag: str) -> Path:
    """The file that a user names: one that exists, or else a recipe.

    Args:
        name: Path of a file, or name of a recipe, of which the last part is enough where only one
            recipe ends so: `quickstart` is `studies/quickstart`.
        flag: What the user wrote it after.

    Raises:
        ValueError: There is neither; names what comes near.
    """
    if Path(name).exists() and not Path(name).is_dir():
        return Path(name)
    known = recipes()
    if name in known:
        return known[name]
    ending = [full for full in known if full.endswith(f"/{name}")]
    if len(ending) == 1:
        return known[ending[0]]
    if ending:
        raise ValueError(f"{flag} {name}: there is more than one: {', '.join(sorted(ending))}")
    raise ValueError(f"{flag} {name}: there is no such file and no such recipe{_near(name, known)}")


def find_named(file: Path, name: str) -> Path | None:
    """The config that another names: a file, relative to it, or else a recipe; None for neither."""
    beside = file.parent / name
    return beside if beside.is_file() else recipes().get(name)


def _near(name: str, known: dict[str, Path]) -> str:
    """`; did you mean X or Y?`, of files beside the one that is missing and of recipes."""
    beside = {path.stem: str(path) for path in sorted(Path(name).parent.glob("*.yaml"))}
    last = {full.rpartition("/")[2]: full for full in known} | beside
    close = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), last, n=3)
    names = " or ".join(last[one] for one in close)
    return f"; did you mean {names}?" if close else "; rlsgd recipes lists those that ship"
