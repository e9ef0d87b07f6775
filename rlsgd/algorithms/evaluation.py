"""What an evaluation keeps of each problem, and the numbers with intervals that it reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from rlsgd.functional.estimators import avg_at_k, bootstrap_interval, majority_at_k, pass_at_k


class Estimate(NamedTuple):
    """A mean over problems with the ends of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class ProblemResults(Metric):
    """Correctness of each problem, in the order of problems, whatever the number of ranks.

    Every problem must be on one rank only, and every rank must have one at least. Ranks may have
    different numbers of problems.

    Args:
        num_samples: completions sampled for each problem besides the greedy one; 0 for none.
    """

    full_state_update = False
    greedy: list[Tensor]
    sampled: list[Tensor]
    majority: list[Tensor]

    def __init__(self, num_samples: int = 0) -> None:
        super().__init__()
        self.num_samples = num_samples
        for state in ("greedy", "sampled", "majority") if num_samples else ("greedy",):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        greedy_correct: Tensor,
        sampled_correct: Tensor | None = None,
        answers: Sequence[str | None] = (),
    ) -> None:
        """Add P problems.

        Args:
            greedy_correct: [P], 1 where the greedy completion is correct, else 0.
            sampled_correct: [P * num_samples], the same of the samples, a problem's in a row.
            answers: what each sample gave as its answer.
        """
        self.greedy.append(greedy_correct.float())
        if self.num_samples == 0:
            return
        assert sampled_correct is not None, "samples were announced"
        n = self.num_samples
        correct = sampled_correct.float().view(len(greedy_correct), n)
        by_problem = [answers[i : i + n] for i in range(0, len(answers), n)]
        self.sampled.append(correct)
        self.majority.append(majority_at_k(by_problem, correct.cpu()).to(correct))

    def compute(self) -> dict[str, Tensor]:
        """Each metric's value [P] for every problem of all ranks, float64 on the CPU."""
        n = self.num_samples
        values = {"accuracy": joined(self.greedy)}
        if n:
            correct = joined(self.sampled)
            values[f"avg@{n}"] = avg_at_k(correct)
            sizes = sorted({*powers_of_two(n), n})
            values |= {f"pass@{k}": pass_at_k(n, correct.sum(1), k) for k in sizes}
            values[f"majority@{n}"] = joined(self.majority)
        return values


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; torchmetrics has joined it already where it synchronized."""
    return (torch.cat(state) if isinstance(state, list) else state).cpu().double()


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4 ... up to `largest`."""
    return [1 << i for i in range(largest.bit_length())]


def by_benchmark(
    values: dict[str, Tensor], benchmarks: Sequence[str | None]
) -> dict[str, dict[str, Tensor]]:
    """The metrics of each benchmark's own problems.

    Args:
        values: each metric's value [P].
        benchmarks: P names; None for a problem that belongs to none.
    """
    names = sorted({name for name in benchmarks if name is not None})
    places = {n: [i for i, own in enumerate(benchmarks) if own == n] for n in names}
    return {
        name: {metric: per_problem.reshape(-1)[where] for metric, per_problem in values.items()}
        for name, where in places.items()
    }


def estimates(values: dict[str, Tensor], *, seed: int) -> dict[str, Estimate]:
    """The mean of each metric over problems, with its interval.

    All metrics are resampled with the same problems, so their differences can be compared too.
    """
    found = {}
    for name, per_problem in values.items():
        per_problem = per_problem.reshape(-1)  # torchmetrics makes a single problem's a scalar
        low, high = bootstrap_interval(per_problem, seed=seed)
        found[name] = Estimate(float(per_problem.mean()), float(low), float(high))
    return found
