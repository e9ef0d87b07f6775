"""Answers in words."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-z][A-Za-z' -]{2,}")


def unset(text: str) -> str:
    r"""What `\text` holds, without it."""
    return re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)


def words_of(text: str) -> str | None:
    """A text of words alone, such as `blue` or `no solution`, in one spelling."""
    plain = re.sub(r"\s+", " ", unset(text)).strip(" .'\"").replace("-", " ")
    if not _WORD.fullmatch(plain):
        return "no" if plain.lower() == "no" and plain else None
    if re.search(r"\b(?:sin|cos|tan|log|ln|exp|sqrt|pi|max|min)\b", plain):
        return None
    is_formula = re.fullmatch(r"[a-z]{3}", plain) and "\\text" not in text and plain in _PRODUCTS
    return None if is_formula else re.sub(r"^(?:the|a|an) ", "", plain.lower())


_PRODUCTS = {"abc", "xyz", "mnp", "pqr", "bca", "cab", "acb", "bac", "cba", "xzy", "zyx", "yxz",
             "zxy", "yzx"}  # fmt: skip
