"""How an optimizer's gradients and states are spread (arXiv:2602.07729 section 3, 2605.17787).

Everything is a sum over entries, so that the parts of a model add up to the whole of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsgd.functional.updates import CHUNK

LOWEST, HIGHEST = -50.0, 50.0  # log10 of the range; float32 ends at 1.4e-45 and 3.4e38
BINS_PER_DECADE = 200  # so a quantile is exact to 0.6%


@dataclass(frozen=True)
class Distribution:
    """Non-negative values: their moments, and a histogram of their log10. Several add up.

    The empty `Distribution()` is the zero of that addition.

    Args:
        numel: values counted.
        zeros: values that are exactly 0, which have no logarithm.
        sum: of the values, in float64.
        squares: sum of their squares, in float64.
        counts: [20000] long, values in each 200th of a decade from 1e-50; on the CPU.
    """

    numel: int = 0
    zeros: int = 0
    sum: float = 0.0
    squares: float = 0.0
    counts: Tensor = field(
        default_factory=lambda: torch.zeros(
            int(HIGHEST - LOWEST) * BINS_PER_DECADE, dtype=torch.long
        )
    )

    def __add__(self, other: Distribution) -> Distribution:
        return Distribution(
            self.numel + other.numel,
            self.zeros + other.zeros,
            self.sum + other.sum,
            self.squares + other.squares,
            self.counts + other.counts,
        )

    @property
    def mean(self) -> float:
        return self.sum / self.numel

    @property
    def std(self) -> float:
        """Standard deviation over all values (of the population, not a sample's estimate)."""
        return math.sqrt(max(0.0, self.squares / self.numel - self.mean**2))

    @property
    def cv(self) -> float:
        """Coefficient of variation: std over mean, which no scale of the values changes; or 0."""
        return self.std / self.mean if self.mean else 0.0

    def quantile(self, q: float) -> float:
        """The value that a share `q` of the values is at most, to 0.6%; 0 among the zeros."""
        rank = max(1, math.ceil(q * self.numel))
        if rank <= self.zeros:
            return 0.0
        ends = self.zeros + self.counts.cumsum(0)
        index = int(torch.searchsorted(ends, rank))
        return 10.0 ** (LOWEST + (index + 0.5) / BINS_PER_DECADE)

    def histogram(self, bins_per_decade: int = 10) -> tuple[list[float], list[int]]:
        """Edges as log10, and counts between them, over the decades that hold any value.

        Args:
            bins_per_decade: a divisor of 200.
        """
        merged = self.counts.view(-1, BINS_PER_DECADE // bins_per_decade).sum(1)
        if not (used := merged.nonzero().flatten().tolist()):
            return [], []
        edges = [LOWEST + i / bins_per_decade for i in range(used[0], used[-1] + 2)]
        return edges, merged[used[0] : used[-1] + 1].tolist()

    def summary(self, quantiles: Sequence[float]) -> dict[str, float]:
        """`mean`, `std`, `cv`, and `p01`, `p50` ... of the given quantiles."""
        values = {"mean": self.mean, "std": self.std, "cv": self.cv}
        return values | {quantile_name(q): self.quantile(q) for q in quantiles}


def quantile_name(q: float) -> str:
    """0.01 -> "p01", 0.5 -> "p50", 0.999 -> "p99.9"."""
    percent = f"{100 * q:.6g}"
    return "p" + (percent if "." in percent else percent.zfill(2))


def distribution(values: Tensor) -> Distribution:
    """Count the values of a tensor, of any shape.

    Raises:
        ValueError: a value is negative or not finite.
    """
    parts = (_distribution(chunk.double()) for chunk in values.reshape(-1).split(CHUNK))
    return sum(parts, Distribution())


def _distribution(values: Tensor) -> Distribution:
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError("a distribution needs values that are finite and not negative")
    positive = values[values > 0]
    size = int(HIGHEST - LOWEST) * BINS_PER_DECADE
    index = ((positive.log10() - LOWEST) * BINS_PER_DECADE).long().clamp(0, size - 1)
    counts = torch.bincount(index, minlength=size).cpu()
    zeros = values.numel() - positive.numel()
    moments = float(values.sum()), float(values.square().sum())
    return Distribution(values.numel(), zeros, *moments, counts)


@dataclass(frozen=True)
class Alignment:
    """Sums from which sizes and the angle of a momentum and a gradient follow. Several add up.

    Args:
        dot: sum of momentum x gradient.
        momentum: sum of the momentum's squares.
        gradient: sum of the gradient's squares.
    """

    dot: float = 0.0
    momentum: float = 0.0
    gradient: float = 0.0

    def __add__(self, other: Alignment) -> Alignment:
        return Alignment(
            self.dot + other.dot, self.momentum + other.momentum, self.gradient + other.gradient
        )

    def summary(self) -> dict[str, float]:
        """`history_ratio` ||m|| / ||g|| and `momentum_gradient_cosine`, where they are defined."""
        if not self.gradient:
            return {}
        ratio = {"history_ratio": math.sqrt(self.momentum / self.gradient)}
        if not self.momentum:
            return ratio
        cosine = self.dot / math.sqrt(self.momentum) / math.sqrt(self.gradient)
        return ratio | {"momentum_gradient_cosine": cosine}


def alignment(momentum: Tensor, gradient: Tensor) -> Alignment:
    """Sums in float64 of two tensors of one shape."""
    total = torch.zeros(3, dtype=torch.float64, device=gradient.device)
    pairs = zip(momentum.reshape(-1).split(CHUNK), gradient.reshape(-1).split(CHUNK), strict=True)
    for m, g in ((m.double(), g.double()) for m, g in pairs):
        total += torch.stack([(m * g).sum(), m.square().sum(), g.square().sum()])
    return Alignment(*total.tolist())


def effective_lr(second_moment: Tensor, *, lr: float, eps: float, bias: float = 1.0) -> Tensor:
    """lr / (sqrt(v / bias) + eps): what Adam and RMSprop multiply each entry of the momentum by.

    Args:
        second_moment: v, any shape.
        lr: the learning rate; divided by 1 - beta1^t for the step that Adam really makes.
        eps: the optimizer's.
        bias: 1 - beta2^t for the step that Adam really makes; 1 is the raw state, as in the paper.
    """
    return lr / ((second_moment / bias).sqrt() + eps)


@dataclass
class SpikeCounter:
    """Spikes of a series: values far above the median of the ones just before.

    Args:
        factor: a spike exceeds this times the running median.
        window: the median is that of this many values before, the value itself left out.
        warmup: the first values of the series, which are not judged: there is no median yet.
    """

    factor: float
    window: int
    warmup: int
    judged: int = 0
    spikes: int = 0
    largest_ratio: float = 0.0
    recent: deque[float] = field(default_factory=deque)

    def add(self, value: float) -> None:
        if len(self.recent) >= self.warmup and (middle := _median(self.recent)) > 0:
            self.judged += 1
            self.spikes += value > self.factor * middle
            self.largest_ratio = max(self.largest_ratio, value / middle)
        self.recent.append(value)
        if len(self.recent) > self.window:
            self.recent.popleft()


def _median(values: Iterable[float]) -> float:
    """The middle one, or the mean of the middle two."""
    ranked = sorted(values)
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


def by_frequency(frequency: Tensor, norms: Tensor) -> list[dict[str, float]]:
    """Norms of token classes, grouped by how often the token occurred: 0, 1, 2-3, 4-7, 8-15 ...

    Args:
        frequency: [V] long, occurrences.
        norms: [V].

    Returns:
        For each group that is not empty: `from` and `to` (occurrences, inclusive), `classes` (how
        many), and `mean`, `median` (the lower of two) and `max` of their norms.
    """
    groups = []
    # 0 -> 0, 1 -> 1, 2 and 3 -> 2: the number of binary digits
    digits = torch.where(frequency > 0, torch.frexp(frequency.double())[1], 0)
    for digit in digits.unique().tolist():
        members = norms[digits == digit]
        groups.append(
            {
                "from": 2 ** (digit - 1) if digit else 0,
                "to": 2**digit - 1,
                "classes": len(members),
                "mean": float(members.mean()),
                "median": float(members.median()),
                "max": float(members.max()),
            }
        )
    return groups
