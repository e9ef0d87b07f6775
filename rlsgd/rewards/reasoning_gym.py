"""The scores of reasoning_gym's data sets, by their own verifiers (arXiv:2505.24760)."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlsgd.core.problems import Problem
from rlsgd.rewards import guard
from rlsgd.rewards.base import Reward, Trial
from rlsgd.rewards.extract import EXTRACTORS, Extract, check_extract, read_number

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

_WRAPPED = {
    "whole": "{}",
    "last_number": "{}",
    "answer_tag": "<answer>{}</answer>",
    "boxed": "\\boxed{{{}}}",
}
_GARBAGE = "zq7 no answer to this 314159265"
_NO_NUMBER = re.compile(r"(?<![a-z])nan(?:[ij]?\b)", re.IGNORECASE)


class ReasoningGymScore(Reward):
    """The score in [0, 1] that the data set itself gives the extracted answer.

    Text that a verifier evaluates is arithmetic, or it is refused: a program in place of an answer
    is wrong, and does not run. Some data sets give part marks: for a correct answer with words
    around it, for instance. A completion in which no answer is found scores 0.

    Args:
        extract: place of the answer: the `whole` completion, its `last_number`, the last
            `answer_tag` (`<answer>...</answer>`), or the last `boxed` (LaTeX).
    """

    isolated = True
    fork_each = False  # its verifiers evaluate arithmetic alone, see `guard.py`

    def __init__(self, extract: Extract = "whole") -> None:
        check_extract(extract)
        self.extract = extract

    def prepare(self) -> None:
        import reasoning_gym  # noqa: F401

        guard.install()

    def score(self, completion: str, problem: Problem) -> float:
        missing = {"source_dataset", "source_config", "entry"} - problem.metadata.keys()
        if missing:
            raise ValueError(
                f"the problem is not one of the task ReasoningGym: no {sorted(missing)} in it"
            )
        part = self.answer_part(completion)
        answer = None if part is None else EXTRACTORS[self.extract](part)
        if answer is None:
            return 0.0
        if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(problem.answer):
            return 0.0  # no comparison with nan is true, and some verifiers ask the other way round
        dataset = _dataset_of(problem)
        with guard.no_evaluation():
            try:
                return dataset.score_answer(answer, problem.metadata["entry"])
            except guard.EvaluationRefused:
                return 0.0

    def expect(self, problem: Problem) -> None:
        _dataset_of(problem)

    def answer_of(self, completion: str) -> str | None:
        part = self.answer_part(completion)
        return None if part is None else EXTRACTORS[self.extract](part)

    def source(self, problem: Problem) -> str:
        inner = problem.metadata.get("entry", {}).get("metadata", {}).get("source_dataset")
        return str(inner or problem.metadata.get("source_dataset"))

    def trials(self, problem: Problem) -> list[Trial]:
        """The answer on record is right, and garbage is not."""
        name = self.source(problem)
        wrapped = _WRAPPED[self.extract].format
        refusal = (
            f"--data.task.name {name}: its verifier gives any answer full marks, so there is "
            "nothing to learn; choose another data set"
        )
        trials = [Trial(wrapped(_GARBAGE), False, refusal)]
        if problem.answer and read_number(problem.answer) != 0:
            refusal = (
                f"--data.task.name {name}: its verifier gives '0' full marks where the answer is "
                f"{problem.answer[:60]!r}; choose another data set"
            )
            trials.append(Trial(wrapped("0"), False, refusal))
        if problem.answer and EXTRACTORS[self.extract](wrapped(problem.answer)) == problem.answer:
            refusal = (
                f"--data.task.name {name}: its verifier does not give its own answer "
                f"{problem.answer[:60]!r} full marks; choose another data set, or other options"
            )
            trials.append(Trial(wrapped(problem.answer), True, refusal))
        return trials


def _dataset_of(problem: Problem) -> ProceduralDataset:
    """The data set whose verifier the problem has; a group's completions ask for the same one."""
    name, config = problem.metadata["source_dataset"], problem.metadata["source_config"]
    if not _latest or _latest[0] is not config or _latest[1] != name:
        _latest[:] = config, name, _scoring_dataset(name, json.dumps(config, sort_keys=True))
    return _latest[2]


_latest: list[Any] = []  # config, name and data set


@lru_cache(maxsize=8)
def _scoring_dataset(name: str, config: str) -> ProceduralDataset:
    # The verifiers of six data sets read the config (puzzle24, time_intervals, composite ...), so
    # `reasoning_gym.get_score_answer_fn`, which knows only the defaults, would score them wrongly.
    return build_dataset(name, json.loads(config), seed=0, size=1)


def build_dataset(name: str, config: dict[str, Any], *, seed: int, size: int) -> ProceduralDataset:
    """A reasoning_gym data set of `size` items; item i is a function of the config and `seed + i`.

    Raises:
        ValueError: for a name, a key or a value that reasoning_gym does not know.
    """
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        raise ValueError(
            f"--data.task.name: reasoning_gym has no data set {name!r}; "
            + _suggestions(name, sorted(DATASETS))
        )
    known = sorted({field.name for field in fields(DATASETS[name][1])} - {"seed", "size"})
    for key in config:
        if key in ("seed", "size"):
            raise ValueError(f"--data.task.config: the task itself sets {key!r}; leave it out")
        if key not in known:
            raise ValueError(
                f"--data.task.config: {name} has no option {key!r}; " + _suggestions(key, known)
            )
    options = dict(config)
    try:
        if name == "composite":
            options["datasets"] = [DatasetSpec(**spec) for spec in config.get("datasets", [])]
        return create_dataset(name, seed=seed, size=size, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"--data.task.config is not right for {name}: {error}") from error


def _suggestions(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
