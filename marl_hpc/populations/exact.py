"""Exact cells and best responses for populations of a compiled game, on realization plans.

Returns are linear in each player's plan: once what one player's sequences return against given others is known, all of its policies
against them cost one product. So a new policy's row of cells takes one pass over the terminal histories. Pure NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marl_hpc.games import BestResponse, Game, best_response_to, sequence_returns
from marl_hpc.populations.cells import seatings


class ExactCells(NamedTuple):
    """What `PayoffTable.fill` takes."""

    cells: np.ndarray  # [M, players]
    means: np.ndarray  # [M, players], by position
    beats: np.ndarray  # [M, players, players] probabilities that one position returns more than another


def exact_cells(game: Game, plans: Sequence[np.ndarray], cells: np.ndarray, populations: Sequence[int]) -> ExactCells:
    """These cells [M, players] of populations whose policies have the realization plans `plans`, [policies, S_i] for each player i.

    Players who share a population have the plans of the same policies, each in its seat. Cells average over seats and over chance.
    Raises ValueError where a cell names a policy that has no plan.
    """
    cells = np.asarray(cells, np.int64).reshape(-1, game.players)
    sizes = tuple(len(plan) for plan in plans)
    if len(plans) != game.players or not ((cells >= 0) & (cells < sizes)).all():
        raise ValueError(
            f"{game.name} has {game.players} players; got plans of {sizes} policies for cells up to {cells.max(0, initial=0)}"
        )
    seats = np.array(seatings(populations))  # [seatings, positions]
    seated = np.stack([cells[:, np.argsort(seat)] for seat in seats])  # policies by player
    profiles, where = np.unique(seated.reshape(-1, game.players), axis=0, return_inverse=True)
    means, beats = _by_profile(game, plans, profiles)
    where = where.reshape(len(seats), len(cells))
    means = np.mean([means[at][:, seat] for at, seat in zip(where, seats, strict=True)], 0)
    beats = np.mean([beats[at][:, seat][:, :, seat] for at, seat in zip(where, seats, strict=True)], 0)
    for i, j in itertools.combinations(range(game.players), 2):
        if populations[i] == populations[j]:
            same = cells[:, i] == cells[:, j]
            means[same, j] = means[same, i]  # rounding apart they are equal already
    return ExactCells(cells, means, beats)


def best_response_to_joint(game: Game, player: int, plans: Sequence[np.ndarray], others: np.ndarray) -> BestResponse:
    """A best response to a distribution `others` of what the other players' policies are, [their sizes], independent or not.

    `plans` as in `exact_cells`. Of two players the other's mixture is one plan; of more, one pass for each choice of all others but
    one.
    """
    rest = [i for i in range(game.players) if i != player]
    if len(rest) < 2:
        returns = sequence_returns(game, player, _with(plans, {i: others @ plans[i] for i in rest}))
        return best_response_to(game, player, returns[:, player])
    *fixed, last = rest
    total = np.zeros(game.sequences(player))
    rows = others.reshape(-1, others.shape[-1])
    for row, choice in zip(rows, np.ndindex(*others.shape[:-1]), strict=True):
        if row.any():
            chosen = {i: plans[i][number] for i, number in zip(fixed, choice, strict=True)}
            total += sequence_returns(game, player, _with(plans, chosen | {last: row @ plans[last]}))[:, player]
    return best_response_to(game, player, total)


def _with(plans: Sequence[np.ndarray], chosen: dict[int, np.ndarray]) -> list[np.ndarray]:
    """One plan for each player; that of who isn't chosen doesn't matter."""
    return [chosen[i] if i in chosen else plan[0] for i, plan in enumerate(plans)]


def _by_profile(game: Game, plans: Sequence[np.ndarray], profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(returns [M, players], beats [M, players, players]) of profiles [M, players] of policies."""
    players = game.players
    last = game.returns[game.terminal]
    pairs = list(itertools.permutations(range(players), 2))
    outcomes = np.column_stack([last, *((last[:, i] > last[:, j]) for i, j in pairs)])
    values = np.empty((len(profiles), outcomes.shape[1]))
    # profiles that differ in one player's policy only are one product; each goes with the player for whom there are most of them
    groups, sizes = [], []
    for player in range(players):
        _, group, count = np.unique(np.delete(profiles, player, 1), axis=0, return_inverse=True, return_counts=True)
        groups.append(group.ravel())
        sizes.append(count[group.ravel()])
    free = np.argmax(sizes, 0)
    for player in range(players):
        mine = np.flatnonzero(free == player)
        order = mine[np.argsort(groups[player][mine], kind="stable")]
        for members in np.split(order, np.flatnonzero(np.diff(groups[player][order])) + 1):
            if len(members):
                weight = game.chance[game.terminal]
                for other in range(players):
                    if other != player:
                        weight = weight * plans[other][profiles[members[0], other]][game.sequence[game.terminal, other]]
                own, count = game.sequence[game.terminal, player], game.sequences(player)
                columns = np.stack([np.bincount(own, weight * column, count) for column in outcomes.T], 1)
                values[members] = plans[player][profiles[members, player]] @ columns
    beats = np.zeros((len(profiles), players, players))
    for column, (i, j) in enumerate(pairs, start=players):
        beats[:, i, j] = values[:, column]
    return values[:, :players], beats
