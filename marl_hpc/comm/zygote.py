"""A warm process from which role processes are forked.

Importing torch takes seconds; the zygote does it once, before it has any thread, and a fork then takes milliseconds: so a lost
worker is back at once, and the ranks of a laptop share one import. It runs nothing itself. Torch-free until it preloads.

Messages are JSON over a socket pair. To the zygote: {"start": rank, "entry": "module:function"} with three file descriptors (log pipe,
stamp, and memory with the job: that may be larger than a message). From it: {"warm": true}, {"started": rank, "pid": …}, {"exited": rank, "pid": …, "code": …}.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# memory of large messages comes anew from the system each time: in pages of 2 MB, not of 4 kB, that is two to three times as fast. Keeping
# it instead (M_MMAP_MAX=0) lets small allocations cut up what large ones leave, so that the next large one takes new memory after all
ALLOCATION = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
FAILED, LOST = 1, 3  # exit codes of a role process: its own exception; a peer was lost


class Stamp:
    """A deadline in memory shared with the supervisor, and when it was set: when it passes, the process counts as hung.

    The role's main loop moves it on; a heartbeat thread would go on beating through a deadlock.
    """

    SIZE = 16

    def __init__(self, descriptor: int) -> None:
        # aligned 8-byte stores: struct.pack_into zeroes first, and a supervisor that reads just then sees a deadline long past
        self.deadline = memoryview(mmap.mmap(descriptor, self.SIZE)).cast("d")

    def expect_within(self, seconds: float) -> None:
        now = time.monotonic()
        self.deadline[0], self.deadline[1] = now + seconds, now

    @property
    def overdue_s(self) -> float:
        return time.monotonic() - self.deadline[0]

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.deadline[1]


class Zygote:
    """The supervisor's end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        command = [sys.executable, "-m", "marl_hpc.comm.zygote", str(theirs.fileno()), str(os.getpid())]
        # torch warns of every peer that leaves ("eof"); its errors reach us as exceptions
        environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **ALLOCATION, **os.environ}
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, env=environment
        )
        theirs.close()

    def start(self, rank: int, entry: str, job: dict[str, Any], log: int, stamp: int) -> None:
        """Fork a process that runs `entry(job)`; its output goes to the pipe `log`."""
        with os.fdopen(os.memfd_create("marl_hpc-job"), "w+") as memory:
            json.dump(job, memory)
            memory.flush()
            socket.send_fds(self.socket, [json.dumps({"start": rank, "entry": entry}).encode()], [log, stamp, memory.fileno()])

    def events(self, timeout_s: float) -> list[dict[str, Any]]:
        """What has happened. Raises ConnectionError when the zygote itself is gone."""
        found = []
        while select.select([self.socket], [], [], 0 if found else timeout_s)[0]:
            message = self.socket.recv(1 << 16)
            if not message:
                raise ConnectionError(f"the zygote (pid {self.process.pid}) died; the role processes it forked died with it")
            found.append(json.loads(message))
        return found

    def kill(self, pid: int) -> None:
        """End a role process and what it has started."""
        kill_group(pid)  # if it is gone, its end is already on the way to us

    def close(self) -> None:
        """Let it end what it forked, and itself."""
        self.socket.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    supervisor = int(sys.argv[2])
    # when the supervisor dies the channel closes, and we end what is left before we leave
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a role process leaves behind comes to us, and is ended
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    importlib.import_module("marl_hpc.train")
    say(channel, {"warm": True})
    children: dict[int, int] = {}  # pid -> rank
    while True:
        readable, _, _ = select.select([channel, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            reap(children, channel)
        if channel in readable:
            try:
                message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 3)
            except ConnectionResetError:  # gone, with something of ours unread
                message, descriptors = b"", []
            if not message:
                end_all(children)
                return
            request = json.loads(message)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (channel.detach(), wake, woken):
                    os.close(descriptor)
                role_process(request, descriptors, supervisor)
            children[pid] = request["start"]
            for descriptor in descriptors:
                os.close(descriptor)
            say(channel, {"started": request["start"], "pid": pid})


def say(channel: socket.socket, message: dict[str, Any]) -> None:
    """Nobody listens any more when the supervisor has left; the end of the channel, read next, ends this process."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(message).encode())


def reap(children: dict[int, int], channel: socket.socket) -> None:
    """Report role processes that have ended, and end what they left behind."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            break
        if pid in children:
            kill_group(pid)
            say(channel, {"exited": children.pop(pid), "pid": pid, "code": os.waitstatus_to_exitcode(status)})
    kill_orphans(children)


def kill_orphans(children: dict[int, int]) -> None:
    """End processes that left their group with setsid, and whose parent has ended: they have been handed to us."""
    with contextlib.suppress(FileNotFoundError):  # kernels without CONFIG_PROC_CHILDREN don't tell
        for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if int(word) not in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)


def end_all(children: dict[int, int]) -> None:
    """The supervisor is gone: end all role processes and what they leave behind."""
    for pid in children:
        kill_group(pid)
    children.clear()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                kill_orphans(children)
                time.sleep(0.01)
        except ChildProcessError:
            return


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def role_process(request: dict[str, Any], descriptors: list[int], supervisor: int) -> None:
    """The forked process: its own group, output into the log, signals passed to the supervisor, then the role. Never returns."""
    code = FAILED
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: os.kill(supervisor, number))
        for target in (1, 2):
            os.dup2(descriptors[0], target)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.close(descriptors[0])
        with os.fdopen(descriptors[2]) as memory:
            memory.seek(0)
            job = json.load(memory)
        module, _, function = request["entry"].partition(":")
        code = getattr(importlib.import_module(module), function)(job, Stamp(descriptors[1]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # without running destructors: those of gloo and TensorPipe wait for peers that may be gone
        os._exit(code)


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


if __name__ == "__main__":
    main()
