"""Plain forms that people write, in the spelling that the other readers know."""

from __future__ import annotations

import re

_COUNTED = [
    "zero zeroth", "one first", "two second", "three third", "four fourth", "five fifth",
    "six sixth", "seven seventh", "eight eighth", "nine ninth", "ten tenth", "eleven eleventh",
    "twelve twelfth", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip
_WORDS = {word: str(n) for n, words in enumerate(_COUNTED) for word in words.split()}
_NUMBER = r"\{?\s*(\d+)\s*\}?"
_SUFFIX = "(?:st|nd|rd|th)"
_REPLACED = [
    (r"<=|\\leqq?(?![a-z])", r"\\le "),
    (r">=|\\geqq?(?![a-z])", r"\\ge "),
    (r"\s!=\s", r" \\ne "),
    (r"\\(?:bar|dot)\s*\{(\d+)\}", r"\\overline{\1}"),
    (r"\\log_\s*\{?\s*e\s*\}?(?![a-z])", r"\\ln "),
    (r"\^\s*\{?\s*\\text\s*\{\s*o\s*\}\s*\}?|(?<=\d)\^\s*\{?o\}?(?![a-z])", " degrees "),
    (r"\\binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
    # 3rd, 3^{\text{rd}}
    (rf"(?<![\w.])(\d+)\s*\^?\s*\{{?\s*(?:\\text\s*\{{)?\s*{_SUFFIX}\s*\}}{{0,2}}(?!\w)", r"\1"),
    (rf"(?<![A-Za-z\\])C\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)", r"\\binom{\1}{\2}"),
    (rf"(?:\{{\}})?[_^]{_NUMBER}\s*(?:\\text\{{)?C\}}?_{_NUMBER}", r"\\binom{\1}{\2}"),
    (rf"(?<![\w.]){_NUMBER}\s*(?:\\text\{{)?C\}}?_{_NUMBER}", r"\\binom{\1}{\2}"),
    (r"\\bmod(?![a-z])|\\mod(?![a-z])", r"\\pmod "),
    (r"(\d)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(\d)", r"\1:\2"),  # a ratio
]  # fmt: skip
_PATTERNS = [(re.compile(pattern), new) for pattern, new in _REPLACED]
_ABOUT = re.compile(
    r"^(?:[A-Za-z]\s*)?(?:\\approx|\\simeq|≈)\s*|^(?:about|approximately|roughly|approx\.?)\s+",
    re.IGNORECASE,
)
_REALS = re.compile(r"(?:x\s*\\in\s*)?(?:\\mathbb\s*\{?R\}?|(?:all )?(?:real numbers|reals))")
_BUILDER = re.compile(
    r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\vert|:|\|)\s*(.+?)\s*\\\}"
)
_MAGNITUDE = re.compile(
    r"(?:\||\\l?vert\s*)\s*([A-Za-z])\s*(?:\||\\r?vert)\s*(<|\\le)\s*(\d[^<>]*)"
)


def respelled(text: str) -> str:
    """A text without LaTeX's sizes and fonts, see `normal.normalised`, in fewer spellings."""
    for pattern, new in _PATTERNS:
        text = pattern.sub(new, text)
    text = _ABOUT.sub("", text.strip())
    word = text.lower().rstrip(".")
    if word in _WORDS:
        return _WORDS[word]
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    if _REALS.fullmatch(plain):
        return r"(-\infty , \infty )"
    if builder := _BUILDER.fullmatch(text):
        text = builder[2]
    if magnitude := _MAGNITUDE.fullmatch(text):
        variable, sign, bound = (part.strip() for part in magnitude.groups())
        return f"-{bound} {sign} {variable} {sign} {bound}"
    if re.fullmatch(r"\{[^{}]*,[^{}]*\}", text):  # a set without its backslashes
        return rf"\{text[:-1]}\}}"
    return text
