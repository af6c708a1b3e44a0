"""B copies of a compiled game, played together: a step is a few array look-ups, whatever the game. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_hpc.games.tree import CHANCE, TERMINAL, Game


class Copies:
    """Each copy stands at a history, `at` [B], where a player moves or which is terminal; chance moves by itself.

    An episode is a function of the actions and of the uniform numbers that its reset is given, one for each time that chance moves.
    Copies that are over stay there until they are reset.
    """

    def __init__(self, game: Game, copies: int) -> None:
        if copies < 1:
            raise ValueError(f"copies={copies}; at least one is needed")
        self.game = game
        self.copies = copies
        self.draws = int(game.draws.max())  # how often chance moves in an episode, at most
        self.at = np.full(copies, game.terminal[0], np.int32)  # over: nothing happens before the first reset
        self._uniforms = np.zeros((copies, max(self.draws, 1)))
        # chance's outcomes after all its histories are one increasing list: rank of the history + cumulative probability
        self._outcome = np.flatnonzero((game.parent >= 0) & (game.player[game.parent] == CHANCE))
        parents, sizes = np.unique(game.parent[self._outcome], return_counts=True)
        self._rank = np.zeros(len(game.player), np.int32)
        self._rank[parents] = np.arange(len(parents))
        ends = np.cumsum(sizes)
        self._first, self._last = ends - sizes, ends - 1
        total = np.cumsum(game.probability[self._outcome])
        before = np.repeat(np.append(0.0, total)[self._first], sizes)
        self._edges = np.repeat(np.arange(len(parents)), sizes) + (total - before)

    @property
    def player(self) -> np.ndarray:
        """[B] who moves; TERMINAL where a copy is over."""
        return self.game.player[self.at]

    @property
    def state(self) -> np.ndarray:
        """[B] the mover's information state; -1 where a copy is over."""
        return self.game.state[self.at]

    @property
    def legal(self) -> np.ndarray:
        """[B, A] the mover's legal actions; none where a copy is over."""
        return self.game.child[self.at] >= 0

    @property
    def returns(self) -> np.ndarray:
        """[B, players] so far in this episode; the episode's where a copy is over."""
        return self.game.returns[self.at]

    @property
    def over(self) -> np.ndarray:
        """[B] whether the episode has ended."""
        return self.player == TERMINAL

    def reset(self, copies: Any, uniforms: np.ndarray) -> None:
        """Start new episodes in these copies [n], with numbers from [0, 1) for chance [n, draws]. Raises ValueError for other shapes."""
        which = np.asarray(copies, int)
        if uniforms.shape != (len(which), self.draws):
            raise ValueError(f"reset of {len(which)} copies got uniforms {uniforms.shape}; expected {(len(which), self.draws)}")
        if not ((uniforms >= 0) & (uniforms < 1)).all():
            raise ValueError(f"uniforms must lie in [0, 1); got {uniforms.min()} … {uniforms.max()}")
        self._uniforms[which, : self.draws] = uniforms
        self.at[which] = 0
        self._chance(which)

    def step(self, actions: Any) -> None:
        """Act with [B] actions; those of copies that are over don't matter. Raises ValueError for an illegal one."""
        actions = np.asarray(actions)
        if actions.shape != (self.copies,):
            raise ValueError(f"actions have shape {actions.shape}; expected ({self.copies},)")
        inside = np.minimum(np.maximum(actions, 0), self.game.actions - 1)  # np.clip takes longer for few copies
        reached = self.game.child[self.at, inside]
        bad = (reached < 0) | (inside != actions)
        if bad.any():
            over = self.over
            if (bad & ~over).any():
                copy = int(np.flatnonzero(bad & ~over)[0])
                legal = np.flatnonzero(self.legal[copy]).tolist()
                raise ValueError(f"copy {copy} got action {actions[copy]}; its player {self.player[copy]} may choose from {legal}")
            reached = np.where(over, self.at, reached)
        self.at = reached
        self._chance(None)

    def _chance(self, copies: np.ndarray | None) -> None:
        """Let chance move where it does, as often as it does."""
        game = self.game
        if not self.draws:
            return
        moving = (
            np.flatnonzero(game.player[self.at] == CHANCE) if copies is None else copies[game.player[self.at[copies]] == CHANCE]
        )
        while len(moving):
            at = self.at[moving]
            rank = self._rank[at]
            found = np.searchsorted(self._edges, rank + self._uniforms[moving, game.draws[at]], side="right")
            # by rounding the edge of a history's outcomes may lie just inside of the next one's
            self.at[moving] = self._outcome[np.minimum(np.maximum(found, self._first[rank]), self._last[rank])]
            moving = moving[game.player[self.at[moving]] == CHANCE]
