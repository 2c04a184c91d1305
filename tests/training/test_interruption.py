"""Which signals stop a run after its step, and what a second one does."""

import os
import signal

import pytest

from bertorch.training.interruption import FORWARDED_WITHIN, Interruption
from tests.conftest import fork


def signalled_twice(first: int, second: int) -> None:
    """As a script that waits for a save after the first signal, whatever it raises."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interruption() as interruption:
        os.kill(os.getpid(), first)
        assert interruption.requested(1)
        try:
            os.kill(os.getpid(), second)
        finally:
            signal.pause()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_waits_for_nothing(first, second):
    process = fork(signalled_twice, first, second)
    process.join(30)
    assert process.exitcode == -second


def signalled_under_a_launcher(number: int) -> None:
    """As torchrun does where all processes of a job got a signal: it passes its own on to them."""
    os.environ["TORCHELASTIC_RUN_ID"] = "job"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert interruption.requested(1)
        try:
            os.kill(os.getpid(), number)  # of a user in a hurry
        finally:
            signal.pause()


def signalled_late_under_a_launcher(number: int) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "job"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        assert interruption.requested(1)
        interruption._since -= FORWARDED_WITHIN
        try:
            os.kill(os.getpid(), number)
        finally:
            signal.pause()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("run", [signalled_under_a_launcher, signalled_late_under_a_launcher])
def test_a_signal_that_the_launcher_passes_on_is_no_second_one(run, number):
    process = fork(run, number)
    process.join(30)
    assert process.exitcode == -number


def test_handlers_are_as_before_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with Interruption() as interruption:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.requested(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.requested(2)
            assert interruption.came_late()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
