"""An end to library code that may never end by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_SECONDS = 20.0  # for one problem; the slowest that reasoning_gym finishes take 7


class TooSlow(BaseException):
    """Not an Exception: generators of problems try again after one."""


@contextmanager
def processor_limit(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Raise `TooSlow` when the process has computed for so many seconds inside; do not nest.

    Wall clock would refuse a problem on a busy machine. Python takes signals in its main thread
    alone; in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
