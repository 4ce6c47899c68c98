"""Requests to stop: noted during a step, obeyed at once where nothing is under way, and a second one ends
all."""

import os
import signal
import threading

import pytest

from stabviz.finetune.train.interrupt import STOPPED, Interrupt, StopRequested

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def strike(number):
    os.kill(os.getpid(), number)
    for _ in range(3):
        pass  # a handler runs between two bytecodes


def test_the_exit_code_is_the_documented_one():
    assert STOPPED == 75


@SIGNALS
def test_a_signal_during_a_step_is_noted_and_the_step_goes_on(number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    finished = False
    with Interrupt() as interrupt:
        assert not interrupt.requested
        strike(number)
        finished = True
        assert interrupt.requested
    assert finished
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@SIGNALS
def test_a_signal_during_a_wait_ends_the_wait(number):
    reached = []
    with Interrupt() as interrupt, pytest.raises(StopRequested):  # noqa: PT012 - where it is raised is the claim
        with interrupt.interruptible():
            reached.append("waiting")
            strike(number)
            reached.append("too far")
    assert reached == ["waiting"]
    assert interrupt.requested


def test_a_request_before_a_wait_ends_it_before_it_begins():
    interrupt, reached = Interrupt(), []
    interrupt.ask()
    with pytest.raises(StopRequested), interrupt.interruptible():
        reached.append("too far")
    assert reached == []


def test_after_a_wait_a_signal_only_notes_again():
    with Interrupt() as interrupt:
        with interrupt.interruptible():
            pass
        strike(signal.SIGTERM)
        assert interrupt.requested


def test_an_error_inside_a_wait_comes_through_and_ends_the_waiting():
    with Interrupt() as interrupt:
        with pytest.raises(ZeroDivisionError), interrupt.interruptible():
            1 / 0  # noqa: B018
        strike(signal.SIGTERM)  # would raise if the block were still taken to be open
        assert interrupt.requested


@SIGNALS
def test_the_second_signal_ends_at_once(number):
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        strike(number)
        assert interrupt.requested
        strike(number)


def test_another_thread_is_stopped_by_ask_and_touches_no_handler():
    before, seen = signal.getsignal(signal.SIGINT), []
    interrupt = Interrupt()

    def work():
        with interrupt:
            seen.append(signal.getsignal(signal.SIGINT))
            interrupt.ask()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [before]
    assert interrupt.requested
    assert signal.getsignal(signal.SIGINT) == before
