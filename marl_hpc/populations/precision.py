"""Which cells of a payoff table have to be known better for what a scheme made of them. Pure NumPy.

A meta-strategy rests on what each policy returns against those whom its player meets: an average over cells, weighted by how often they
are met. A cell that nobody meets may stay as uncertain as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

from marl_hpc.populations.cells import Cell, canonical
from marl_hpc.populations.schemes import LEARNS, Meeting

CONFIDENCE = 0.95


def loose_cells(
    populations: Sequence[int], meetings: Iterable[tuple[int, Meeting]], errors: np.ndarray, half_width: float
) -> list[Cell]:
    """The cells to simulate more of, so that every policy's expected return against each of these (player, meeting) has a 95 % interval
    of at most +- `half_width`: of each that is wider, those that make it so. None once all are known well enough.

    `errors` [players, *sizes] are squared standard errors of the payoffs, NaN where those aren't asked for.
    """
    allowed = (half_width / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)) ** 2
    found: dict[Cell, None] = {}
    for player, meeting in meetings:
        assert (meeting.profiles[:, player] == LEARNS).all(), "one player learns in its meeting"
        for policy in range(errors.shape[1 + player]):
            profiles = meeting.profiles.copy()
            profiles[:, player] = policy
            shares = meeting.weights**2 * errors[player, *profiles.T]
            if shares.sum() > allowed:
                wide = profiles[shares > allowed / len(shares)]
                found |= dict.fromkeys(canonical(populations, cell) for cell in wide.tolist())
    return list(found)
