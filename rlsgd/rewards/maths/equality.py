"""Whether an answer is the one on record: exact values, then structure, then math-verify."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from rlsgd.rewards.maths.bases import same_in_base, split_modulus
from rlsgd.rewards.maths.normal import MOST_CHARACTERS, is_too_large, normalised, without_spaces
from rlsgd.rewards.maths.quantities import (
    equal_quantities,
    read_quantity,
    read_time,
    read_unit,
    same_time,
    same_unit_text,
)
from rlsgd.rewards.maths.structure import Structure, as_interval, expanded, read_structure
from rlsgd.rewards.maths.words import unset, words_of

_EQUATION = re.compile(
    r"^\s*(?P<left>[A-Za-z](?:_\{?\w+\}?)?'*(?:\([A-Za-z0-9, ]*\))?|\\[a-z]+|"
    r"\([A-Za-z, ]+\))\s*=\s*(?P<right>.+)$",
    re.DOTALL,
)
_TRAILING_TEXT = re.compile(r"\s*\\text\s*\{([^{}]*)\}(\s*\^\s*\{?[23]\}?)?\s*$")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}")
_MOST_DIGITS = 20_000  # of whole numbers that are compared digit by digit
_DIGITS = 40  # of the numerical comparison of numbers that are not rational


class Comparison:
    """Compares answers with one on record.

    Args:
        places: decimal places to which a decimal may be rounded where the other is none.
        strict: variables must have the same names.
    """

    def __init__(self, places: int, strict: bool) -> None:
        self.places = places
        self.strict = strict

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two texts mean the same."""
        if len(answer) > 4 * MOST_CHARACTERS:  # reading takes longer than in proportion
            return gold.strip() == answer.strip()
        return self._equal(normalised(gold), normalised(answer))

    def _equal(self, gold: str, answer: str) -> bool:
        if not gold or not answer:
            return False
        if without_spaces(unset(gold)) == without_spaces(unset(answer)):
            return True
        if is_too_large(answer) or is_too_large(gold):
            return False
        if _DATE.fullmatch(gold) or _DATE.fullmatch(answer):
            return False  # 2024-02-29 is no subtraction
        if (bases := same_in_base(gold, answer)) is not None:
            return bases
        if "mod" in gold + answer:
            (gold, modulus), (answer, other) = split_modulus(gold), split_modulus(answer)
            if modulus and other and modulus != other:
                return False
        words = words_of(gold), words_of(answer)
        if words != (None, None):
            return words[0] == words[1]
        times = read_time(gold), read_time(answer)
        if times[0] and times[1]:
            return same_time(times[0], times[1])
        gold, answer = _values_of_equations(gold, answer)
        gold, answer = _ratios_as_fractions(gold, answer)
        structures = self._structures(gold, answer)
        if structures is not None:
            return self._equal_structures(*structures)
        return self._equal_values(gold, answer)

    def _structures(self, gold: str, answer: str) -> tuple[Structure, Structure] | None:
        """Both as structures, where one of them is one."""
        pairs = []
        for text in (gold, answer):
            found = read_structure(text)
            if found is None and len(expanded(text)) > 1:
                found = Structure("set", [text])
            pairs.append(found)
        if pairs == [None, None]:
            first, second = as_interval(gold), as_interval(answer)
            return (first, second) if first and second else None
        for place, text in enumerate((gold, answer)):
            if pairs[place] is None:
                pairs[place] = as_interval(text) or Structure("set", [text])
        return pairs[0], pairs[1]

    def _equal_structures(self, gold: Structure, answer: Structure) -> bool:
        parts = [gold.parts, answer.parts]
        if gold.kind != answer.kind:
            return False
        if gold.kind not in ("set", "union"):
            same_number = len(parts[0]) == len(parts[1])
            return same_number and all(self._equal(a, b) for a, b in zip(*parts, strict=True))
        golds, others = ([p for part in some for p in expanded(part)] for some in parts)
        golds = self._distinct(golds)
        try:
            answers = self._distinct(others)
        except ValueError:  # a part of the answer cannot be read, so that it equals nothing
            return False
        if len(golds) != len(answers):
            return False
        left = list(answers)
        for one in golds:
            match = next((i for i, other in enumerate(left) if self._equal(one, other)), None)
            if match is None:
                return False
            left.pop(match)
        return True

    def _distinct(self, parts: list[str]) -> list[str]:
        found: list[str] = []
        for part in parts:
            if not any(self._equal(part, other) for other in found):
                found.append(part)
        return found

    def _equal_values(self, gold: str, answer: str) -> bool:
        quantities = read_quantity(gold), read_quantity(answer)
        if quantities[0] and quantities[1]:
            return equal_quantities(quantities[0], quantities[1], self.places)
        (gold, gold_unit), (answer, answer_unit) = _split_unit(gold), _split_unit(answer)
        if not same_unit_text(gold_unit, answer_unit):
            return False
        first, second = expression(gold), expression(answer)
        if first is None and quantities[0] is None:
            raise ValueError(f"cannot read the answer on record {gold!r:.80} as maths")
        if first is None or second is None:
            return False
        decimals = [bool(q and q.is_decimal) for q in quantities]
        return self._equal_expressions(first, second, may_round=any(decimals))

    def _equal_expressions(self, gold: Any, answer: Any, *, may_round: bool) -> bool:
        from math_verify import verify

        numbers = [_number(value) for value in (gold, answer)]
        if numbers[0] is not None and numbers[1] is not None:
            return _equal_numbers(numbers[0], numbers[1], self.places, may_round)
        if (numbers[0] is None) != (numbers[1] is None) and not _is_relation(gold, answer):
            gold, answer = _simplified(gold), _simplified(answer)
        if self.strict and _variables(gold) != _variables(answer):
            return False
        return verify(
            [gold],
            [answer],
            float_rounding=self.places,
            strict=self.strict,
            timeout_seconds=None,
            raise_on_error=True,
        )


