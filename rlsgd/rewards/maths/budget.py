"""Processor time for one answer: a bomb ends itself, and the worker goes on with the next."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OverBudget(BaseException):
    """Not an Exception: sympy goes on after some of those."""


@contextmanager
def processor_budget(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` when the process has computed for so long inside; do not nest.

    Python takes signals in its main thread alone; in another one only the scorer's limit holds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise OverBudget

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except OverBudget:
        raise TimeoutError(f"no verdict within {seconds:g} seconds of processor time") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
