"""Sampled completions of several arms at the same prompt, from the runs' completions.jsonl."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlsgd.report.sources import ReportedRun

MAX_CHARACTERS = 1200
# neither control characters, but tab and line feed, nor halves of surrogate pairs can be shown
_UNSEEN = dict.fromkeys(
    {*range(32), 127, *range(0xD800, 0xE000)} - {ord("\t"), ord("\n")}, "\N{REPLACEMENT CHARACTER}"
)


@dataclass(frozen=True)
class Sample:
    """One text that an arm answered, and how often it did.

    Args:
        completion: The text, cut after `MAX_CHARACTERS`.
        count: Completions of the group with this text and reward.
        reward: None where none was computed.
        truncated: Whether the token budget ended it.
    """

    completion: str
    count: int
    reward: float | None
    truncated: bool


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and what each arm answered at the same epoch of the same seed.

    Args:
        seed: Of the runs.
        epoch: Epochs trained when the completions were sampled; 0 is the base model.
        prompt: Its text.
        answer: What was asked for.
        arms: Names and samples, most frequent first.
    """

    seed: int
    epoch: int
    prompt: str
    answer: str
    arms: list[tuple[str, list[Sample]]]


def side_by_side(
    runs: Sequence[ReportedRun], arms: Sequence[str], count: int
) -> list[SamplePrompt]:
    """The prompts that most arms answered at the same seed and epoch.

    Epochs of the first seed come first, spread over the whole of training.

    Args:
        runs: With their folders.
        arms: Names of the arms to show, in their order.
        count: Prompts at most.

    Raises:
        ValueError: A completions.jsonl holds something else.
    """
    found: dict[tuple[str, int, int, str, str], dict[str, Counter[Any]]] = defaultdict(dict)
    for run in runs:
        if run.record["name"] in arms:
            for record in _read(run):
                texts = (record["prompt"], record["answer"])
                place = (run.problems, run.record["seed"], record["epoch"], *texts)
                counts = found[place].setdefault(run.record["name"], Counter())
                key = ("completion", "reward", "truncated")
                counts[tuple(record.get(name) for name in key)] += 1
    most = max((len(by_arm) for by_arm in found.values()), default=0)
    shared = {place: by_arm for place, by_arm in found.items() if len(by_arm) == most}
    return [
        SamplePrompt(
            seed,
            epoch,
            _cut(prompt),
            _cut(answer),
            [(arm, _samples(by_arm[arm])) for arm in arms if arm in by_arm],
        )
        for (_, seed, epoch, prompt, answer), by_arm in _spread(shared, count)
    ]


def _read(run: ReportedRun) -> list[dict[str, Any]]:
    path = run.folder / "completions.jsonl"
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            texts = {key: str(record[key]) for key in ("prompt", "answer", "completion")}
            records.append({**record, **texts, "epoch": int(record["epoch"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"RUN: line {number} of {path} is no completion: {error!r}") from error
    return records


def _spread(places: dict[Any, Any], count: int) -> list[tuple[Any, Any]]:
    """`count` of the places: of the first seed as many epochs as there are, evenly spaced."""
    by_seed: dict[int, list[Any]] = defaultdict(list)
    for place in sorted(places, key=lambda place: place[1:3]):
        by_seed[place[1]].append(place)
    chosen: list[Any] = []
    for own in by_seed.values():
        wanted = min(count - len(chosen), len(own))
        if wanted == 1:
            chosen.append(own[-1])
        elif wanted > 1:
            chosen += [own[round(i * (len(own) - 1) / (wanted - 1))] for i in range(wanted)]
    return [(place, places[place]) for place in chosen]


def _samples(counts: Counter[Any]) -> list[Sample]:
    return [
        Sample(
            _cut(completion),
            number,
            reward if isinstance(reward, int | float) else None,
            bool(truncated),
        )
        for (completion, reward, truncated), number in counts.most_common()
    ]


def _cut(text: str) -> str:
    """Text that a page can hold: no control characters, and of bounded length."""
    left_out = len(text) - MAX_CHARACTERS
    cut = text[:MAX_CHARACTERS] + (f"… ({left_out} more characters)" if left_out > 0 else "")
    return cut.replace("\r\n", "\n").translate(_UNSEEN)
