"""Environments whose difficulty rises with the policy's accuracy (RLVE, arXiv:2511.07317)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rlsgd.core.distributed import derived_seed, gathered
from rlsgd.core.problems import Problem
from rlsgd.data.tasks.adaptive_check import check_level
from rlsgd.data.tasks.adaptive_curriculum import Curriculum
from rlsgd.data.tasks.adaptive_difficulty import Difficulty, RisingRule
from rlsgd.data.tasks.base import Task, check_fraction
from rlsgd.data.tasks.reasoning_gym import ReasoningGym, Split
from rlsgd.rewards.extract import Extract
from rlsgd.rewards.reasoning_gym import ReasoningGymScore

Place = tuple[str, int]  # an environment and a difficulty


@dataclass
class Environment:
    """A data set of reasoning_gym with its curriculum.

    Args:
        name: the data set; by default what the environment is called.
        config: options that stay as they are. What the curriculum says of them is left out, and the
            rest of it rises.
        max_difficulty: the highest difficulty; by default the curriculum's last.
    """

    name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    max_difficulty: int | None = None


class AdaptiveReasoningGym(Task):
    """Data sets of reasoning_gym, each at difficulties that follow the policy.

    Every training problem is of an environment, and of a difficulty in that environment's window
    [low, high], both drawn uniformly. `high` rises as `Difficulty` says, and the next iteration's
    problems are the first of the new window: there is no lag, since prompts are drawn when an
    iteration begins. Difficulty d is level d of the library's own curriculum, see `Curriculum`.

    The defaults of the rule are those of RLVE's code (github.com/Zhiyuan-Zeng/RLVE), where 8
    prompts are written as 8 times the completions of a prompt.

    Validation and test keep to the difficulties that they are given, whatever training has come
    to. Which set a question belongs to is decided by its text, as in `ReasoningGym`.

    Only RL raises the difficulty. In other training it stays as it is.

    Args:
        environments: environments by their name in the log, each with its
            settings; `{chain_sum: {}}` is the data set chain_sum.
        initial_difficulty: `high` at the start, at most an environment's highest.
        window: difficulties drawn from, `high` included; fewer while `high` is below.
        threshold: the accuracy at `high` from which on `high` rises.
        min_prompts: prompts at `high`, each with its `--data.group_size` completions, before the
            accuracy is looked at.
        validation_difficulties: those of validation and test, in equal parts. An environment leaves
            out what is above its highest.
        extract: place where the default reward finds the answer in a completion: `whole`,
            `last_number`, `answer_tag` or `boxed`.
        held_out_fraction: share of all questions that is never trained on, see `ReasoningGym`.
        validation_seed: draws the validation and test problems, see `ReasoningGym`.
    """

    def __init__(
        self,
        environments: dict[str, Environment],
        initial_difficulty: int = 0,
        window: int = 4,
        threshold: float = 0.9,
        min_prompts: int = 8,
        validation_difficulties: tuple[int, ...] = (0, 1, 2, 3),
        extract: Extract = "whole",
        held_out_fraction: float = 0.5,
        validation_seed: int = 0,
    ) -> None:
        check_fraction(
            held_out_fraction, flag="--data.task.held_out_fraction", lowest_excluded=True
        )
        if not environments:
            raise ValueError("--data.task.environments is empty; give one, such as chain_sum: {}")
        lowest = min((initial_difficulty, *validation_difficulties))
        if lowest < 0 or not validation_difficulties:
            raise ValueError(
                "--data.task.initial_difficulty and --data.task.validation_difficulties count from "
                f"0, and there is at least one; got {initial_difficulty} and "
                f"{list(validation_difficulties)}"
            )
        rule = RisingRule(window, threshold, min_prompts)
        self._reward = ReasoningGymScore(extract)
        self.extract: Extract = extract
        self.held_out_fraction = held_out_fraction
        self.validation_seed = validation_seed
        self.validation_difficulties = sorted(set(validation_difficulties))
        self.difficulties: dict[str, Difficulty] = {}
        self._gyms: dict[Place, ReasoningGym] = {}
        for label, environment in environments.items():
            gyms = self._gyms_of(label, environment)
            self._gyms |= {(label, number): gym for number, gym in enumerate(gyms)}
            self.difficulties[label] = Difficulty(rule, initial_difficulty, len(gyms) - 1)

    def _gyms_of(self, label: str, environment: Environment) -> list[ReasoningGym]:
        """One for each difficulty, all tried at once: none is found wrong when it is risen to."""
        with _flags_of(label):
            curriculum = Curriculum(environment.name or label, environment.config)
            last = curriculum.last
            if environment.max_difficulty is not None:
                last = min(last, environment.max_difficulty)
            if last < self.validation_difficulties[0]:
                raise ValueError(
                    f"--data.task.max_difficulty: {last} is the highest of {curriculum.name}, and "
                    f"--data.task.validation_difficulties begin at "
                    f"{self.validation_difficulties[0]}"
                )
        return [self._gym(label, curriculum, difficulty) for difficulty in range(last + 1)]

    def _gym(self, label: str, curriculum: Curriculum, difficulty: int) -> ReasoningGym:
        with _flags_of(label, difficulty):
            gym = ReasoningGym(
                curriculum.name,
                curriculum.options(difficulty),
                extract=self.extract,
                held_out_fraction=self.held_out_fraction,
                validation_seed=derived_seed(self.validation_seed, label, difficulty),
            )
            check_level(gym)
        return gym

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        """A function of (seed, epoch) and of what was recorded of earlier epochs."""
        draws = random.Random(derived_seed("adaptive", seed, epoch))
        places = [self._drawn_place(draws, epoch) for _ in range(count)]
        problems = {
            place: iter(self._problems("train", place, number, seed=seed, epoch=epoch))
            for place, number in Counter(places).items()
        }
        return [next(problems[place]) for place in places]

    def validation_problems(self, count: int) -> list[Problem]:
        return self._held_out("validation", count)

    def test_problems(self, count: int) -> list[Problem]:
        return self._held_out("test", count)

    def restrict(self, fits: Callable[[Problem], bool]) -> None:
        for gym in self._gyms.values():
            gym.restrict(fits)

    def default_reward(self) -> ReasoningGymScore:
        return self._reward

    def record(
        self, problems: list[Problem], correct: list[int], group_size: int, *, epoch: int
    ) -> None:
        found = {label: [0, 0] for label in self.difficulties}
        for problem, number in zip(problems, correct, strict=True):
            label = problem.metadata["environment"]
            if problem.metadata["difficulty"] == self.difficulties[label].high(epoch):
                found[label][0] += 1
                found[label][1] += number
        of_all_ranks = gathered([found])
        for label, difficulty in self.difficulties.items():
            prompts, right = (sum(part[label][i] for part in of_all_ranks) for i in range(2))
            difficulty.record(epoch, prompts, prompts * group_size, right)

    def metrics(self, epoch: int) -> dict[str, float]:
        return {
            f"difficulty/{label}/{name}": value
            for label, difficulty in self.difficulties.items()
            for name, value in difficulty.metrics(epoch).items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {label: difficulty.state_dict() for label, difficulty in self.difficulties.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != self.difficulties.keys():
            raise ValueError(
                "--data.task.environments: the checkpoint has the difficulties of "
                f"{', '.join(state)}; go on with the same environments, not with "
                f"{', '.join(self.difficulties)}"
            )
        for label, difficulty in self.difficulties.items():
            difficulty.load_state_dict(state[label])

    def _drawn_place(self, draws: random.Random, epoch: int) -> Place:
        label = draws.choice(list(self.difficulties))
        difficulty = self.difficulties[label]
        return label, draws.randint(difficulty.low(epoch), difficulty.high(epoch))

    def _held_out(self, split: Split, count: int) -> list[Problem]:
        """In equal parts of every environment and difficulty, without repeats."""
        places = [p for p in self._gyms if p[1] in self.validation_difficulties]
        edges = [count * number // len(places) for number in range(len(places) + 1)]
        found: dict[str, Problem] = {}
        for place, (start, end) in zip(places, pairwise(edges), strict=True):
            for problem in self._problems(split, place, end - start):
                found.setdefault(problem.question, problem)
        return list(found.values())

    def _problems(
        self, split: Split, place: Place, count: int, *, seed: int = 0, epoch: int = 0
    ) -> list[Problem]:
        label, difficulty = place
        gym = self._gyms[place]
        with _flags_of(label, difficulty):
            if split == "train":
                own = derived_seed(seed, label, difficulty)
                problems = gym.train_problems(seed=own, epoch=epoch, count=count)
            else:
                problems = getattr(gym, f"{split}_problems")(count)
        for problem in problems:
            problem.metadata.update(environment=label, difficulty=difficulty)
        return problems


@contextmanager
def _flags_of(label: str, difficulty: int | None = None) -> Iterator[None]:
    """Let errors name the flags of one environment, and its difficulty."""
    try:
        yield
    except ValueError as error:
        own = f"--data.task.environments.{label}."
        text = str(error).replace("--data.task.", own, 1)
        if difficulty is not None:
            way_out = f"; max_difficulty {difficulty - 1} leaves it out" if difficulty else ""
            text += f" (at difficulty {difficulty}{way_out})"
        raise ValueError(text) from error
