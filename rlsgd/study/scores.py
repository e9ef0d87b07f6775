"""What a study may be decided by: accuracy on problems, or loss on text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A validation metric that ranks arms.

    Args:
        column: Its name in metrics.csv.
        title: In tables and figures.
        unit: Of its values as shown.
        difference_unit: Of a difference of two.
        scale: Shown value over logged value.
        digits: Shown after the decimal point.
        sign: 1 where higher is better, -1 where lower is.
        limits: Lowest and highest possible value as shown; None where there is none.
    """

    column: str
    title: str
    unit: str
    difference_unit: str
    scale: float
    digits: int
    sign: int
    limits: tuple[float | None, float | None]

    @property
    def name(self) -> str:
        """For a file."""
        return self.column.removeprefix("val/")

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} [{self.unit}]"


SCORES = {
    "accuracy": Score(
        column="val/accuracy",
        title="accuracy",
        unit="%",
        difference_unit="percentage points",
        scale=100,
        digits=1,
        sign=1,
        limits=(0.0, 100.0),
    ),
    "loss": Score(
        column="val/loss",
        title="validation loss",
        unit="nats per token",
        difference_unit="nats per token",
        scale=1,
        digits=3,
        sign=-1,
        limits=(0.0, None),
    ),
}
