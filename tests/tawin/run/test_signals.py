"""Signals ask for the end; handlers are gone afterwards; the second Ctrl-C does not wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event

import pytest

from tawin.run.signals import SIGNALS, Stopped, asked, asked_anywhere, stop_if_asked, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_raised_where_it_is_asked_for(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with stop_on_signals():
        stop_if_asked()
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked() and asked_anywhere() == number
        with pytest.raises(Stopped, match=number.name) as stopped:
            stop_if_asked()
        assert stopped.value.number == number
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert not asked()
    assert f"{number.name}: training is to stop and save after this step" in capfd.readouterr().err


def test_the_first_of_two_signals_counts() -> None:
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_anywhere() == signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_changes() -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    found = []

    def work() -> None:
        with stop_on_signals():
            found.append([signal.getsignal(one) for one in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def _be_busy(busy: Event, heard: Event) -> None:
    with stop_on_signals():
        busy.set()
        while True:
            if asked():
                heard.set()
            time.sleep(0.01)


def test_a_second_ctrl_c_ends_the_process_at_once_and_the_first_does_not() -> None:
    context = multiprocessing.get_context("fork")
    busy, heard = context.Event(), context.Event()
    process = context.Process(target=_be_busy, args=(busy, heard))
    process.start()
    try:
        assert busy.wait(60) and process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        assert heard.wait(60) and process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == -signal.SIGINT
    finally:
        process.kill()
        process.join()
