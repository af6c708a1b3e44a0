"""Handles: how one role calls another, whether it lives in this process or behind RPC, and how a call waits.

A handler may *park* its answer: it returns a future that is settled by a later call, so that no thread is blocked while a reader
waits for a version or a writer for room. Waiting callers wake up once a second to show that they are alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from torch.futures import Future


class PeerLost(ConnectionError):
    """Another rank is gone. Not this rank's fault: it joins again when the supervisors have settled what happened."""


class Pending(Protocol):
    """An answer that may not be there yet."""

    def wait(self, *, deadline_s: float, describe: Callable[[], str], alive: Callable[[], None] | None = None) -> Any:
        """The answer. Calls `alive` each second; raises TimeoutError with `describe()` after `deadline_s`, PeerLost when the peer
        is gone."""
        ...

    def then(self, call: Callable[[], None]) -> None:
        """Call this once `wait` wouldn't wait any more, in whichever thread; at once where that is so already."""
        ...


class Peer(Protocol):
    name: str

    def call(self, method: str, *arguments: Any) -> Pending: ...


class LocalPeer:
    """A role in this process: calls are plain method calls."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target

    def call(self, method: str, *arguments: Any) -> Pending:
        return _Answer(self.name, getattr(self.target, method)(*arguments))


class _Answer:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def wait(self, *, deadline_s: float, describe: Callable[[], str], alive: Callable[[], None] | None = None) -> Any:
        if not isinstance(self.value, Future):
            return self.value
        if not self.value.done():
            raise RuntimeError(f"{self.name} parked a call in a world of one process, where nobody could settle it: {describe()}")
        return self.value.value()

    def then(self, call: Callable[[], None]) -> None:
        if isinstance(self.value, Future):
            self.value.add_done_callback(lambda _: call())
        else:
            call()


class Parking:
    """Callers of one role that wait for something, and the lock under which that role's state changes.

    Each parked caller is a function that gives its answer, or None while there is none; `settle` asks them all again.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed: Any = None
        self._waiting: list[tuple[Callable[[], Any], Future, float]] = []

    def answer(self, ready: Callable[[], Any], patience_s: float = 3600.0) -> Any:
        """The answer if there is one, else a future of it. After `patience_s` nobody waits for it any more and it is dropped."""
        with self.lock:
            value = ready()
            if value is None:
                value = self.closed
            if value is not None:
                return value
            future: Future = Future()
            self._waiting.append((ready, future, time.monotonic() + patience_s))
            return future

    def settle(self) -> None:
        # answering one may be what another waits for (a writer that gets room delivers what a reader wants): until nothing changes
        while self._settle_once():
            pass

    def _settle_once(self) -> int:
        """How many got their answer."""
        with self.lock:
            waiting, self._waiting = self._waiting, []
            answered = 0
            for ready, future, until in waiting:
                try:
                    value = ready()
                except Exception as error:  # belongs to the caller who waits, not to the one who settles
                    future.set_exception(error)
                    answered += 1
                    continue
                if value is None:
                    value = self.closed
                if value is not None:
                    future.set_result(value)
                    answered += 1
                elif time.monotonic() < until:
                    self._waiting.append((ready, future, until))
            return answered

    def close(self, value: Any) -> None:
        """Answer everybody who waits now or later for what isn't there with `value`."""
        with self.lock:
            self.closed = value
            self.settle()
