"""Scores for lists of completions, whatever the verifier does."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

from rlsgd.core.problems import Problem, Scores
from rlsgd.rewards.base import BatchReward, Grade, Reward, grade_batch_safely, grade_safely
from rlsgd.rewards.isolation import IsolatedWorker, Item
from rlsgd.rewards.weighted_sum import WeightedSum


class Scorer:
    """Runs a reward over completions: inline, or in worker processes if the reward is `isolated`.

    A verifier that raises, hangs, dies or returns no finite number is a failure of that completion
    alone: it gets `failure_score` in the reward and in every part, and its reason in
    `Scores.failures`.

    Args:
        reward: reward to run.
        timeout_seconds: the most that one completion may take an isolated reward.
        failure_score: the reward of a completion whose verifier failed.
        workers: processes that share the list.
        allow_unwalled: run a `walled` reward with the trainer's own rights where no wall works;
            else that is refused.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        timeout_seconds: float = 10.0,
        failure_score: float = 0.0,
        workers: int = 1,
        allow_unwalled: bool = False,
    ) -> None:
        if not (timeout_seconds > 0 and math.isfinite(timeout_seconds)):
            raise ValueError(
                "--data.reward_timeout_seconds must be a positive number of seconds; got "
                f"{timeout_seconds}"
            )
        if not math.isfinite(failure_score):
            raise ValueError(f"--data.reward_failure_score must be finite; got {failure_score}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1; got {workers}")
        self.reward = reward
        self.failure_score = float(failure_score)
        self._lock = threading.Lock()
        options = {"timeout_seconds": timeout_seconds, "allow_unwalled": allow_unwalled}
        self._members: list[Scorer] = []
        self._workers: list[IsolatedWorker] = []
        if isinstance(reward, WeightedSum) and reward.is_mixed:
            self._members = [Scorer(r, workers=workers, **options) for r in reward.rewards]
        elif reward.isolated:
            self._workers = [IsolatedWorker(reward, **options) for _ in range(workers)]
        else:
            reward.prepare()

    def wait_until_ready(self) -> None:
        """Block until every worker has built the reward, so that a broken one is known early.

        Raises:
            ValueError: if the reward cannot be built there.
        """
        for worker in (*self._workers, *self._members):
            worker.wait_until_ready()

    def score(self, completions: list[str], problems: list[Problem]) -> Scores:
        """Score completion i as an answer to problem i.

        Raises:
            ValueError: if the reward cannot be built in its worker process.
        """
        items = list(zip(completions, problems, strict=True))
        with self._lock:
            grades = self._grade(items) if items else []
        parts = {
            name: [self.failure_score if g.parts is None else g.parts[name] for g in grades]
            for name in self.reward.part_names
        }
        return Scores(
            rewards=[self.failure_score if g.failure else g.score for g in grades],
            parts=parts,
            failures=[g.failure for g in grades],
            full_marks=self.reward.full_marks,
            answers=[g.answer for g in grades],
        )

    def close(self) -> None:
        """Stop the worker processes."""
        for worker in (*self._workers, *self._members):
            worker.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _grade(self, items: list[Item]) -> list[Grade]:
        if not items:
            return []
        if self._members:
            return self._grade_by_members(items)
        if not self._workers and isinstance(self.reward, BatchReward):
            return grade_batch_safely(self.reward, *map(list, zip(*items, strict=True)))
        if not self._workers:
            return [grade_safely(self.reward, *item) for item in items]
        sharing = 1 if isinstance(self.reward, BatchReward) else len(self._workers)
        share = math.ceil(len(items) / sharing)
        chunks = [items[i : i + share] for i in range(0, len(items), share)]
        with ThreadPoolExecutor(len(chunks)) as threads:
            graded = threads.map(IsolatedWorker.grade, self._workers, chunks)
            return [grade for chunk in graded for grade in chunk]

    def _grade_by_members(self, items: list[Item]) -> list[Grade]:
        """A weighted sum of which each member has a worker of its own."""
        assert isinstance(self.reward, WeightedSum)
        scores = [member.score(*map(list, zip(*items, strict=True))) for member in self._members]
        finder, rewards = self.reward.finder_of_answers, self.reward.rewards
        grades = []
        for i, (completion, _) in enumerate(items):
            failures = [each.failures[i] for each in scores if each.failures[i]]
            if failures:
                grades.append(Grade(failure=failures[0]))
                continue
            values = [each.rewards[i] for each in scores]
            parts = dict(zip(self.reward.part_names, values, strict=True))
            found = completion.strip() if finder is None else None
            answer = scores[rewards.index(finder)].answers[i] if finder is not None else found
            grades.append(Grade(self.reward.total(parts), parts, answer=answer))
        return grades
