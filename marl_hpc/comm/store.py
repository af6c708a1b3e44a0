"""The control store: who is there, what to do next, when to stop. Torch-free, so that supervisors speak to it directly.

Rank 0's supervisor serves it; everybody else is a client. A connection first proves by challenge and response (HMAC with the job's
key, from multiprocessing.connection) that it belongs to the job, and messages are JSON, never pickles: a stranger runs nothing.
It carries control only; data goes by RPC and gradients by collectives.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any


class StoreLost(ConnectionError):
    """The control store is gone, and with it rank 0's supervisor or its node: this attempt of the job is over."""


class Store:
    """The store itself, in the process that serves it. Values are JSON. All methods are safe to call from any thread.

    Who waits is woken only by changes under the first part of its key, so that thousands of watchers of `control/` sleep through
    everybody's reports.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._gathered: dict[str, dict[int, Any]] = {}
        self._served: dict[str, set[int]] = {}
        self._lock = threading.Lock()
        self._conditions: dict[str, threading.Condition] = {}

    def set(self, key: str, value: Any) -> None:
        with self._lock:
            self._put(key, value)

    def set_default(self, key: str, value: Any) -> Any:
        """Set a key unless it is there; returns what is there now. The first wins."""
        with self._lock:
            if key not in self._values:
                self._put(key, value)
            return self._values[key]

    def get(self, key: str) -> Any:
        """The value, or None."""
        with self._lock:
            return self._values.get(key)

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._put(key, self._values.get(key, 0) + amount)
            return self._values[key]

    def raise_to(self, key: str, value: int) -> int:
        """Set an integer key to `value` if that is more than it holds; returns what it holds now. Raising twice is raising once."""
        with self._lock:
            if value > self._values.get(key, 0):
                self._put(key, value)
            return self._values.get(key, 0)

    def scan(self, prefix: str) -> dict[str, Any]:
        with self._lock:
            return {key: value for key, value in self._values.items() if key.startswith(prefix)}

    def wait(self, key: str, timeout_s: float) -> Any:
        """The value once the key is there; None after the timeout."""
        with self._lock:
            return self._until(key, lambda: self._values.get(key), timeout_s)

    def watch(self, prefix: str, known: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The keys under a prefix, as soon as they differ from what is known, or after the timeout."""

        def different() -> dict[str, Any] | None:
            now = {key: value for key, value in self._values.items() if key.startswith(prefix)}
            return now if now != known else None

        with self._lock:
            found = self._until(prefix, different, timeout_s)
        return known if found is None else found

    def gather(self, key: str, member: int, members: int, value: Any, timeout_s: float) -> list[Any] | None:
        """Every member's value in member order, once all have given theirs; None after the timeout (ask again: giving twice is
        giving once). Forgotten when all have got it."""

        def complete() -> list[Any] | None:
            values = self._gathered.get(key, {})
            return [values[i] for i in range(members)] if len(values) == members else None

        with self._lock:
            self._gathered.setdefault(key, {})[member] = value
            self._condition(f"gather-{key}").notify_all()
            gathered = self._until(f"gather-{key}", complete, timeout_s)
            if gathered is not None:
                served = self._served.setdefault(key, set())
                served.add(member)
                if len(served) == members:
                    del self._gathered[key], self._served[key]
            return gathered

    def _put(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._condition(key).notify_all()

    def _condition(self, key: str) -> threading.Condition:
        part = key.partition("/")[0]
        if part not in self._conditions:
            self._conditions[part] = threading.Condition(self._lock)
        return self._conditions[part]

    def _until(self, key: str, ready: Callable[[], Any], timeout_s: float) -> Any:
        """Called with the lock held."""
        until = time.monotonic() + timeout_s
        while True:
            value = ready()
            left = until - time.monotonic()
            if value is not None or left <= 0:
                return value
            self._condition(key).wait(left)


OPERATIONS = ("set", "set_default", "get", "add", "raise_to", "scan", "wait", "watch", "gather")


class StoreServer:
    """Serves a store on a port of the system's choice; `address` is (host, port)."""

    def __init__(self, store: Store, host: str, key: bytes) -> None:
        self.store, self.key, self.closed = store, key, False
        self.listener = Listener((host, 0), backlog=1024)
        self.address: tuple[str, int] = self.listener.address  # type: ignore[assignment]
        threading.Thread(target=self._accept, daemon=True, name="store").start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
            except OSError:
                return
            if self.closed:
                connection.close()
                return
            # each in a thread of its own: a stranger who connects and says nothing holds up nobody
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="store-client").start()

    def _serve(self, connection: Connection) -> None:
        with connection:
            try:
                notice_silence(connection)
                deliver_challenge(connection, self.key)
                answer_challenge(connection, self.key)
                while True:
                    operation, arguments = json.loads(connection.recv_bytes())
                    if operation not in OPERATIONS:
                        return
                    connection.send_bytes(json.dumps(getattr(self.store, operation)(*arguments)).encode())
            except (OSError, EOFError, AuthenticationError, ValueError, TypeError):
                return  # the client left, or isn't one of ours

    def close(self) -> None:
        self.closed = True  # a thread that waits in accept() holds the port for one more connection, which it then refuses
        self.listener.close()


class StoreClient:
    """The same methods as `Store`, from another process; one connection a thread. Raises StoreLost when the server is gone."""

    def __init__(self, address: tuple[str, int], key: bytes) -> None:
        self.address, self.key = (address[0], int(address[1])), key
        self._local = threading.local()

    def _connection(self) -> Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = Client(self.address, authkey=self.key)
            notice_silence(self._local.connection)
        return self._local.connection

    def _call(self, operation: str, *arguments: Any) -> Any:
        try:
            connection = self._connection()
            connection.send_bytes(json.dumps([operation, arguments]).encode())
            return json.loads(connection.recv_bytes())
        except (OSError, EOFError, AuthenticationError) as error:
            raise StoreLost(f"the control store at {self.address[0]}:{self.address[1]} is gone or not ours ({error!r})") from error

    def local_host(self) -> str:
        """This end's address of the connection: it tells which network interface leads to the store."""
        duplicate = socket.fromfd(self._connection().fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with duplicate:
            return duplicate.getsockname()[0]

    def set(self, key: str, value: Any) -> None:
        self._call("set", key, value)

    def set_default(self, key: str, value: Any) -> Any:
        return self._call("set_default", key, value)

    def get(self, key: str) -> Any:
        return self._call("get", key)

    def add(self, key: str, amount: int) -> int:
        return self._call("add", key, amount)

    def raise_to(self, key: str, value: int) -> int:
        return self._call("raise_to", key, value)

    def scan(self, prefix: str) -> dict[str, Any]:
        return self._call("scan", prefix)

    def wait(self, key: str, timeout_s: float) -> Any:
        return self._call("wait", key, timeout_s)

    def watch(self, prefix: str, known: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        return self._call("watch", prefix, known, timeout_s)

    def gather(self, key: str, member: int, members: int, value: Any, timeout_s: float) -> list[Any] | None:
        return self._call("gather", key, member, members, value, timeout_s)


def notice_silence(connection: Connection) -> None:
    """Let the kernel end a connection to a host that has vanished without a word, after about half a minute."""
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            duplicate.setsockopt(socket.IPPROTO_TCP, option, value)
        duplicate.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000
        )  # milliseconds, for what was sent and isn't acknowledged


AnyStore = Store | StoreClient
