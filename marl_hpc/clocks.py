"""Who may start its next iteration, when learners exchange gradients without all waiting for all. Pure: the time is an argument.

A learner's *clock* is the number of iterations (gradient steps) that it has finished. *Bounded asynchronous* (BAP): no learner starts
iteration c before every live learner has finished iteration c - S - 1 (the stale synchronous parallel model of Ho et al. 2013, section
3); S = 0 is bulk synchronous. *Asynchronous* (ASP): nobody waits, S is infinite.

An iteration that takes longer than `limit_s` holds nobody any more: its gradient is dropped when it comes, and its learner goes on
from the others' clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


class Clocks:
    def __init__(self, learners: Iterable[int], staleness: float = math.inf, limit_s: float = math.inf) -> None:
        if not staleness >= 0 or not limit_s > 0:
            raise ValueError(f"staleness={staleness} must be 0 or more, limit_s={limit_s} greater than 0")
        self.staleness, self.limit_s = staleness, limit_s
        self.finished = dict.fromkeys(learners, 0)  # of live learners
        self.started: dict[int, float] = {}  # when the iteration began that a learner is in
        self.dropped = dict.fromkeys(self.finished, 0)

    def late(self, learner: int, now: float) -> bool:
        """Whether its iteration takes too long."""
        return now - self.started.get(learner, now) > self.limit_s

    def may_start(self, learner: int, now: float) -> bool:
        """Whether the learner may start iteration `finished[learner]`."""
        clock = self.finished.get(learner, 0)
        return all(
            done >= clock - self.staleness for other, done in self.finished.items() if other == learner or not self.late(other, now)
        )

    def start(self, learner: int, now: float) -> None:
        """The learner starts its next iteration."""
        self.started[learner] = now

    def finish(self, learner: int, now: float) -> bool:
        """The learner's iteration has ended; False when it took too long and its gradient is dropped."""
        late = self.late(learner, now)
        self.started.pop(learner, None)
        if not late:
            self.finished[learner] += 1
            return True
        self.dropped[learner] += 1
        others = [done for other, done in self.finished.items() if other != learner and not self.late(other, now)]
        self.finished[learner] = max(self.finished[learner] + 1, min(others, default=0))
        return False

    def restart(self, now: float) -> None:
        """All iterations that are under way count from now: something held everybody up."""
        self.started = dict.fromkeys(self.started, now)

    def leave(self, learner: int) -> None:
        """The learner has ended and holds nobody any more."""
        self.finished.pop(learner, None)
        self.started.pop(learner, None)

    def next_deadline(self) -> float:
        """When the first iteration under way becomes late; infinite without one."""
        return min(self.started.values(), default=math.inf) + self.limit_s
