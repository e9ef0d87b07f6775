"""All prompts of a task are measured at the start: one that is too long must not end a long run."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.utilities import rank_zero_info

from rlsgd.core.problems import Problem
from rlsgd.data.rendering import PromptRenderer
from rlsgd.data.tasks.base import Split, Task

Overlong = Literal["error", "drop"]


def check_lengths(
    task: Task, splits: list[Split], renderer: PromptRenderer, overlong: Overlong, held_out: int
) -> None:
    """Refuse prompts that are too long, or have the task leave them out.

    Args:
        task: whose problems are measured, if it knows all of them.
        splits: the sets that will be used.
        renderer: makes the prompts.
        overlong: what happens to those that are too long.
        held_out: the most problems that are used of validation and of test.

    Raises:
        ValueError: says how many are too long, of how many, and how long the longest is.
    """
    if overlong not in ("error", "drop"):
        raise ValueError(f"--data.overlong must be error or drop; got {overlong!r}")
    for split in splits:
        rows = task.rows(split)
        if rows is None:
            if overlong == "drop":
                task.restrict(renderer.fits)  # as they are made
            continue
        if overlong == "error" and split != "train":
            rows = rows[:held_out]
        too_long = _too_long(rows, renderer)
        if not too_long:
            continue
        longest = max(too_long.values())
        counts = (
            f"{len(too_long)} of {len(rows)} {split} prompts are longer (the longest has "
            f"{longest:,} tokens)"
        )
        if overlong == "error":
            raise ValueError(
                f"--data.max_prompt_tokens {renderer.max_prompt_tokens}: {counts}; raise it, or "
                "leave them out with --data.overlong drop"
            )
        if len(too_long) == len(rows):
            raise ValueError(
                f"--data.max_prompt_tokens {renderer.max_prompt_tokens}: {counts}, so "
                "--data.overlong drop would leave nothing; raise it"
            )
        left_out = {id(rows[number]) for number in too_long}
        task.restrict(lambda problem, left_out=left_out: id(problem) not in left_out)
        rank_zero_info(
            f"--data.max_prompt_tokens {renderer.max_prompt_tokens}: {counts} and are left out "
            "(--data.overlong drop)"
        )


def _too_long(rows: list[Problem], renderer: PromptRenderer) -> dict[int, int]:
    """Tokens of each prompt that is too long, by the row's number."""
    lengths = (len(renderer.prompt_of(problem).token_ids) for problem in rows)
    return {n: length for n, length in enumerate(lengths) if length > renderer.max_prompt_tokens}
