"""A cue that has to be passed on: one agent sees it, others far away on a line or a ring are paid for knowing it.

Who relays it earns nothing by that, so it is learned only if what a receiver makes of a message moves its sender: the smallest task that
tells agents that talk from agents that don't. May import envs, types and config only, besides third-party packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marl_hpc.config import ConfigError
from marl_hpc.envs.networked.batch import Groups, NetworkedBatch, at_least
from marl_hpc.envs.networked.hashing import words

NAME = "networked/cue"


class Cue(NetworkedBatch):
    """N agents in a line, or with `ring` in a circle; neighbors are those next to each other.

    In step 0 agent 0 sees one of `symbols` symbols, uniform by the episode's seed. In step `delay` (by default `hops`; never less, as
    news go one hop a step) the agents that are exactly `hops` away, on a ring two of them unless they meet, are asked: each earns
    N / (how many are asked) for the action that is the symbol. Everything else earns nothing, and the episode terminates.

    Observations [B, N, symbols + 1]: the symbol as a one-hot, for agent 0 in step 0; at the end 1 for who is asked now.
    Return, a mean over agents: the share of right answers, 1 at best and 1 / symbols for whoever doesn't hear of the symbol.
    Raises ConfigError for values that can't be.

    >>> from marl_hpc.envs import make
    >>> env = make("networked/cue", agents=6, hops=3, ring=True)
    >>> env.edges.tolist()
    [[0, 1], [0, 5], [1, 2], [2, 3], [3, 4], [4, 5]]
    >>> env.asked.tolist()
    [3]
    """

    def __init__(
        self,
        copies: int,
        groups: Groups,
        agents: int = 5,
        hops: int = 4,
        symbols: int = 4,
        delay: int | None = None,
        ring: bool = False,
    ) -> None:
        at_least(NAME, agents=(agents, 3 if ring else 2), symbols=(symbols, 2), hops=(hops, 1))
        farthest = agents // 2 if ring else agents - 1
        if hops > farthest:
            shape = "ring" if ring else "line"
            raise ConfigError(f"env={NAME}: hops={hops}; on a {shape} of {agents} agents nobody is more than {farthest} away")
        self.delay = hops if delay is None else delay
        at_least(NAME, delay=(self.delay, hops))
        numbers = np.arange(agents)
        line = np.stack([numbers, (numbers + 1) % agents], 1)[: agents if ring else agents - 1]
        super().__init__(NAME, copies, groups, agents, symbols + 1, symbols, line)
        self.symbols = symbols
        self.asked = np.unique([hops, agents - hops]) if ring else np.array([hops])
        self.cue = np.zeros(copies, int)

    def begin(self, copies: np.ndarray, seeds: Sequence[int]) -> None:
        self.cue[copies] = words(np.array(seeds, np.uint64)) % np.uint64(self.symbols)

    def advance(self, chosen: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = np.zeros((self.copies, len(chosen)))
        last = self.clock > self.delay
        right = (self.cue[:, None] == chosen[self.asked].T) & last[:, None]
        reward[:, self.asked] = right * (len(chosen) / len(self.asked))
        return reward, last, np.zeros(self.copies, bool)

    def look(self) -> np.ndarray:
        seen = np.zeros((self.copies, len(self.spec.agents), self.symbols + 1), np.float32)
        starts = np.flatnonzero(self.clock == 0)
        seen[starts, 0, self.cue[starts]] = 1
        seen[np.flatnonzero(self.clock == self.delay)[:, None], self.asked, -1] = 1
        return seen
