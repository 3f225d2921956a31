"""Requests to stop, and launchers that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from moss_train.errors import PreemptedError
from moss_train.train.interrupt import SIGNALS, Launcher, StopRequest, is_alive


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_is_prepared_at_once_and_training_by_a_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    stop.install()
    try:
        with pytest.raises(PreemptedError, match=f"stopped by {number.name} before training began"):
            os.kill(os.getpid(), number)
        stop.reason, stop.at_once = None, False
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    finally:
        stop.uninstall()
    assert signal.getsignal(number) == before


def test_the_first_reason_stays() -> None:
    stop = StopRequest()
    stop.ask("the launcher that started this rank is gone")
    stop.ask("another")
    assert stop.reason == "the launcher that started this rank is gone"


@pytest.mark.parametrize(("seconds", "code"), [(0.2, 0), (2.5, 130)])
def test_a_second_ctrl_c_that_is_meant_stops_at_once(seconds: float, code: int) -> None:
    """Both a terminal and a launcher pass one Ctrl-C on: two within moments are one."""
    program = (
        "import time; from moss_train.train.interrupt import StopRequest\n"
        "stop = StopRequest(); stop.at_once = False; stop.install(); print('ready', flush=True)\n"
        "until = time.monotonic() + 4\n"
        "while time.monotonic() < until: time.sleep(0.05)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == code


def test_a_run_started_by_hand_outlives_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not Launcher().is_gone()


def test_a_launcher_that_ended_is_noticed() -> None:
    """A parent that starts a rank and dies: the rank sees it go."""
    rank = (
        "import os, time; os.environ['LOCAL_RANK'] = '0'\n"
        "from moss_train.train.interrupt import Launcher\n"
        "launcher = Launcher(); print(launcher.is_gone(), flush=True)\n"
        "until = time.monotonic() + 20\n"
        "while not launcher.is_gone() and time.monotonic() < until: time.sleep(0.05)\n"
        "print(launcher.is_gone(), flush=True)\n"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}]); time.sleep(2)"
    result = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, timeout=60)
    assert result.stdout.split() == ["False", "True"]


def test_a_process_that_waits_to_be_collected_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    assert is_alive(os.getpid())
    until = time.monotonic() + 20
    while is_alive(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(process.pid)
    process.wait()
