"""A role in the main thread of its supervisor's process: what it says and how it ends, as a zygote would tell of it."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marl_hpc.comm import in_process
from marl_hpc.comm.in_process import InProcess
from marl_hpc.comm.zygote import FAILED, LOST, Stamp

libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)  # a pthread_mutex_t; zeros: unlocked


def prints(job, stamp):
    print("to the log")
    print("and so does this", file=sys.stderr)
    stamp.expect_within(1000.0)
    return job["code"]


def raises(job, stamp):
    raise ValueError("the sky is falling")


def asks_to_exit(job, stamp):
    sys.exit(0)


def loses_a_peer(job, stamp):
    watcher = threading.Thread(target=in_process.leave, args=(LOST, "of no interest"))
    watcher.start()
    watcher.join()
    in_process.leave(LOST, "a peer is gone")


def waits_in_a_library(job, stamp):
    ctypes.memset(mutex, 0, 64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # no signal interrupts it
    return 0


@pytest.fixture
def role() -> InProcess:
    return InProcess([])


@pytest.fixture
def noted(role: InProcess) -> Iterator[list[int]]:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    yield role.signals
    signal.signal(signal.SIGUSR1, before)


def supervised(role: InProcess, entry: Callable, path: Path, meanwhile: Callable[[], object] = lambda: None) -> tuple[list, Stamp]:
    """What another thread, which starts `entry` and then does something, hears of it; and its stamp."""
    descriptor = os.memfd_create("stamp")
    os.ftruncate(descriptor, Stamp.SIZE)
    events: list = []

    def supervise() -> None:
        with open(path, "w") as log:
            role.start(2, f"{__name__}:{entry.__name__}", {"code": 75}, log.fileno(), descriptor)
        meanwhile()
        until = time.monotonic() + 20
        while not any("exited" in event for event in events) and time.monotonic() < until:
            events.extend(role.events(0.05))
        role.close()

    thread = threading.Thread(target=supervise)
    thread.start()
    role.serve()
    thread.join()
    stamp = Stamp(descriptor)
    os.close(descriptor)
    return events, stamp


def test_a_role_prints_into_its_log_and_nowhere_else(role, tmp_path, capsys):
    events, stamp = supervised(role, prints, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "to the log\nand so does this\n"
    assert capsys.readouterr() == ("", "")
    pid = os.getpid()
    assert events == [{"started": 2, "pid": pid}, {"exited": 2, "pid": pid, "code": 75, "why": ""}]
    assert stamp.overdue_s < -900
    assert not role.running


@pytest.mark.parametrize(("entry", "error"), [(raises, "ValueError: the sky is falling"), (asks_to_exit, "SystemExit: 0")])
def test_an_exception_is_a_failure_and_told_in_the_log(role, tmp_path, entry, error):
    events, _ = supervised(role, entry, tmp_path / "log")
    assert events[-1]["code"] == FAILED
    assert error in events[-1]["why"]
    assert error in (tmp_path / "log").read_text()


def test_a_role_that_lost_a_peer_says_whom_and_its_threads_leave_in_silence(role, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # Python's, not pytest's
    events, _ = supervised(role, loses_a_peer, tmp_path / "log")
    assert events[-1] == {"exited": 2, "pid": os.getpid(), "code": LOST, "why": "a peer is gone"}
    assert (tmp_path / "log").read_text() == "a peer is gone\n"
    assert capsys.readouterr() == ("", "")


def test_signals_are_noted_while_a_library_keeps_the_main_thread(role, noted, tmp_path):
    def meanwhile():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 10
        while not noted and time.monotonic() < until:
            time.sleep(0.01)
        heard.extend(noted)
        libc.pthread_mutex_unlock(mutex)

    heard: list[int] = []
    supervised(role, waits_in_a_library, tmp_path / "log", meanwhile)
    assert heard == [signal.SIGUSR1]


def test_a_role_that_is_given_up_counts_as_killed_and_goes_on(role, tmp_path):
    def meanwhile():
        time.sleep(0.2)
        role.kill(os.getpid())
        found.extend(role.events(1.0))
        running.append(role.running)
        libc.pthread_mutex_unlock(mutex)

    found: list = []
    running: list[bool] = []
    supervised(role, waits_in_a_library, tmp_path / "log", meanwhile)
    assert found[-1] == {"exited": 2, "pid": os.getpid(), "code": -signal.SIGKILL}
    assert running == [True]
    assert "libc.pthread_mutex_lock(mutex)  # no signal" in (tmp_path / "log").read_text()
