"""Numbers in another base, `1011_2`, and residues, `12 \\pmod{13}`."""

from __future__ import annotations

import re

from rlsgd.rewards.maths.normal import without_spaces


def same_in_base(gold: str, answer: str) -> bool | None:
    """Whether digits and, where both say it, bases are the same; None where no base is said."""
    golds, answers = read_base(gold), read_base(answer)
    if golds is None and answers is None:
        return None
    digits, base = golds or (without_spaces(gold), "")
    other_digits, other_base = answers or (without_spaces(answer), "")
    return digits == other_digits and (not base or not other_base or base == other_base)


def split_modulus(text: str) -> tuple[str, str]:
    """`12` and `13` of `12 (mod 13)`."""
    match = re.search(r"\s*\(?\s*\\?p?mod\s*\{?\s*(\w+)\s*\}?\s*\)?$", text)
    return (text[: match.start()].strip(), match[1]) if match else (text, "")


def read_base(text: str) -> tuple[str, str] | None:
    """Digits and base of `1011_2`; None where the text is something else."""
    plain = re.sub(r"\\text\s*\{\s*(\w+)\s*\}", r"\1", text).replace(" ", "")
    match = re.fullmatch(r"\(?([0-9A-Z]+)\)?_\{?(\d+)\}?", plain)
    return (match[1], match[2]) if match and match[1][0] not in "CP" else None
