"""The help of a class's arguments stands alone: each begins with a noun phrase of its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("callbacks", "data", "optimizers", "rewards", "rollout")
# a help that begins so leans on the argument's name, on the line before, or is a clause
LEANING = re.compile(
    r"(of|and|or|the same|where|whose|that|which|to|in|for|from|by|with|as|at|on|after|before|"
    r"above|also|see|is|are|if|when|then|what|how|whether|between|below|up|so|until|instead|than)\b",
    re.IGNORECASE,
)


def helps(source: str) -> Iterator[tuple[str, str]]:
    """Argument and first line of its help, of every public class."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            arguments = re.search(
                r"^Args:\n((?:[ ]+.*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE
            )
            if arguments:
                for name, text in re.findall(r"^    (\w+): (.*)", arguments[1], re.MULTILINE):
                    yield f"{node.name}.{name}", text


@pytest.mark.parametrize("room", ROOMS)
def test_help_begins_with_a_noun_phrase_of_its_own(room):
    found = [pair for path in Path("rlsgd", room).rglob("*.py") for pair in helps(path.read_text())]
    assert len(found) > 10
    assert [pair for pair in found if LEANING.match(pair[1]) or not pair[1].strip()] == []


def test_a_leaning_help_is_seen():
    source = 'class A:\n    """A.\n\n    Args:\n        b: of c.\n        d: Rate of e.\n    """\n'
    pairs = dict(helps(source))
    assert pairs == {"A.b": "of c.", "A.d": "Rate of e."}
    assert LEANING.match(pairs["A.b"]) and not LEANING.match(pairs["A.d"])
