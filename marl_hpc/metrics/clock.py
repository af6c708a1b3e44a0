"""Where a role's time goes: wall and CPU seconds by phase, computing apart from waiting for somebody."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Phases don't overlap: time is given to the innermost one.

    >>> clock = Clock()
    >>> with clock.computing("learn"):
    ...     pass
    >>> sorted(clock.totals()["computing"])
    ['learn']
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.wall: dict[tuple[str, str], float] = defaultdict(float)
        self.cpu: dict[tuple[str, str], float] = defaultdict(float)
        self._stack: list[tuple[str, str]] = []
        self._mark = (time.perf_counter(), time.thread_time())
        self._cpu_before = time.process_time()

    @contextmanager
    def _phase(self, key: tuple[str, str]) -> Iterator[None]:
        self._charge()
        self._stack.append(key)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def computing(self, name: str) -> Any:
        return self._phase(("computing", name))

    def waiting(self, name: str) -> Any:
        """`name` is what is waited for."""
        return self._phase(("waiting", name))

    def _charge(self) -> None:
        now = (time.perf_counter(), time.thread_time())
        if self._stack:
            self.wall[self._stack[-1]] += now[0] - self._mark[0]
            self.cpu[self._stack[-1]] += now[1] - self._mark[1]
        self._mark = now

    def totals(self) -> dict[str, Any]:
        """Wall seconds by phase since the start; CPU seconds of the process, since the start, and by phase. Call it from the clock's own thread."""
        self._charge()
        record: dict[str, Any] = {"computing": {}, "waiting": {}, "cpu": {}}
        for (kind, name), seconds in self.wall.items():
            record[kind][name] = round(seconds, 4)
            record["cpu"][name] = round(self.cpu[kind, name], 4)
        wall_s, cpu_s = time.perf_counter() - self.started, time.process_time()
        return {
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_s, 3),
            "cpu_since_start_s": round(cpu_s - self._cpu_before, 3),
            **record,
        }
