"""Clients that run one at a time, in an order that the test draws: real client code, every interleaving repeatable.

Each client is a thread that waits for the baton before every call, and gives it up while its answer is parked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.futures import Future


class Baton:
    def __init__(self) -> None:
        self.twice = False  # whether the next call is delivered twice
        self.turn: int | None = None
        self.changed = threading.Condition()
        self.alive: dict[int, threading.Thread] = {}
        self.errors: list[BaseException] = []

    def start(self, number: int, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                self.wait_for_turn(number)
                work()
            except BaseException as error:
                self.errors.append(error)
            finally:
                with self.changed:
                    del self.alive[number]
                    self.turn = None
                    self.changed.notify_all()

        with self.changed:
            self.alive[number] = threading.Thread(target=run, daemon=True)
        self.alive[number].start()

    def wait_for_turn(self, number: int) -> None:
        with self.changed:
            while self.turn != number:
                self.changed.wait(10.0)

    def pass_on(self, number: int) -> None:
        """Give the baton back and wait until it comes again."""
        with self.changed:
            self.turn = None
            self.changed.notify_all()
        self.wait_for_turn(number)

    def let(self, number: int, twice: bool = False) -> None:
        """Let this client go on up to its next call, and deliver that `twice`."""
        with self.changed:
            self.turn, self.twice = number, twice
            self.changed.notify_all()
            while self.turn is not None:
                assert self.changed.wait(10.0), "a client doesn't give the baton back"


class BatonPeer:
    """A role in this process, called by one client."""

    def __init__(self, baton: Baton, number: int, name: str, target: Any) -> None:
        self.baton, self.number, self.name, self.target = baton, number, name, target

    def call(self, method: str, *arguments: Any) -> Any:
        self.baton.pass_on(self.number)
        if self.baton.twice:
            getattr(self.target, method)(*arguments)
        return BatonPending(self.baton, self.number, getattr(self.target, method)(*arguments))


class BatonPending:
    def __init__(self, baton: Baton, number: int, value: Any) -> None:
        self.baton, self.number, self.value = baton, number, value

    def wait(self, **_: Any) -> Any:
        if not isinstance(self.value, Future):
            return self.value
        while not self.value.done():
            self.baton.pass_on(self.number)
        return self.value.value()


class Patient:
    """What clients want of a world."""

    patience_s = 60.0
    stopping = False

    def stamp(self, allow_s: float | None = None) -> None:
        pass
