"""The accuracy on held-out problems: an evaluator, what it keeps of each problem, its estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric

from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Prompt
from rlsgd.core.types import Rollouts
from rlsgd.functional.estimators import avg_at_k, bootstrap_interval, majority_at_k, pass_at_k
from rlsgd.rollout.loader import PromptData, SamplingModule, sample_and_score

Owner = TypeVar("Owner", bound=LightningModule)


class Notices(Protocol):
    """Counts what could not be scored."""

    def require_scores(self, what: str) -> None: ...


class TaskData(PromptData, Protocol):
    """What an evaluator asks of its data, such as PromptDataModule."""

    @property
    def notices(self) -> Notices: ...
    def benchmarks(self, stage: Literal["val", "test"]) -> list[str | None]: ...


@runtime_checkable
class VerifiableModule(Protocol):
    """A module that owns an evaluator: RLModule and SFT."""

    evaluator: Evaluator


class EvaluatedModule(VerifiableModule, SamplingModule, Protocol):
    """What an evaluator asks of the module that owns it."""

    seed: int

    @property
    def task_data(self) -> TaskData: ...
    @property
    def global_rank(self) -> int: ...
    def log(self, name: str, value: Any, **options: Any) -> None: ...


class Evaluator(nn.Module):
    """Accuracy of greedy completions and, in a full evaluation, of sampled ones with intervals.

    Args:
        num_samples: completions sampled for each problem besides the greedy one; 0 for none.
        temperature: softmax temperature of those samples.
    """

    def __init__(self, num_samples: int = 0, temperature: float = 1.0) -> None:
        super().__init__()
        if num_samples < 0:
            raise ValueError("--model.eval_samples must be 0 (greedy alone) or positive")
        if temperature <= 0:
            raise ValueError("--model.eval_temperature must be above 0; greedy is reported anyway")
        self.num_samples = num_samples
        self.temperature = temperature
        self.accuracy, self.reward = MeanMetric(), MeanMetric()
        self.mean_length, self.truncated = MeanMetric(), MeanMetric()
        self.failures = SumMetric()
        self.problems = ProblemResults(num_samples)
        self.values: dict[str, Tensor] = {}  # of the last full evaluation, by problem
        self.estimates: dict[str, Estimate] = {}
        self.validates_fully = False

    def is_full(self, module: EvaluatedModule) -> bool:
        """Whether intervals and samples are wanted: not while fitting, which has to be fast."""
        trainer = module.trainer
        return trainer.testing or (trainer.validating and self.validates_fully)

    def update(self, module: EvaluatedModule, prompts: list[Prompt], batch_idx: int) -> Rollouts:
        """Greedy completions of held-out prompts, scored into the running metrics.

        A full evaluation samples as well. Its samples are the same again for the same seed, number
        of ranks and batch size.
        """
        seed = derived_seed(module.seed, "evaluate", module.global_rank, batch_idx)
        rollouts, scores = sample_and_score(
            module, prompts, completions_per_prompt=1, temperature=0.0, seed=seed
        )
        correct = (rollouts.rewards >= scores.full_marks).float()
        self.accuracy.update(correct)
        self.reward.update(rollouts.rewards)
        self.mean_length.update(rollouts.completion_mask.sum(1).float())
        self.truncated.update(rollouts.truncated.float())
        self.failures.update(sum(map(bool, rollouts.failures)))
        if self.is_full(module) and self.num_samples:
            sampled, scores = sample_and_score(
                module,
                prompts,
                completions_per_prompt=self.num_samples,
                temperature=self.temperature,
                seed=seed,
            )
            right = (sampled.rewards >= scores.full_marks).float()
            self.problems.update(correct, right, scores.answers)
        elif self.is_full(module):
            self.problems.update(correct)
        return rollouts

    def log(self, module: EvaluatedModule, stage: Literal["val", "test"]) -> None:
        """Log and reset the metrics; torchmetrics reduces them over ranks."""
        module.task_data.notices.require_scores(f"the {stage} set")
        module.log(f"{stage}/accuracy", self.accuracy, prog_bar=True)
        module.log(f"{stage}/reward", self.reward)
        module.log(f"{stage}/mean_length", self.mean_length)
        module.log(f"{stage}/truncated_fraction", self.truncated)
        module.log(f"{stage}/verifier_failures", self.failures)
        if not self.is_full(module):
            return
        self.values = self.problems.compute()
        self.problems.reset()
        seed = derived_seed(module.seed, "bootstrap")
        self.estimates = estimates(self.values, seed=seed)
        benchmarks = module.task_data.benchmarks(stage)
        for benchmark, values in by_benchmark(self.values, benchmarks).items():
            of_benchmark = estimates(values, seed=seed)
            self.estimates |= {f"{benchmark}/{name}": one for name, one in of_benchmark.items()}
        for name, (value, low, high) in self.estimates.items():
            if name != "accuracy":  # which is logged above
                module.log(f"{stage}/{name}", value, sync_dist=True)
            module.log(f"{stage}/{name}/low", low, sync_dist=True)
            module.log(f"{stage}/{name}/high", high, sync_dist=True)


class Estimate(NamedTuple):
    """A mean over problems with the ends of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def evaluates_answers(module: type[Owner]) -> type[Owner]:
    """Give a class of modules that own an evaluator Lightning's hooks of evaluation."""

    def step(self: EvaluatedModule, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluator.update(self, batch, batch_idx)

    def predict(self: EvaluatedModule, batch: list[Prompt], batch_idx: int) -> Rollouts:
        return self.evaluator.update(self, batch, batch_idx)

    hooks = {
        "validation_step": step,
        "test_step": step,
        "predict_step": predict,
        "on_validation_epoch_end": lambda self: self.evaluator.log(self, "val"),
        "on_test_epoch_end": lambda self: self.evaluator.log(self, "test"),
    }
    for name, hook in hooks.items():
        setattr(module, name, hook)
    return module


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
        n = self.num_samples
        if n == 0:
            return
        if sampled_correct is None:
            raise TypeError(f"{n} samples of each problem were announced, and none is given")
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
