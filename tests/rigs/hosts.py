"""Several network hosts on one machine, and a cable for each that can be pulled.

A host is a network namespace, joined to the others by a bridge, with its own host name (a UTS namespace a command) and its
own /etc/hosts. Hosts share the machine's file system, /dev/shm and process ids, and have no route out. The machine itself
stands on the bridge too, at address 254. Imports the standard library only: `remote_shell` runs without our environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

LOCKS = Path("/run/lock")
SLOTS = 64


def on_host(host: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` on `host`. All of it execs: the process id stays the same."""
    return ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *argv]


class Hosts:
    """`count` hosts named PREFIX1, PREFIX2, … at SUBNET.1, SUBNET.2, …

    By default prefix and subnet come from the first free of 64 slots, so that several test sessions run side by side. A slot
    is held by a file lock, which the kernel frees when its process dies, however it dies; the next to take that slot first
    removes what was left behind. Raises RuntimeError when the given prefix, or every slot, is taken.
    """

    def __init__(self, count: int = 3, prefix: str | None = None, subnet: str | None = None) -> None:
        if not 1 <= count <= 250:
            raise ValueError(f"count={count}: a subnet of this rig has room for 1 to 250 hosts")
        self.prefix, self.subnet, self._lock = _take(prefix, subnet)
        self.bridge = f"{self.prefix}br"
        self.names = [f"{self.prefix}{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"{self.subnet}.{number}" for number, name in enumerate(self.names, 1)}
        self.machine = f"{self.subnet}.254"
        try:
            self._remove()
            self._make()
        except BaseException:
            self.close()
            raise

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on `host`, for any way of starting a process."""
        self._known(host)
        return on_host(host, argv)

    def cut(self, host: str) -> None:
        """Pull the cable of `host`: nothing gets in or out, and nobody is told."""
        self._known(host)
        _run("ip", "link", "set", self._port(host), "down")

    def heal(self, host: str) -> None:
        """Plug it in again."""
        self._known(host)
        _run("ip", "link", "set", self._port(host), "up")

    def kill(self, host: str) -> None:
        """End every process on `host` at once, as a power cut does."""
        self._known(host)
        _kill_all(host)

    def free_port(self, host: str) -> int:
        """A TCP port that nobody on `host` uses. Ports of different hosts have nothing to do with each other."""
        probe = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
        return int(_run(*self.command(host, [sys.executable, "-S", "-c", probe])))

    def close(self) -> None:
        """Remove the hosts and everything that runs on them. May be called again."""
        if self._lock.closed:
            return
        self._remove()
        self._lock.close()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _known(self, host: str) -> None:
        if host not in self.addresses:
            raise ValueError(f"no host {host!r}; hosts: {', '.join(self.names)}")

    def _port(self, host: str) -> str:
        return f"{self.prefix}p{host.removeprefix(self.prefix)}"

    def _make(self) -> None:
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.machine}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        table = [("127.0.0.1", "localhost"), (self.machine, socket.gethostname())]
        table += [(address, name) for name, address in self.addresses.items()]
        for name, address in self.addresses.items():
            etc = Path("/etc/netns") / name
            etc.mkdir(parents=True)
            (etc / "hosts").write_text("".join(f"{address} {name}\n" for address, name in table))
            (etc / "nsswitch.conf").write_text("hosts: files\n")  # never wait for a name server that is out of reach
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", self._port(name), "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", self._port(name), "master", self.bridge, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
        for name in self.names:
            self._wait_until_reachable(name)

    def _wait_until_reachable(self, host: str) -> None:
        """A refused connection is an answer: the host is there."""
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((self.addresses[host], 9), timeout=0.5).close()
                return
            except ConnectionRefusedError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{host} ({self.addresses[host]}) can't be reached from this machine in 10 s") from error
                time.sleep(0.1)

    def _remove(self) -> None:
        """Remove all that carries this prefix: ours, or what a killed session left."""
        ours = re.compile(re.escape(self.prefix) + r"\d+")
        for name in (name for name in _listing("/run/netns") if ours.fullmatch(name)):
            _kill_all(name)
            _run("ip", "netns", "delete", name)
        for device in _listing("/sys/class/net"):
            if device == self.bridge or re.fullmatch(re.escape(self.prefix) + r"p\d+", device):
                _run("ip", "link", "delete", device, check=False)  # a port goes with its namespace, maybe just now
        for name in (name for name in _listing("/etc/netns") if ours.fullmatch(name)):
            shutil.rmtree(Path("/etc/netns") / name)


def _take(prefix: str | None, subnet: str | None) -> tuple[str, str, IO[str]]:
    """The first free slot, or the one asked for, and the lock that holds it."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    for slot in range(SLOTS):
        # interface names have 15 characters at most: "rig63p250" fits
        name = prefix or f"rig{slot}n"
        lock = open(LOCKS / f"marl_hpc-{name}.lock", "w")  # noqa: SIM115 (held as long as the hosts)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if prefix:
                raise RuntimeError(f"hosts {prefix}1, … are in use by another process; choose another prefix, or none") from None
            continue
        return name, subnet or f"10.213.{slot}", lock
    raise RuntimeError(f"all {SLOTS} slots for hosts are taken; is something holding {LOCKS}/marl_hpc-rig*.lock?")


def _kill_all(host: str) -> None:
    """SIGKILL until nobody is left: one that was just forking is caught by the next round."""
    deadline = time.monotonic() + 10
    while pids := _run("ip", "netns", "pids", host).split():
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {' '.join(pids)} on {host} don't die in 10 s")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)


def _listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
