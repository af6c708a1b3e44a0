"""What a supervisor has instead of a zygote where a rank is its role: the role runs in the main thread of the same process. Torch-free
until it begins.

So the role may use what a child of a supervisor can't, such as MPI. It can't be started again, nor be ended but with its process: `kill`
gives it up, and whoever finds `running` true in the end has to end the process. The supervisor runs in another thread.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, NoReturn

from marl_hpc.comm.zygote import FAILED, SIGNALS, Stamp, Zygote


class Ended(BaseException):
    """A role has ended from within, with an exit code as of a role process."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


def leave(code: int, why: str) -> NoReturn:
    """End the role; in another thread than its own only that thread, since the supervisor here sees for itself what that one has seen."""
    if threading.current_thread() is threading.main_thread():
        raise Ended(code, why)
    raise SystemExit(code)


class InProcess:
    """Of `Zygote`'s methods those that supervisors use, for one role at a time."""

    def __init__(self, signals: list[int]) -> None:
        """`signals`: where those that arrive are noted, even while the main thread is inside a library that doesn't come back."""
        self.signals = signals
        self.handed: queue.SimpleQueue[tuple[int, str, dict[str, Any], int, int] | None] = queue.SimpleQueue()
        self.said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.given = self.done = 0  # entries
        self.rank = -1
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as role processes have it
        importlib.import_module("marl_hpc.train")

    # the supervisor's thread

    def start(self, rank: int, entry: str, job: dict[str, Any], log: int, stamp: int) -> None:
        """Let the main thread run `entry(job)`; what it prints goes to the pipe `log`."""
        self.given, self.rank = self.given + 1, rank
        self.said.put({"started": rank, "pid": os.getpid()})
        # a copy, as a role process would get: nothing is shared with who started it
        self.handed.put((rank, entry, json.loads(json.dumps(job)), os.dup(log), os.dup(stamp)))

    def events(self, timeout_s: float) -> list[dict[str, Any]]:
        """What has happened, as `Zygote.events` says it."""
        found = []
        try:
            found.append(self.said.get(timeout=timeout_s))
            while True:
                found.append(self.said.get_nowait())
        except queue.Empty:
            return found

    def kill(self, pid: int) -> None:
        """Give the role up, as if it had been killed. Its log says where it was."""
        if self.running:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            where = "".join(traceback.format_stack(frame))
            with suppress(ValueError):  # the role has ended just now, and closed its log
                print(f"the job has ended, and this role with it, in:\n{where}", file=sys.stderr, flush=True)
            self.said.put({"exited": self.rank, "pid": pid, "code": -signal.SIGKILL})

    @property
    def running(self) -> bool:
        return self.given > self.done

    def close(self) -> None:
        """Nothing more is handed over."""
        self.handed.put(None)

    # the main thread

    def serve(self) -> None:
        """Run what is handed over, until `close`."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(read,), daemon=True, name="signals").start()
        try:
            while (handed := self.handed.get()) is not None:
                self._run(*handed)
        finally:
            signal.set_wakeup_fd(before)
            os.close(write)

    def leave(self) -> None:
        """Once every rank's role has ended: leave the process group that it joined."""
        importlib.import_module("marl_hpc.comm.collectives").leave_all()

    def _hear(self, read: int) -> None:
        """Note signals as the system delivers them: Python's handlers wait until the main thread comes back to Python."""
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                self.signals.extend(number for number in numbers if number in SIGNALS)

    def _run(self, rank: int, entry: str, job: dict[str, Any], log: int, stamp: int) -> None:
        code, why = FAILED, ""
        with os.fdopen(log, "w", buffering=1) as out, redirect_stdout(out), redirect_stderr(out):
            try:
                module, _, function = entry.partition(":")
                code = getattr(importlib.import_module(module), function)(job, Stamp(stamp))
            except Ended as ended:
                code, why = ended.code, ended.why
                print(why)
            except BaseException:
                why = traceback.format_exc()
                print(why)
        os.close(stamp)
        self.done += 1
        self.said.put({"exited": rank, "pid": os.getpid(), "code": code, "why": why})


AnyZygote = Zygote | InProcess
