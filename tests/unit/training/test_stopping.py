"""Signals: the first is a request, the second is as it ever was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mindspeed_ift.training.stopping import listening


@pytest.fixture(autouse=True)
def as_in_the_foreground() -> Iterator[None]:
    """A shell makes those in its background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with listening() as request:
        assert not request() and request.signal is None
        os.kill(os.getpid(), number)
        assert request() and request.signal == number.name
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_run_that_saves_nothing_ends_at_once() -> None:
    with listening(wanted=False) as request:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not request()


def test_what_is_to_be_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listening() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert not request()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
