from fractions import Fraction

import pytest
from reasoning_gym.utils import extract_answer

from rlsgd.rewards.code import extract_code
from rlsgd.rewards.extract import EXTRACTORS, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 12 + 30 = 42", Fraction(42)),
        ("it costs $1,234,567.50.", Fraction("1234567.5")),
        ("1,2,3", Fraction(3)),
        ("1234,567", Fraction(567)),
        ("12,3456", Fraction(3456)),
        ("the answer is -7", Fraction(-7)),
        ("the answer is \N{MINUS SIGN}7!", Fraction(-7)),
        ("-$5", Fraction(-5)),
        ("pages 10-12", Fraction(12)),
        ("(3)-4", Fraction(4)),
        ("x = +3", Fraction(3)),
        ("3/4 of it", Fraction(3, 4)),
        ("-1 / 3", Fraction(-1, 3)),
        ("1/0", Fraction(0)),
        (".5", Fraction(1, 2)),
        ("50%", Fraction(50)),
        ("2.5e-3", Fraction(1, 400)),
        ("007", Fraction(7)),
        ("1.2.3", Fraction(3, 10)),
        ("none at all", None),
        ("", None),
        ("9" * 5000, Fraction(10**5000 - 1)),
    ],
)
def test_last_number(text, number):
    assert read_number(text) == number


def test_last_number_as_text():
    assert EXTRACTORS["last_number"]("it is -1,234.5 m") == "-1,234.5"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{ 2 }", "2"),
        (r"\boxed{1", None),
        ("2", None),
    ],
)
def test_boxed(text, found):
    assert EXTRACTORS["boxed"](text) == found


@pytest.mark.parametrize(
    "text",
    [
        "<answer>5</answer>",
        "<answer> a\nb </answer> and <answer>\n c</answer>.",
        "<answer></answer>",
        "<answer>5",
        "5",
        "<answer>1<answer>2</answer>",
        "<answer>  \n x \t </answer>",
    ],
)
def test_answer_tag_is_that_of_reasoning_gym(text):
    assert EXTRACTORS["answer_tag"](text) == extract_answer(text)


def test_whole_is_stripped():
    assert EXTRACTORS["whole"](" a b\n") == "a b"


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<answer>a</answer> <answer>b </answer>", "b"),
        ("<answer>a<answer>b</answer>", "a<answer>b"),
        ("<answer>a</answer><answer>b", "a"),
        ("</answer><answer>", None),
    ],
)
def test_tags_are_paired_from_the_left(text, tag):
    assert EXTRACTORS["answer_tag"](text) == tag


@pytest.mark.parametrize("piece", ["<answer>", "\\boxed{", "1,111", "1/0", "-", "9", "```x\n"])
def test_long_texts_are_searched_once(piece):
    """At a million characters, a search that starts over at every piece would take hours."""
    text = piece * (10**6 // len(piece))
    for extractor in (*EXTRACTORS.values(), read_number, extract_code):
        extractor(text)