@lru_cache(maxsize=4096)
def expression(text: str) -> Any:
    """What sympy makes of a normalised text, as math-verify reads it; None where it cannot."""
    from math_verify import LatexExtractionConfig, parse

    read = parse(
        f"${_latex(text)}$",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        raise_on_error=False,
    )
    value = next((value for value in read if not isinstance(value, str)), None)
    return _with_imaginary_unit(value)


def _with_imaginary_unit(value: Any) -> Any:
    """`i` is the imaginary unit, in an index and elsewhere: two sums over i stay equal."""
    import sympy

    i = sympy.Symbol("i")
    if isinstance(value, sympy.Expr) and not value.has(sympy.Sum, sympy.Product):
        named = [symbol for symbol in value.free_symbols if str(symbol) == "i"]
        return value.xreplace(dict.fromkeys(named or [i], sympy.I))
    return value


def _latex(text: str) -> str:
    """Plain spellings as LaTeX: `1e6`, and function names without a backslash."""
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)\b", r"\1 \\cdot 10^{\2}", text)
    return re.sub(r"(?<![A-Za-z\\])(pi|sin|cos|tan|ln|log|exp)(?![A-Za-z])", r"\\\1 ", text)


def _number(value: Any) -> Any:
    """The value if it is a number without variables; None for all else."""
    import sympy

    if (
        not isinstance(value, sympy.Expr)
        or value.free_symbols
        or isinstance(value, sympy.MatrixBase)
    ):
        return None
    return value if value.is_number else None


def _equal_numbers(gold: Any, answer: Any, places: int, may_round: bool) -> bool:
    """Exactly, by their first digits; rounded where one of them was written as a decimal."""
    import sympy

    if gold == answer:
        return True
    if gold.is_rational and answer.is_rational and not may_round:
        sizes = [abs(sympy.log(abs(sympy.N(value)), 10)) for value in (gold, answer) if value != 0]
        if all(size < _MOST_DIGITS for size in sizes):
            return bool(gold.doit() == answer.doit())
    if any(not value.is_finite for value in (gold, answer) if value.is_finite is not None):
        return gold == answer
    first, second = (sympy.N(value, _DIGITS) for value in (gold, answer))
    parts = [(a, b) for a, b in zip(first.as_real_imag(), second.as_real_imag(), strict=True)]
    return all(_equal_reals(a, b, places, may_round) for a, b in parts)


def _equal_reals(first: Any, second: Any, places: int, may_round: bool) -> bool:
    import sympy

    if not (first.is_Float or first.is_Rational) or not (second.is_Float or second.is_Rational):
        return False
    difference, largest = abs(first - second), max(abs(first), abs(second))
    if difference <= largest * sympy.Float(10, _DIGITS) ** (10 - _DIGITS):
        return True
    return (
        may_round
        and difference * 2 <= sympy.Rational(1, 10**places)
        and difference * 10 ** max(places - 1, 0) <= largest
    )


def _is_relation(*values: Any) -> bool:
    import sympy

    return any(isinstance(value, sympy.logic.boolalg.Boolean) for value in values)


def _variables(value: Any) -> set[str] | None:
    """Names of the variables of an expression; None for what is none."""
    import sympy

    value = _simplified(value)
    return {str(symbol) for symbol in value.free_symbols} if isinstance(value, sympy.Expr) else None


def _simplified(value: Any) -> Any:
    """Variables that cancel are none: x - x + 2."""
    import sympy

    return sympy.simplify(value) if isinstance(value, sympy.Expr) else value


def _values_of_equations(gold: str, answer: str) -> tuple[str, str]:
    """`x = 5` is read as 5 where the other side has no equation, or one in the same variable."""
    found = [None if read_structure(text) else _EQUATION.match(text) for text in (gold, answer)]
    if found[0] and found[1]:
        if without_spaces(found[0]["left"]) == without_spaces(found[1]["left"]):
            return found[0]["right"], found[1]["right"]
        return gold, answer
    if found[0] and "=" not in answer:
        return found[0]["right"].split("=")[-1], answer
    if found[1] and "=" not in gold:
        return gold, found[1]["right"].split("=")[-1]
    if "=" not in gold and re.fullmatch(r"[^A-Za-z\\<>]*=[^=<>]+", answer):
        return gold, answer.split("=")[-1].strip()  # 2 + 3 = 5
    return gold, answer


def _ratios_as_fractions(gold: str, answer: str) -> tuple[str, str]:
    """3:4 is read as the fraction where the other side is written as one."""
    texts = [gold, answer]
    for place, text in enumerate(texts):
        match = re.fullmatch(r"([\d.]+)\s*:\s*([\d.]+)", text)
        is_time = read_time(text) is not None
        if match and not is_time and re.search(r"/|\\frac", texts[1 - place]):
            texts[place] = rf"\frac{{{match[1]}}}{{{match[2]}}}"
    return texts[0], texts[1]


def _split_unit(text: str) -> tuple[str, str]:
    r"""An expression and the unit in `\text{...}` behind it."""
    match = _TRAILING_TEXT.search(text)
    if match and text[: match.start()].strip():
        unit = read_unit(text[match.start() :].strip(), spaced=True)
        if unit is not None:
            return text[: match.start()].strip(), unit
    if text.endswith(" degrees"):
        return text[: -len(" degrees")].strip(), "degree"
    return re.sub(r"^\$\s*", "", text), ("dollar" if text.startswith("$") else "")
