"""Exact numbers with a unit: `$12.50`, `1 1/2`, `3.5e4`, `5 km/h`, `0.\\overline{3}`, `12:00`."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGN = r"[-+]?\s*"
_FRACTION = rf"\\frac\s*\{{\s*({_SIGN}(?:{_DECIMAL}))\s*\}}\s*\{{\s*({_SIGN}(?:{_DECIMAL}))\s*\}}"
_BODIES = [
    (re.compile(rf"(\d+) ?{_FRACTION}"), "mixed"),
    (re.compile(r"(\d+)(?: |-)(\d+) ?/ ?(\d+)(?![\d.])"), "mixed"),
    (re.compile(_FRACTION), "fraction"),
    (re.compile(rf"\(?({_DECIMAL}) ?/ ?({_DECIMAL})\)?(?![\d.])"), "fraction"),
    (re.compile(rf"({_DECIMAL})[eE]([-+]?\d{{1,4}})(?!\d)"), "scientific"),
    (
        re.compile(
            rf"({_DECIMAL}) ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{{? ?([-+]?\d{{1,4}}) ?\}}?(?!\d)"
        ),
        "scientific",
    ),
    (re.compile(r"()10 ?\^ ?\{? ?([-+]?\d{1,4}) ?\}?(?!\d)"), "scientific"),
    (re.compile(r"(\d*)\.(\d*?)\\overline ?\{(\d+)\}"), "repeating"),
    (re.compile(rf"({_DECIMAL})"), "decimal"),
]
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_SYNONYMS = {
    "dollars": "dollar", "usd": "dollar", "us dollars": "dollar", "euros": "euro", "eur": "euro",
    "cents": "cent", "¢": "cent", "percent": "%", "per cent": "%", "percentage": "%",
    "degrees": "degree", "deg": "degree", "km/hr": "km/h", "kmh": "km/h", "kph": "km/h",
    "kilometers per hour": "km/h", "km per hour": "km/h", "miles per hour": "mph",
    "miles/hour": "mph", "mi/h": "mph", "meters per second": "m/s", "kilometers": "km",
    "kilometer": "km", "meters": "m", "meter": "m", "metres": "m", "metre": "m",
    "centimeters": "cm", "centimeter": "cm", "millimeters": "mm", "millimeter": "mm",
    "inches": "in", "inch": "in", "feet": "ft", "foot": "ft", "yards": "yd", "yard": "yd",
    "miles": "mi", "mile": "mi", "kilograms": "kg", "kilogram": "kg", "grams": "g", "gram": "g",
    "milligrams": "mg", "pounds": "lb", "pound": "lb", "lbs": "lb", "ounces": "oz", "ounce": "oz",
    "hours": "h", "hour": "h", "hr": "h", "hrs": "h", "minutes": "min", "minute": "min",
    "mins": "min", "seconds": "s", "second": "s", "sec": "s", "secs": "s", "days": "day",
    "weeks": "week", "months": "month", "years": "year", "liters": "L", "liter": "L",
    "litres": "L", "litre": "L", "l": "L", "milliliters": "mL", "ml": "mL", "gallons": "gallon",
    "radians": "rad", "radian": "rad", "people": "person", "students": "student",
}  # fmt: skip
_KNOWN = {*_SYNONYMS, *_SYNONYMS.values(), "pound sterling", "yen", "rupee"}
_LETTER_UNITS = {"m", "g", "s", "h", "L", "l", "in"}  # which are variables where no space is
_NO_UNITS = {"or", "and", "to", "than", "not", "if", "plus", "minus", "over", "more", "less",
             "mod", "factorial", "squared", "cubed", "dozen", "half", "halves", "infinity", "sin",
             "cos", "tan", "log", "sqrt", "exp", "choose", "per", "with", "but"}  # fmt: skip
_TIME = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text\{\s*)?([ap])?\.?\s*(m)?\.?\s*\}?", re.IGNORECASE
)


class Quantity(NamedTuple):
    """An exact value; `is_decimal` where it was written with digits after the point."""

    value: Fraction
    unit: str = ""
    is_decimal: bool = False


class ClockTime(NamedTuple):
    """Hours, minutes and seconds; whether the half of the day was said."""

    seconds: int
    has_half: bool


def read_quantity(text: str) -> Quantity | None:
    """The number and unit of a normalised text that is nothing else; None where it is."""
    text, unit = text.strip(), ""
    sign, text = _sign(text)
    if text[:1] in _CURRENCIES:
        unit, text = _CURRENCIES[text[0]], text[1:].lstrip()
        if sign == 1:
            sign, text = _sign(text)
    for pattern, kind in _BODIES:
        match = pattern.match(text)
        if match is None:
            continue
        value = _value(kind, [group.strip() for group in match.groups()])
        rest, spaced = text[match.end() :].strip(), text[match.end() : match.end() + 1] == " "
        for word, power in _SCALES.items():
            if re.match(rf"(?:\\text\{{\s*)?{word}\b", rest, re.IGNORECASE):
                value, rest = value and value * 10**power, re.sub(rf"(?i){word}", "", rest, count=1)
                rest = rest.replace(r"\text{ }", "").replace(r"\text{}", "").strip()
        own = read_unit(rest, spaced=spaced)
        if value is None or own is None or (unit and own and own != unit):
            return None
        is_decimal = kind in ("decimal", "scientific") and value.denominator > 1
        return Quantity(sign * value, unit or own, is_decimal)
    return None


def read_unit(text: str, *, spaced: bool) -> str | None:
    """A unit in one spelling, empty for none; None where the text is no unit."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip()
    is_text = plain != text.strip()
    plain = re.sub(r"\s+", " ", plain).rstrip(". ")
    if plain in ("", "%"):
        return plain
    if plain in _CURRENCIES:
        return _CURRENCIES[plain]
    power = re.search(r" ?\^ ?\{? ?([23]) ?\}?$", plain)
    words = plain[: power.start()].strip() if power else plain
    for prefix, number in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if words.lower().startswith(prefix) and words.lower() not in _KNOWN:
            words, power_text = words[len(prefix) :], number
            break
    else:
        power_text = power[1] if power else ""
    if words in _LETTER_UNITS and not (spaced or is_text):
        return None
    if any(word in _NO_UNITS for word in words.lower().split()):
        return None
    known = words in _KNOWN or words.lower() in _KNOWN
    is_name = re.fullmatch(
        r"[A-Za-z][A-Za-z /.-]*" if is_text else r"(?:[A-Za-z]{3,} ?){1,4}", words
    )
    if not known and not (is_name and (is_text or spaced)):
        return None
    name = _SYNONYMS.get(words, _SYNONYMS.get(words.lower(), words.lower()))
    return name + (f"^{power_text}" if power_text else "")


