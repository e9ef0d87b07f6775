"""Problems, prompts and scores: without torch, so that a verifier's process starts fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Problem:
    """One verifiable problem: what is asked, the answer on record, and what its scorer needs."""

    question: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prompt:
    """A problem as the model sees it: rendered by the chat template (if any) and tokenized once."""

    problem: Problem
    text: str
    token_ids: list[int]


@dataclass
class Scores:
    """What a reward said of a list of completions.

    Attributes:
        rewards: one finite number for each completion.
        parts: the same for every named component; a plain reward has one part, itself.
        failures: for each completion None, or why its verifier failed ("timeout", ...).
        full_marks: the reward that counts as a correct answer in `accuracy`.
        answers: the answer found in each completion, None where there is none or the verifier
            failed; empty where nobody asked for them.
    """

    rewards: list[float]
    parts: dict[str, list[float]]
    failures: list[str | None]
    full_marks: float = 1.0
    answers: list[str | None] = field(default_factory=list)


class NothingScored(ValueError):
    """A reward failed for every completion; the message names the flag and the first reason."""
