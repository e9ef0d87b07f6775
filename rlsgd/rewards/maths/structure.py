"""Sets, tuples, intervals and lists, told apart by their brackets."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = re.compile(
    r"\s*(?:,?\s*(?:\\text\{\s*(?:or|and)\s*\}|\bor\b|\band\b|;|\\lor\b|\\land\b))\s*"
)
_RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|<|>")
_ASSIGNED = re.compile(r"\s*([A-Za-z])\s*=\s*([^=<>]+)")
_VARIABLE = re.compile(r"\s*[A-Za-z]\w{0,2}\s*")


class Structure(NamedTuple):
    """Its kind, and its parts as texts.

    Kinds are `set` (also a bare list), `union`, `:` for a ratio, and the two brackets of a tuple or
    interval, such as `()` or `[)`.
    """

    kind: str
    parts: list[str]


def read_structure(text: str) -> Structure | None:
    """The structure of a normalised text; None where it is a single value."""
    text = re.sub(r"^[A-Za-z]\s*\\in(?![a-z])\s*", "", text.strip())
    if re.search(r"\\begin\s*\{", text):
        return None
    if re.fullmatch(r"[\d.]+(?:\s*:\s*[\d.]+)+", text):
        return Structure(":", text.split(":"))
    pieces = split_at_top(text, r"\cup")
    if len(pieces) > 1:
        return Structure("union", pieces)
    for opening, closings in (("\\{", ["\\}"]), ("(", [")", "]"]), ("[", ["]", ")"])):
        for closing in closings:
            inner = _enclosed(text, opening, closing)
            if inner is None:
                continue
            parts = split_at_top(inner, ",")
            if opening == "\\{":
                return Structure("set", [p for p in parts if p.strip()])
            if len(parts) > 1:
                return Structure(opening + closing, parts)
            if opening == "[" and closing == "]":
                return Structure("[]", parts)
    parts = split_at_top(_WORDS.sub(",", text) if not _is_prose(text) else text, ",")
    values = [_ASSIGNED.fullmatch(part) for part in parts]
    if all(values) and len({value[1] for value in values if value}) == len(parts) > 1:
        by_name = sorted((value[1], value[2]) for value in values if value)
        return Structure("()", [value for _, value in by_name])  # x = 3, y = 4
    if len(parts) > 1 and all(part.strip() for part in parts) and not _is_grouped(text):
        return Structure("set", parts)
    return None


def expanded(part: str) -> list[str]:
    r"""An element with `\pm` as the two that it stands for."""
    match = re.search(r"\\pm(?![a-z])", part)
    if match is None or "\\mp" in part:
        return [part]
    before, after = part[: match.start()], part[match.end() :]
    plus = "+" if before.split("=")[-1].strip() else ""
    return [f"{before}{plus}{after}", f"{before}-{after}"]


def as_interval(text: str) -> Structure | None:
    r"""An inequality in one variable as the interval that it means: `x > 5` is `(5, \infty)`."""
    relations = list(_RELATION.finditer(text))
    pieces = _RELATION.split(text)
    signs = [match[0].strip() for match in relations]
    if len(signs) == 1:
        left, right = pieces
        if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
            left, right, signs = right, left, [_turned(signs[0])]
        if not _VARIABLE.fullmatch(left):
            return None
        closed = signs[0] in ("\\le", "\\ge")
        if signs[0] in (">", "\\ge"):
            return Structure("[)" if closed else "()", [right, r"\infty"])
        return Structure("(]" if closed else "()", [r"-\infty", right])
    if len(signs) == 2 and _VARIABLE.fullmatch(pieces[1]):
        if {signs[0], signs[1]} <= {">", "\\ge"}:
            pieces, signs = pieces[::-1], [_turned(signs[1]), _turned(signs[0])]
        if {signs[0], signs[1]} <= {"<", "\\le"}:
            brackets = ("[" if signs[0] == "\\le" else "(") + ("]" if signs[1] == "\\le" else ")")
            return Structure(brackets, [pieces[0], pieces[2]])
    return None


def split_at_top(text: str, separator: str) -> list[str]:
    """The text in parts, cut where the separator is in no bracket."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        character = text[place]
        if depth == 0 and text.startswith(separator, place):
            parts.append(text[start:place])
            place += len(separator)
            start = place
            continue
        depth += (character in "{([") - (character in "})]")
        place += 1
    return [part.strip() for part in [*parts, text[start:]]]


def _enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that belong together and enclose everything."""
    if not (text.startswith(opening) and text.endswith(closing)):
        return None
    inner = text[len(opening) : len(text) - len(closing)]
    depth = 0
    for character in inner:
        depth += (character in "{([") - (character in "})]")
        if depth < 0:
            return None
    return inner.strip() if depth == 0 else None


def _is_grouped(text: str) -> bool:
    """Whether the commas are those of thousands: 1,234,567."""
    numbers = re.findall(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", text)
    return bool(numbers) and text.count(",") == sum(number.count(",") for number in numbers)


def _is_prose(text: str) -> bool:
    plain = re.sub(r"\\[A-Za-z]+|\\text\{[^{}]*\}", " ", text)
    words = [word for word in re.findall(r"[A-Za-z]{2,}", plain) if word not in ("or", "and")]
    return len(words) > 3


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[sign]
