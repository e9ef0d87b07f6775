"""VerifiableModule: a policy that is evaluated on problems whose answers can be checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.evaluation import Estimate, ProblemResults, by_benchmark, estimates
from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Prompt, Scores
from rlsgd.core.types import Rollouts
from rlsgd.models.loading import check_positions, stop_token_ids
from rlsgd.rollout.sampler import HFSampler, Sampler


class VerifiableModule(PolicyModule):
    """A policy, how it is sampled, and its accuracy on held-out problems.

    Args:
        sampler: how completions are sampled; none means by the policy itself (HFSampler).
        max_completion_tokens: most tokens of a completion.
        eval_samples: completions that `rlsgd test` and `rlsgd validate` sample for each problem
            besides the greedy one, for avg@k, pass@k and the majority's answer; 0 for none. The
            validation during `fit` is always greedy.
        eval_temperature: of those samples.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        max_completion_tokens: int = 256,
        eval_samples: int = 0,
        eval_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_completion_tokens < 1:
            raise ValueError("--model.max_completion_tokens must be at least 1")
        if eval_samples < 0:
            raise ValueError("--model.eval_samples must be 0 (greedy alone) or positive")
        if eval_temperature <= 0:
            raise ValueError("--model.eval_temperature must be above 0; greedy is reported anyway")
        self.sampler = sampler or HFSampler()
        self.max_completion_tokens = max_completion_tokens
        self.eval_samples = eval_samples
        self.eval_temperature = eval_temperature
        self.eval_reward, self.eval_accuracy = MeanMetric(), MeanMetric()
        self.eval_failures = SumMetric()
        self.eval_length, self.eval_truncated = MeanMetric(), MeanMetric()
        self.eval_problems = ProblemResults(eval_samples)
        self.eval_values: dict[str, Tensor] = {}  # of the last full evaluation, by problem
        self.eval_estimates: dict[str, Estimate] = {}
        self.validates_fully = False

    def configure_model(self) -> None:
        super().configure_model()
        self.stop_token_ids = stop_token_ids(self.policy, self.tokenizer)

    @property
    def task_data(self) -> Any:
        """The data module: the task's problems, and the scorer of their completions."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    # ---- sampling and evaluation

    def sample(
        self, prompts: list[Prompt], *, completions_per_prompt: int, temperature: float, seed: int
    ) -> Rollouts:
        """Completions of the present policy with their texts; a prompt's rows are adjacent."""
        self.require_finite_weights()
        self.stop_token_ids = sorted({*self.stop_token_ids, *self.task_data.renderer.turn_ends})
        longest = max(len(prompt.token_ids) for prompt in prompts)
        check_positions(self.policy, longest, self.max_completion_tokens)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            rollouts = self.sampler.sample(
                self.policy,
                [prompt.token_ids for prompt in prompts],
                completions_per_prompt=completions_per_prompt,
                max_completion_tokens=self.max_completion_tokens,
                temperature=temperature,
                stop_token_ids=self.stop_token_ids,
                pad_token_id=int(self.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
                seed=seed,
            )
        rollouts.prompts = [p for p in prompts for _ in range(completions_per_prompt)]
        rollouts.completions = [
            self.task_data.reader.text(ids[mask].tolist(), self.stop_token_ids)
            for ids, mask in zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
        ]
        return rollouts

    def score(self, rollouts: Rollouts) -> Scores:
        """Score completions with the data module's reward and store the rewards."""
        scores = self.task_data.score(rollouts.prompts, rollouts.completions)
        rollouts.failures = list(scores.failures)
        rollouts.rewards = torch.tensor(scores.rewards, device=rollouts.input_ids.device)
        return scores

    @property
    def evaluates_fully(self) -> bool:
        """Whether intervals and samples are wanted: not while fitting, which has to be fast."""
        return self.trainer.testing or (self.trainer.validating and self.validates_fully)

    def evaluate(self, prompts: list[Prompt], batch_idx: int = 0) -> Rollouts:
        """Greedy completions of held-out prompts, scored into the running evaluation metrics.

        A full evaluation samples as well. Its samples are the same again for the same seed, number
        of ranks and batch size.
        """
        seed = derived_seed(self.seed, "evaluate", self.global_rank, batch_idx)
        rollouts, correct, _ = self.graded(prompts, 1, temperature=0.0, seed=seed)
        assert rollouts.rewards is not None
        self.eval_reward.update(rollouts.rewards)
        self.eval_accuracy.update(correct)
        self.eval_length.update(rollouts.completion_mask.sum(1).float())
        self.eval_truncated.update(rollouts.truncated.float())
        self.eval_failures.update(sum(map(bool, rollouts.failures)))
        if self.evaluates_fully and self.eval_samples:
            _, sampled, answers = self.graded(
                prompts, self.eval_samples, temperature=self.eval_temperature, seed=seed
            )
            self.eval_problems.update(correct, sampled, answers)
        elif self.evaluates_fully:
            self.eval_problems.update(correct)
        return rollouts

    def graded(
        self, prompts: list[Prompt], completions_per_prompt: int, *, temperature: float, seed: int
    ) -> tuple[Rollouts, Tensor, list[str | None]]:
        """Scored completions, 1 for each correct one (else 0), and the answers found in them."""
        rollouts = self.sample(
            prompts,
            completions_per_prompt=completions_per_prompt,
            temperature=temperature,
            seed=seed,
        )
        scores = self.score(rollouts)
        assert rollouts.rewards is not None
        return rollouts, (rollouts.rewards >= scores.full_marks).float(), scores.answers

    def log_evaluation(self, stage: str) -> None:
        """Log and reset the evaluation metrics; torchmetrics reduces them over ranks."""
        self.task_data.notices.require_scores(f"the {stage} set")
        self.log(f"{stage}/accuracy", self.eval_accuracy, prog_bar=True)
        self.log(f"{stage}/reward", self.eval_reward)
        self.log(f"{stage}/mean_length", self.eval_length)
        self.log(f"{stage}/truncated_fraction", self.eval_truncated)
        self.log(f"{stage}/verifier_failures", self.eval_failures)
        if not self.evaluates_fully:
            return
        self.eval_values = self.eval_problems.compute()
        self.eval_problems.reset()
        seed = derived_seed(self.seed, "bootstrap")
        self.eval_estimates = estimates(self.eval_values, seed=seed)
        benchmarks = self.task_data.benchmarks(stage)
        for benchmark, values in by_benchmark(self.eval_values, benchmarks).items():
            found = estimates(values, seed=seed)
            self.eval_estimates |= {f"{benchmark}/{name}": one for name, one in found.items()}
        for name, (value, low, high) in self.eval_estimates.items():
            if name != "accuracy":  # which is logged above
                self.log(f"{stage}/{name}", value, sync_dist=True)
            self.log(f"{stage}/{name}/low", low, sync_dist=True)
            self.log(f"{stage}/{name}/high", high, sync_dist=True)

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation("val")

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> Rollouts:
        return self.evaluate(batch, batch_idx)
