"""SIGTERM and SIGINT end a run between two iterations."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; Lightning tears everything down as after Ctrl-C.

    Args:
        number: of the signal.
        exit_code: of the command. Processes that Lightning started itself end with 0, because it
            kills the first one as soon as another ends with anything else.
    """

    def __init__(self, number: int, exit_code: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = exit_code


class StopSignals:
    """Notes SIGTERM, SIGINT, or the signal by which SLURM announces that a job's time ends.

    A second signal stops the run at once, except under SLURM, which sends several. Lightning's
    handler of the announcement saves where the run happens to be, and requeues the job; it is kept
    here for the moment between two iterations.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_first_process = True
        self.requeue_signal: int | None = None
        self.requeue_handler: Any = None
        self.wants_requeue = False

    def install(self, trainer: Trainer) -> None:
        """Listen until Lightning's teardown puts back the handlers from before the fit."""
        self.received, self.wants_requeue = None, False
        self.is_first_process = trainer.is_global_zero
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        cluster = trainer._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment) and cluster.auto_requeue:
            assert cluster.requeue_signal is not None
            self.requeue_signal = cluster.requeue_signal
            self.requeue_handler = signal.getsignal(cluster.requeue_signal)
            numbers.append(cluster.requeue_signal)
        for number in numbers:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: Any) -> None:
        """The handler."""
        self.wants_requeue |= number == self.requeue_signal
        if self.received is not None:
            if self.requeue_signal is None:
                raise self.interrupted()
            return
        self.received = number
        if self.is_first_process:
            again = "" if self.requeue_signal else ". Again to end now, with the checkpoint before"
            name = signal.Signals(number).name
            print(
                f"rlsgd: {name}: the run ends when this iteration is done and saved{again}",
                file=sys.stderr,
                flush=True,
            )

    def interrupted(self) -> Interrupted:
        """What to raise. A process that got no signal itself ends as if by SIGTERM."""
        number = self.received or signal.SIGTERM
        return Interrupted(number, 128 + number if self.is_first_process else 0)


def exit_code(end: BaseException) -> int | None:
    """The exit status of a command that ended with `end`; None if no signal was the reason.

    Lightning turns an interrupt into `sys.exit(1)` while it handles it.
    """
    cause = end.__context__ if isinstance(end, SystemExit) and end.code == 1 else end
    if isinstance(cause, Interrupted):
        return cause.exit_code
    if isinstance(cause, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 128 + signal.SIGTERM if isinstance(cause, SIGTERMException) else None
