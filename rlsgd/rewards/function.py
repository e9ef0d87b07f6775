"""A plain Python function as a reward: `--data.reward my_rewards.shorter`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import BatchReward, Reward

# what an argument of each name gets: singular for one completion, either for a batch
_VALUES = ("completion", "response", "answer", "question", "problem")


def as_reward(reward: Reward | Callable[..., Any]) -> Reward:
    """A reward as it is, or a function as one; with `completions` it is called once for all.

    Raises:
        ValueError: its arguments do not say what they are to get.
    """
    return reward if isinstance(reward, Reward) else _function_reward(reward)


def _function_reward(function: Callable[..., Any]) -> Reward:
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.isclass(function):
        raise ValueError(
            f"--data.reward: the class {name} is not a Reward; derive it from "
            "rlsgd.rewards.Reward, or give a function"
        )
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ValueError(f"--data.reward: {name} is not a function in Python") from None
    if _is_never_a_number(function):
        raise ValueError(
            f"--data.reward: {name} is a coroutine or a generator; write it as a plain function "
            "that returns a number"
        )
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    seen = {"completion", "response", "completions", "responses"} & set(names)
    if not seen and not {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY} & kinds:
        raise ValueError(
            f"--data.reward: {name} has no argument completion, response, completions or "
            "responses, so it would give every completion of a prompt the same reward"
        )
    if {"completion", "response"} & set(names) and {"completions", "responses"} & set(names):
        raise ValueError(
            f"--data.reward: {name} has arguments for one completion and for all of them; name "
            "one kind"
        )
    if {"completions", "responses"} & set(names):
        return BatchFunctionReward(function)
    return FunctionReward(function)


def _is_never_a_number(function: Callable[..., Any]) -> bool:
    called = function if inspect.isroutine(function) else type(function).__call__
    return inspect.iscoroutinefunction(called) or inspect.isgeneratorfunction(called)


class FunctionReward(Reward):
    """The number that a function returns for one completion.

    Its arguments get by their names: `completion` (the whole text), `response` (what follows the
    thinking, empty where that was cut off), `answer` (on record), `question`, `problem`, and any
    column of the row; `**columns` gets all columns.

    Args:
        function: function of one completion.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.arguments = _arguments(function)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "function")

    def check(self, problem: Problem) -> None:
        _check(self.name, self.arguments, problem, ())

    def score(self, completion: str, problem: Problem) -> float:
        return self.function(**self._values(completion, problem))

    def _values(self, completion: str, problem: Problem) -> dict[str, Any]:
        return _chosen(self.arguments, _row(self, completion, problem))


class BatchFunctionReward(BatchReward):
    """The numbers that a function returns for all completions of a rollout, in their order.

    Every argument is a list with one entry for each completion: `completions`, `responses`,
    `answers`, `questions`, `problems` (also in the singular), and any column by its name.

    Args:
        function: function of a list of completions; it returns as many numbers.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.arguments = _arguments(function)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "function")

    def check(self, problem: Problem) -> None:
        _check(self.name, self.arguments, problem, tuple(f"{value}s" for value in _VALUES))

    def score_batch(self, completions: list[str], problems: list[Problem]) -> Sequence[Any]:
        rows = [_row(self, c, p) for c, p in zip(completions, problems, strict=True)]
        names = dict.fromkeys(name for row in rows for name in row)
        lists = {name: [row.get(name) for row in rows] for name in names}
        lists |= {f"{name}s": lists[name] for name in _VALUES if f"{name}s" not in lists}
        return self.function(**_chosen(self.arguments, lists))


def _row(reward: Reward, completion: str, problem: Problem) -> dict[str, Any]:
    """Everything that an argument may ask for, by name; our own names win over columns."""
    return {
        **problem.metadata.get("columns", {}),
        "completion": completion,
        "response": reward.answer_part(completion) or "",
        "answer": problem.answer,
        "question": problem.question,
        "problem": problem,
    }


def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _chosen(arguments: dict[str, inspect.Parameter], values: dict[str, Any]) -> dict[str, Any]:
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        unasked = {"problem", "problems"} - set(arguments)
        return {name: value for name, value in values.items() if name not in unasked}
    return {name: values[name] for name in arguments if name in values}


def _check(
    name: str,
    arguments: dict[str, inspect.Parameter],
    problem: Problem,
    plurals: tuple[str, ...],
) -> None:
    columns = list(problem.metadata.get("columns", {}))
    known = [*_VALUES, *plurals, *columns]
    for argument in arguments.values():
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            continue
        if argument.kind is argument.POSITIONAL_ONLY:
            raise ValueError(
                f"--data.reward: {name} takes {argument.name!r} by position only; arguments get "
                "their values by name"
            )
        if argument.default is argument.empty and argument.name not in known:
            close = " or ".join(get_close_matches(argument.name, known))
            hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
            raise ValueError(
                f"--data.reward: {name} asks for {argument.name!r}, which is neither a column of "
                f"the data nor anything else that a reward may ask for; {hint}"
            )
