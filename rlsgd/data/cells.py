"""What a cell may hold: an answer that is text or one number, a question that is text or a chat."""

from __future__ import annotations

import ast
import math
import re
from decimal import Decimal
from typing import Any

from rlsgd.rewards.extract import boxed

Turn = dict[str, str]


class Empty(ValueError):
    """There is nothing in the cell, so the row has no answer."""


def answer_text(value: Any) -> str:
    """Text or a number as it was written; a list of one is taken for its element.

    Raises:
        Empty: nothing is there.
        ValueError: it is something else; says what.
    """
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list):
        value = value[0]
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise Empty("is empty there")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, (float, Decimal)):
        if not math.isfinite(value):
            raise ValueError(f"has {value} there, which is not a number")
        return repr(value) if isinstance(value, float) else str(value)
    raise ValueError(f"has {described(value)} there; an answer is text or one number")


def described(value: Any) -> str:
    """A value by its type, and by what may help to name the right column."""
    if isinstance(value, dict):
        return f"a dict with the fields {', '.join(map(str, value))} (name one: column.field)"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a value of type {type(value).__name__}"


def question_of(value: Any) -> tuple[str, list[Turn] | None, bool]:
    """Text, the turns where it is a chat, and whether a last turn of the assistant was taken off.

    That turn is the solution: a prompt that kept it would give the answer away.

    Raises:
        Empty: nothing is there.
        ValueError: it is neither text nor a chat of text; says why.
    """
    if isinstance(value, str) and _is_written_chat(value):
        raise ValueError("is a chat written as text; make it a list of {role, content}")
    if not isinstance(value, list) or not value:
        try:
            return answer_text(value), None, False
        except Empty:
            raise
        except ValueError:
            raise ValueError(
                f"has {described(value)} there; a question is text or a chat"
            ) from None
    if not all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value):
        raise ValueError("is a list, but not of {role, content}")
    solved = value[-1]["role"] == "assistant"
    turns = [_turn(turn) for turn in (value[:-1] if solved else value)]
    if not turns or turns[-1]["role"] in ("system", "assistant"):
        raise ValueError("is a chat without a last turn of the user's to answer")
    return "\n\n".join(turn["content"] for turn in turns), turns, solved


def _is_written_chat(text: str) -> bool:
    """Whether a text is the JSON or Python of a list of turns."""
    if not re.match(r"\s*\[\s*\{\s*['\"](?:role|content)['\"]", text):
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _turn(turn: dict[str, Any]) -> Turn:
    role, content = turn["role"], turn["content"]
    if not isinstance(role, str):
        raise ValueError(f"is a chat with {described(role)} for a role")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        if not all(isinstance(part.get("text"), str) for part in parts):
            raise ValueError(f"is a chat whose {role} turn has parts that are not text")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str) or not content.strip():
        what = "no content" if content is None or content == "" else described(content)
        raise ValueError(f"is a chat whose {role} turn has {what}, not text")
    return {"role": role, "content": str(content)}


def after_hashes(solution: str) -> str:
    """GSM8K's final answer: the line after the last `####`.

    Raises:
        Empty: there is none.
    """
    _, found, answer = solution.rpartition("####")
    if not found or not answer.strip():
        raise Empty("has no final answer after ####")
    return answer.strip()


def last_box(solution: str) -> str:
    r"""The final answer of a solution of MATH or NuminaMath: the last `\boxed{...}`.

    Raises:
        Empty: there is none.
    """
    answer = boxed(solution)
    if not answer:
        raise Empty("has no \\boxed answer in its solution")
    return answer
