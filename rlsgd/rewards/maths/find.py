"""Where the answer is in a completion: the last box, else what it is said to be, else the last."""

from __future__ import annotations

import re

from rlsgd.rewards.extract import answer_tag, boxed

_SAID = re.compile(
    r"(?:answer|result|solution)\b\**\s*(?:is|are|:|=)\s*:?\s*\**\s*(?P<said>[^\n]+)", re.IGNORECASE
)
_REGION = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$", re.DOTALL)
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_LAST = re.compile(
    rf"(?<![\w.])(?:(?<![\w)\]])[-+\u2212])?\s?[$€£]?(?:\d{{1,2}}:\d{{2}}(?:\s?[ap]m)?|"
    rf"\d+ \d+/\d+|(?:{_UNSIGNED})(?:[eE][-+]?\d+|\s?(?:\u00d7|x|\\times)\s?10\^\{{?-?\d+\}}?)?"
    rf"(?:\s?/\s?\d+)?%?|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\(?\s*(?:\\(?:text|math)(?:bf|rm|it)?\{)?\s*\(?([A-Z])\)?\s*\}?\s*(?:[).:]\s*.*)?", re.DOTALL
)
_SAID_LETTER = re.compile(
    r"(?i:answer|option|choice)\b\W{0,6}(?:(?i:is|are|option|choice)\W{0,6}){0,2}([A-Z])(?![A-Za-z'])",
)
_SENTENCE_END = re.compile(  # 5! ends no sentence
    r"(?<=\S)[.?](?=\s|$)|(?<=[^\s\d)}])!(?=\s|$)|\s+(?:because|since|which|so|as)\b"
)
_TAIL = 2000  # characters of an unboxed completion that are looked through


def find_answer(completion: str) -> str | None:
    """The text of the answer, None where there is none. A last box that is open is none."""
    if "\\boxed" in completion or "\\fbox" in completion:
        return boxed(completion)
    tagged = answer_tag(completion)
    if tagged is not None:
        return boxed(tagged) or tagged
    text = completion[-_TAIL:].strip()
    if len(text) <= 200 and "\n" not in text and not _has_words(text):
        return text or None
    said = list(_SAID.finditer(text))
    if said:
        return _first_part(said[-1]["said"])
    numbers = list(_LAST.finditer(text))
    regions = [m for m in _REGION.finditer(text) if not _has_words(_inside(m))]
    if regions and (not numbers or regions[-1].end() > numbers[-1].start()):
        return _inside(regions[-1])
    if numbers:
        return numbers[-1].group().strip()
    return text.splitlines()[-1].strip() if text else None


def find_letter(completion: str) -> str | None:
    """The letter of a multiple choice that is boxed, said or all there is."""
    if "\\boxed" in completion or "\\fbox" in completion:
        return letter_of(boxed(completion) or "")
    tagged = answer_tag(completion)
    text = (tagged if tagged is not None else completion[-_TAIL:]).strip()
    lines = text.splitlines() or [""]
    said = _SAID_LETTER.findall(text)
    last = re.search(r"(?:^|[.:;,]\s)[*($\s]*([A-Z])[*)$.\s]*$", lines[-1])
    if last:
        return last[1]
    if said:
        return said[-1]
    return letter_of(text) if len(lines) == 1 and re.match(r"\(?[A-Z][).:]", text) else None


def letter_of(text: str) -> str | None:
    r"""The letter of `A`, `(A)`, `A.`, `A) 12` or `\text{A}`."""
    match = _LETTER.fullmatch(text.strip().strip("$*").strip())
    return match[1] if match else None


def _first_part(said: str) -> str:
    """What is said to be the answer, up to the end of its sentence."""
    said = said.strip().strip("*").strip()
    region = _REGION.match(said)
    if region and not _has_words(_inside(region)):
        rest = said[region.end() :]
        following = re.match(r"\s*(?:,|and|or)\s*(?=\$|\\\()", rest)
        if not following:
            return _inside(region)
    said = re.split(
        r"(?<=[^\s])[.?](?=\s|$)|(?<=[^\s\d)}])!(?=\s|$)|\s+(?:because|since|which|so|as)\b", said
    )[0]
    return said.strip().strip("*").strip()


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _has_words(text: str) -> bool:
    """Whether there is prose in it, not only commands, units and single letters."""
    plain = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = re.findall(r"[A-Za-z]{2,}", plain)
    return any(word.lower() not in _NO_PROSE for word in words)


_NO_PROSE = {
    "or", "and", "sin", "cos", "tan", "log", "ln", "sqrt", "pi", "exp", "min", "max", "km", "cm",
    "mm", "kg", "mg", "mph", "am", "pm", "ft", "in", "ml", "dollars", "euros", "cents", "percent",
    "degrees", "hours", "minutes", "seconds", "meters", "units", "feet", "inches", "miles", "mod",
    "million", "billion", "thousand", "usd", "points", "days", "years",
}  # fmt: skip
