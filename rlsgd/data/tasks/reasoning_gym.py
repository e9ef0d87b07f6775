"""Endless problems from the generators of reasoning_gym (arXiv:2505.24760)."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng

from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Problem
from rlsgd.data.tasks.base import Split, Task, check_fraction, question_hash
from rlsgd.data.tasks.processor_limit import MOST_SECONDS, TooSlow, processor_limit
from rlsgd.rewards.extract import Extract
from rlsgd.rewards.reasoning_gym import ReasoningGymScore, build_dataset

# A split with a share s of the questions needs about count / s draws; this many times that are
# drawn before the generator is taken to have nothing more to give.
_PATIENCE = 8
# These iterate over sets of strings, so their items change with Python's hash seed.
_HASH_SEEDED = {
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}


class ReasoningGym(Task):
    """Any data set of reasoning_gym, generated as it is needed and never exhausted.

    Which of the three sets a question belongs to is decided by a hash of its text, so they are
    disjoint whatever the seeds, and also where the generator knows only a few questions. A small
    generator may repeat a training question within an epoch; validation and test have no repeats.

    Args:
        name: the data set, for example `chain_sum`.
        config: options of that data set, without `seed` and `size`; the others keep
            reasoning_gym's defaults.
        extract: place where the default reward finds the answer in a completion: `whole`,
            `last_number`, `answer_tag` or `boxed`.
        held_out_fraction: share of all questions that is never trained on; half of it is for
            validation, half for test. The smaller it is, the more items are generated and dropped
            to fill the validation set.
        validation_seed: draws the validation and test problems. It is not the seed of the run, so
            that runs with different seeds are measured on the same problems.
    """

    def __init__(
        self,
        name: str,
        config: dict[str, Any] | None = None,
        extract: Extract = "whole",
        held_out_fraction: float = 0.5,
        validation_seed: int = 0,
    ) -> None:
        check_fraction(
            held_out_fraction, flag="--data.task.held_out_fraction", lowest_excluded=True
        )
        self.name = name
        self.config = dict(config or {})
        self.extract: Extract = extract
        self.held_out_fraction = held_out_fraction
        self.validation_seed = validation_seed
        self._reward = ReasoningGymScore(extract)
        self._fits: Callable[[Problem], bool] | None = None
        build_dataset(name, self.config, seed=0, size=1)
        self._check_hash_seed()

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        return self._draw("train", count, seed, epoch)

    def validation_problems(self, count: int) -> list[Problem]:
        return self._draw("validation", count, self.validation_seed)

    def test_problems(self, count: int) -> list[Problem]:
        return self._draw("test", count, self.validation_seed)

    def default_reward(self) -> ReasoningGymScore:
        return self._reward

    def restrict(self, fits: Callable[[Problem], bool]) -> None:
        self._fits = fits

    def split_of(self, question: str) -> Split:
        """The set that a question belongs to."""
        place = question_hash(question) / self.held_out_fraction
        return "validation" if place < 0.5 else "test" if place < 1 else "train"

    def _draw(self, split: Split, count: int, *seeds: int) -> list[Problem]:
        if count == 0:
            return []
        # A few data sets draw from the global generators, and one reseeds numpy's.
        with isolate_rng(include_cuda=False):
            return self._take(split, count, *seeds)

    def _take(self, split: Split, count: int, *seeds: int) -> list[Problem]:
        problems: list[Problem] = []
        seen: set[str] = set()
        for entry in self._entries(split, count, *seeds):
            question = entry["question"]
            if self.split_of(question) != split or (split != "train" and question in seen):
                continue
            problem = self._problem(entry)
            if self._fits is not None and not self._fits(problem):
                continue
            seen.add(question)
            problems.append(problem)
            if len(problems) == count:
                return problems
        if split == "train" or not problems:
            raise ValueError(
                f"--data.task.name: {self.name} gave only {len(problems)} of {count} {split} "
                f"problems in {_PATIENCE} times the draws expected: it has too few questions to "
                "hold some out. Widen --data.task.config or change --data.task.held_out_fraction"
            )
        return problems

    def _entries(self, split: Split, count: int, *seeds: int) -> Iterator[dict[str, Any]]:
        held_out = self.held_out_fraction
        share = 1 - held_out if split == "train" else held_out / 2
        size = math.ceil(count / share) + 8
        for block in range(_PATIENCE):
            # Item i of a data set depends on seed + i, so neighbouring seeds share items.
            seed = derived_seed(split, *seeds, block) % 2**31  # numpy takes no more than 32 bits
            dataset = build_dataset(self.name, self.config, seed=seed, size=size)
            random.seed(seed)
            np.random.seed(seed)
            for index in range(size):
                yield self._made(dataset, index)

    def _made(self, dataset: Any, index: int) -> dict[str, Any]:
        try:
            with processor_limit():
                return dataset[index]
        except TooSlow:
            raise ValueError(
                f"--data.task.config: {self.name} took more than {MOST_SECONDS:g} seconds of "
                "processor time for one problem"
            ) from None
        except Exception as error:
            raise ValueError(
                f"--data.task.config: {self.name} could not make a problem: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _problem(self, entry: dict[str, Any]) -> Problem:
        # A few data sets have no single answer on record: any valid solution gets full marks.
        answer = "" if entry["answer"] is None else str(entry["answer"])
        metadata = {"source_dataset": self.name, "source_config": self.config, "entry": entry}
        return Problem(entry["question"], answer, metadata)

    def _check_hash_seed(self) -> None:
        names = {self.name, *(spec["name"] for spec in self.config.get("datasets") or [])}
        affected = sorted(names & _HASH_SEEDED)
        if affected and os.environ.get("PYTHONHASHSEED", "random") == "random":
            raise ValueError(
                f"--data.task.name: the items of {', '.join(affected)} depend on Python's hash "
                "seed; start the run with the environment variable PYTHONHASHSEED=0"
            )
