"""Ways to find the answer in a completion. Each returns the text found, or None."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Literal, get_args

Extract = Literal["whole", "last_number", "answer_tag", "boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<bare>[^\s{}$\\]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, of a set, is passed over
_MOST_DIGITS = 10_000  # of a number that is read; its value costs their square
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus after a digit, letter or bracket is a subtraction or a hyphen ("10-12"), not a sign.
_NUMBER = re.compile(
    rf"(?P<numerator>(?:(?<![\w)\]])[-+]\s?)?\$?(?:{_UNSIGNED}))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9]))?"
    r"(?:\s?/\s?(?P<denominator>0*[1-9][0-9]*))?"
)


def whole(text: str) -> str | None:
    """All of the text, without the white space around it."""
    return text.strip()


def answer_tag(text: str) -> str | None:
    """What stands between the last `<answer>` and `</answer>`, as reasoning_gym reads it."""
    found, place = None, 0
    while (start := text.find("<answer>", place)) >= 0:
        end = text.find("</answer>", start)
        if end < 0:
            break
        found, place = text[start + len("<answer>") : end], end + len("</answer>")
    return None if found is None else found.strip()


def boxed(text: str) -> str | None:
    r"""The argument of the last `\boxed{...}` or `\fbox{...}`, braces balanced; also `\boxed 5`.

    None where there is none, and where the last never closes.
    """
    last = None
    for last in _BOX.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    if last["brace"] is None:
        return last["bare"]
    depth = 1
    for brace in _BRACE.finditer(text, last.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[last.end() : brace.start()].strip()
    return None


def after_thinking(text: str, tags: tuple[str, str] | None) -> str | None:
    """What follows the last closing tag; all of a text without tags, None where one stays open."""
    if tags is None:
        return text
    opening, closing = tags
    _, _, rest = text.rpartition(closing)
    return None if opening in rest else rest


def last_number(text: str) -> str | None:
    """The last number: `-3`, `1,234.50`, `$12`, `3/4`, `.5` or `1e3`; the unit is not read."""
    match = _last_match(text)
    return match.group().strip() if match else None


def read_number(text: str) -> Fraction | None:
    """The exact value of the last number of the text, so that 0.5, 1/2 and .50 are equal.

    None stands for no number, and for one of more than 10,000 characters.
    """
    match = _last_match(text)
    if match is None or len(match.group()) > _MOST_DIGITS:
        return None
    digits = re.sub(r"[,$\s]", "", match["numerator"])
    value = Fraction(Decimal(digits)) * Fraction(10) ** int(match["exponent"] or 0)
    return value / Fraction(Decimal(match["denominator"] or 1))


def _last_match(text: str) -> re.Match[str] | None:
    last = None
    for last in _NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-")):  # noqa: B007
        pass
    return last


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "whole": whole,
    "last_number": last_number,
    "answer_tag": answer_tag,
    "boxed": boxed,
}


def check_extract(extract: str) -> None:
    """Raise if there is no such extraction; a reward calls it at construction."""
    if extract not in EXTRACTORS:
        raise ValueError(
            f"--data.reward.extract must be one of {', '.join(get_args(Extract))}; got {extract!r}"
        )
