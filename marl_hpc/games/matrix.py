"""Matrix games as compiled games, so that whatever works on those works on a table of payoffs. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_hpc.games.tree import TERMINAL, Game, History, build


def matrix_game(payoffs: Any, *, name: str = "matrix_game") -> Game:
    """The game [players, |S_1|, …, |S_n|] in which every player chooses one strategy, not knowing what the others choose.

    Each player has a single information state, so that its behavior policy is its mixture, as [1, A]. Raises ValueError for another
    shape, or for what isn't finite.

    >>> from marl_hpc.games import expected_returns
    >>> pennies = matrix_game([[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]])
    >>> expected_returns(pennies, [[[1.0, 0.0]], [[0.25, 0.75]]]).tolist()
    [-0.5, 0.5]
    """
    table = np.asarray(payoffs, float)
    if table.ndim < 2 or len(table) != table.ndim - 1 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"payoffs have shape {table.shape}; expected [players, |S_1|, …, |S_n|], at least one of each and all finite"
        )
    sizes = table.shape[1:]
    histories: list[History] = []
    stack: list[tuple[tuple[int, ...], int]] = [((), -1)]  # (choices so far, the history before the last one)
    while stack:
        chosen, parent = stack.pop()
        here, player = len(histories), len(chosen)
        over = player == len(sizes)
        legal = () if over else range(sizes[player])
        returns = table[:, *chosen].tolist() if over else [0.0] * len(sizes)
        mover, state = (TERMINAL, "") if over else (player, f"player {player}")
        histories.append(History(parent, chosen[-1] if chosen else -1, 1.0, mover, state, legal, returns))
        stack += [((*chosen, action), here) for action in reversed(legal)]
    return build(name, len(sizes), max(sizes), histories)[0]
