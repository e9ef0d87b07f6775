"""Progress bars of a running study: one for all runs, one for each run in progress."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from rlsgd.study.expansion import Run
from rlsgd.study.processes import Outcome
from rlsgd.study.results import REWARD, epoch_series, read_metrics

_REFRESH_SECONDS = 1.0
STATUS_STYLES = {"finished": "green", "diverged": "yellow", "pruned": "yellow", "failed": "red"}


class StudyProgress:
    """Draws the bars from each run's metrics.csv; use as a context manager.

    Args:
        total: Runs in the study.
        console: Where to draw.
    """

    def __init__(self, total: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._overall = self._progress.add_task("all runs", total=total, note="")
        self._bars: dict[Run, TaskID] = {}
        self._next_read: dict[Run, float] = {}

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def expect(self, total: int) -> None:
        """There are so many runs in all, as a search has found."""
        self._progress.update(self._overall, total=total)

    def started(self, run: Run) -> None:
        """Add the run's bar: epochs, and the reward so far."""
        self._bars[run] = self._progress.add_task(run.title, total=run.max_epochs, note="epochs")

    def running(self, run: Run) -> None:
        """Read the run's metrics again, at most once a second."""
        if time.monotonic() < self._next_read.get(run, 0.0):
            return
        self._next_read[run] = time.monotonic() + _REFRESH_SECONDS
        reward = epoch_series(read_metrics(run.folder / "metrics.csv"), REWARD)
        if reward:
            note = f"epochs, reward {reward[max(reward)]:.3f}"
            self._progress.update(self._bars[run], completed=max(reward), note=note)

    def ended(self, run: Run, outcome: Outcome, *, skipped: bool) -> None:
        """Replace the run's bar by a line that says how it ended."""
        if run in self._bars:
            self._progress.remove_task(self._bars.pop(run))
        self._progress.advance(self._overall)
        how = "before, kept" if skipped else f"in {outcome.seconds:.0f} s"
        style = STATUS_STYLES[outcome.status]
        log = f", see {run.folder / 'log.txt'}" if outcome.status == "failed" else ""
        self._progress.console.print(
            f"{escape(run.title)}: [{style}]{outcome.status}[/] {how}{escape(log)}"
        )