def read_time(text: str) -> ClockTime | None:
    """A time of day, `12:00` or `3:30 pm`; None where the text is something else."""
    match = _TIME.fullmatch(re.sub(r"\s*(?:\\text\{\s*)?noon\s*\}?$", "", text.strip()))
    if match is None or bool(match[4]) != bool(match[5]):
        return None
    hours, minutes, seconds = (int(group or 0) for group in match.groups()[:3])
    if hours > 24 or minutes > 59 or seconds > 59 or (match[4] and not 1 <= hours <= 12):
        return None
    if match[4]:
        hours = hours % 12 + (12 if match[4].lower() == "p" else 0)
    return ClockTime(hours * 3600 + minutes * 60 + seconds, bool(match[4]))


def same_time(gold: ClockTime, answer: ClockTime) -> bool:
    """Whether both are the same time; a gold without am or pm goes with either."""
    if gold.seconds == answer.seconds:
        return True
    half = 12 * 3600
    either = answer.has_half and not gold.has_half
    return either and gold.seconds % half == answer.seconds % half and gold.seconds < half


def equal_quantities(gold: Quantity, answer: Quantity, places: int) -> bool:
    """Whether values are the same, and units are where both have one.

    Values are compared exactly. Where one is a decimal and the other a fraction, the decimal may
    be rounded, at `places` decimal places.
    """
    values = [(gold.value, answer.value)]
    if (gold.unit == "%") != (answer.unit == "%"):
        if gold.unit not in ("", "%") or answer.unit not in ("", "%"):
            return False
        scaled = [q.value / 100 if q.unit == "%" else q.value for q in (gold, answer)]
        as_written = gold.unit == "%" or abs(gold.value) >= 1  # "what percent?" has a bare answer
        values = [(scaled[0], scaled[1]), *(values if as_written else [])]
    elif not _same_unit(gold.unit, answer.unit):
        return False
    mixed = gold.is_decimal != answer.is_decimal
    return any(a == b or (mixed and rounds_to(a, b, places)) for a, b in values)


def rounds_to(first: Fraction, second: Fraction, places: int) -> bool:
    """Whether two numbers are as close as rounding to `places` leaves them, and of one size."""
    difference = abs(first - second)
    largest = max(abs(first), abs(second))
    close = difference * 2 <= Fraction(1, 10**places)
    return close and difference * 10 ** max(places - 1, 0) <= largest


def same_unit_text(gold: str, answer: str) -> bool:
    """Whether two unit texts may stand behind the same expression."""
    return _same_unit(gold, answer)


def _same_unit(gold: str, answer: str) -> bool:
    if not gold or not answer or gold == answer:
        return True
    first, second = (set(unit.replace("-", " ").split()) for unit in (gold, answer))
    both_known = {gold, answer} <= _KNOWN
    return not both_known and (first <= second or second <= first)


def _sign(text: str) -> tuple[int, str]:
    if text[:1] in ("-", "+"):
        return (-1 if text[0] == "-" else 1), text[1:].lstrip()
    return 1, text


def _number(text: str) -> Fraction:
    return Fraction(Decimal(re.sub(r"[,\s]", "", text)))


def _value(kind: str, groups: list[str]) -> Fraction | None:
    if kind == "mixed":
        whole, top, bottom = map(_number, groups)
        return whole + top / bottom if bottom else None
    if kind == "fraction":
        top, bottom = map(_number, groups)
        return top / bottom if bottom else None
    if kind == "scientific":
        return _number(groups[0] or "1") * Fraction(10) ** int(groups[1])
    if kind == "repeating":
        whole, fixed, period = groups
        shift = 10 ** len(fixed)
        tail = Fraction(int(period), 10 ** len(period) - 1)
        return Fraction(int(whole or 0)) + (Fraction(int(fixed or 0)) + tail) / shift
    return _number(groups[0])
