"""Signals: the first is noted, the second ends the run, and the command has their exit status."""

import signal
import sys

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlsgd.resume.signals import Interrupted, StopSignals, exit_code


def test_the_second_signal_ends_the_run_at_once(capsys):
    signals = StopSignals()
    signals.receive(signal.SIGINT, None)
    assert signals.received == signal.SIGINT
    assert "SIGINT: the run ends when this iteration is done" in capsys.readouterr().err
    with pytest.raises(Interrupted) as end:
        signals.receive(signal.SIGTERM, None)
    assert end.value.exit_code == 128 + signal.SIGINT


def test_under_slurm_further_signals_do_not():
    signals = StopSignals()
    signals.requeue_signal = signal.SIGUSR1
    signals.receive(signal.SIGTERM, None)
    assert not signals.wants_requeue
    signals.receive(signal.SIGUSR1, None)
    signals.receive(signal.SIGTERM, None)
    assert signals.wants_requeue and signals.received == signal.SIGTERM


def test_a_rank_that_got_no_signal_ends_without_an_error():
    signals = StopSignals()
    signals.is_first_process = False
    assert signals.interrupted().exit_code == 0


def raised_in(handler):
    """What ends the command when Lightning handles an interrupt by `sys.exit(1)`."""
    with pytest.raises(SystemExit) as end:
        try:
            handler()
        except KeyboardInterrupt:
            sys.exit(1)
    return end.value


def interrupt():
    raise Interrupted(signal.SIGTERM, 143)


def control_c():
    raise KeyboardInterrupt


def test_exit_codes():
    assert exit_code(raised_in(interrupt)) == 143
    assert exit_code(raised_in(control_c)) == 130
    assert exit_code(SIGTERMException()) == 143
    assert exit_code(SystemExit(1)) is None, "somebody else's exit"
    assert exit_code(SystemExit(2)) is None
