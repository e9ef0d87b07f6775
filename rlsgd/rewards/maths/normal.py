"""One spelling for the many ways in which the same answer is written."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rlsgd.rewards.maths.spellings import respelled

# ruff: noqa: RUF001, RUF003 (the characters that look like others are what this is about)

MOST_CHARACTERS = 1000  # of an answer; longer ones are no answer but a derivation, or a bomb
MOST_NESTED = 16  # braces and brackets within each other

_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "∕": "/", "⁄": "/", "∗": "*", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "°": r"^\circ ",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "“": '"', "”": '"', "’": "'", "′": "'", "…": r"\ldots ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2061": "", "\u200b": "", "％": "%",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_REPLACED = [
    (r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|limits)(?![A-Za-z])", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:mathrm|mathbf|textbf|textit|textrm|mathit|mbox|operatorname)\s*\{", r"\\text{"),
    (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
    (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
    (r"\\neq(?![A-Za-z])", r"\\ne "),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
    (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda m: "\\{" if "l" in m[0][:3] else "\\}"),
    (r"\{,\}", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
    (r"\\([%$&#])", r"\1"),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])", " degrees "),
    (r"\\percent(?![A-Za-z])", "%"),
]
_PATTERNS = [(re.compile(pattern), new) for pattern, new in _REPLACED]
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})")
_ROOT = re.compile(r"(\\sqrt(?:\[\d+\])?)\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\))")


@lru_cache(maxsize=1024)  # a group has one answer on record, and many of its answers are alike
def normalised(text: str) -> str:
    """The text without delimiters, sizes and fonts, and with LaTeX for Unicode's mathematics."""
    text = _without_delimiters(_latex_for_unicode(text.strip().lstrip("#").strip()))
    if text.startswith("$") and text.count("$") % 2 == 0:  # $x = 2$ or $x = 3$
        text = text.replace("$", "")
    for pattern, new in _PATTERNS:
        text = pattern.sub(new, text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{_bare(m[1])}}}{{{_bare(m[2])}}}", text)
    text = _ROOT.sub(lambda m: f"{m[1]}{{{m[2].strip('()')}}}", text)
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", " ", text.replace("**", "^")).strip()
    if re.search(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text):
        text = re.sub(r"(\d+(?:\.\d+)?) degrees", r"{\\frac{\1\\pi}{180}}", text)
    text = _without_delimiters(re.sub(r"[.,;:]+$", "", text).strip())
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    return respelled(whole[1].strip() if whole else text)


def is_too_large(text: str) -> bool:
    """Whether an answer is refused unread, by its length, nesting, or powers of powers."""
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    powers = re.findall(r"\^|\*\*", text)
    huge = re.search(r"\d{7,}\s*!|!\s*!|\)\s*!|\}\s*!|(?:\^|\*\*)\s*[{(]?\s*-?\d{6,}", text)
    towers = re.findall(r"(?:\^|\*\*)\s*[{(]?\s*(\d+)\s*(?=(?:\^|\*\*)\s*[{(]?\s*(\d+))", text)
    tower = len(towers) > 1 or any(len(a) * int(b[:9]) > 5 for a, b in towers if a != "1")
    expansion = re.search(r"\([^()]*[A-Za-z][^()]*\)\s*\^\s*\{?\s*\d{3,}", text)
    big_sum = re.search(r"\\(?:sum|prod|binom)", text) and re.search(r"\d{5,}", text)
    signs = text.count("\\pm") > 4  # each of which doubles what is compared
    long = len(text) > MOST_CHARACTERS or deepest > MOST_NESTED or len(powers) > 40
    return bool(long or signs or huge or tower or expansion or big_sum)


def without_spaces(text: str) -> str:
    """For the comparison of two spellings."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 1 1/2 is not 11/2


def _latex_for_unicode(text: str) -> str:
    """Fractions such as ½ become 1/2 (after a digit a mixed number), signs become commands."""
    parts = []
    for place, character in enumerate(text):
        decomposed = unicodedata.normalize("NFKC", character)
        if "⁄" in decomposed:  # 1⁄2
            after_digit = place > 0 and text[place - 1].isdigit()
            parts.append((" " if after_digit else "") + decomposed.replace("⁄", "/"))
        elif "\uff01" <= character <= "\uff5e":  # full-width forms
            parts.append(decomposed)
        else:
            parts.append(_CHARACTERS.get(character, character))
    text = "".join(parts)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    return re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)


def _without_delimiters(text: str) -> str:
    pairs = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
    for opening, closing in pairs:
        inner = text[len(opening) : len(text) - len(closing)]
        closed = text.startswith(opening) and text.endswith(closing)
        if closed and len(text) > len(opening) + len(closing) - 1 and opening not in inner:
            return _without_delimiters(inner.strip())
    return text


def _bare(argument: str) -> str:
    return argument[1:-1] if argument.startswith("{") else argument
