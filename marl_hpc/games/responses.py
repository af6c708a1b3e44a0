"""Exact best responses in a compiled game, and how much could be gained by them: NashConv and exploitability. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from marl_hpc.games.policies import plans_of, sequence_returns
from marl_hpc.games.tree import Game, checked_player

TIE = 1e-13  # as a share of the largest return: actions this close to the best are as good


class BestResponse(NamedTuple):
    policy: np.ndarray  # [I, A], pure: one action has probability 1
    value: float  # what it returns to the player


def best_response(game: Game, player: int, policies: Sequence[Any]) -> BestResponse:
    """A best response of `player` to the others' behavior policies, [I, A] one per player; its own doesn't matter.

    Among equally good actions it is the lowest, also where nothing the player does leads. Raises ValueError for policies that aren't.
    """
    plans = plans_of(game, policies, batch=False)
    return best_response_to(game, player, sequence_returns(game, player, plans)[:, checked_player(game, player)])


def best_response_to(game: Game, player: int, returns: np.ndarray) -> BestResponse:
    """A best response to the player's own column [S] of `sequence_returns`.

    Those of several opponents may be added up, weighted by their probabilities: so it answers any distribution over them, mixed
    or correlated. Stages go from last to first; in each, all information states choose at once.
    """
    player = checked_player(game, player)
    if np.shape(returns) != (game.sequences(player),):
        raise ValueError(f"player {player} has {game.sequences(player)} sequences; got returns of shape {np.shape(returns)}")
    values = np.array(returns, float)
    tie = TIE * np.abs(game.returns[game.terminal]).max()
    policy = np.zeros(game.legal[player].shape)
    for stage in reversed(game.stages[player]):
        rows = np.full((stage.states.stop - stage.states.start, game.actions), -np.inf)
        rows[stage.state - stage.states.start, stage.action] = values[stage.sequences]
        best = rows.max(1)
        chosen = (rows >= best[:, None] - tie).argmax(1)
        policy[np.arange(stage.states.start, stage.states.stop), chosen] = 1
        values += np.bincount(stage.state_before, best, len(values))
    return BestResponse(policy, float(values[0]))


def nash_conv(game: Game, policies: Sequence[Any]) -> float:
    """The sum over players of what a best response would gain: 0 in a Nash equilibrium. In units of returns; as OpenSpiel's `nash_conv`.

    Any number of players, general sums too. Raises ValueError for policies that aren't.

    >>> from marl_hpc.games import compile_game, uniform_policy
    >>> kuhn = compile_game("kuhn_poker")
    >>> round(nash_conv(kuhn, [uniform_policy(kuhn, 0), uniform_policy(kuhn, 1)]), 6)
    0.916667
    """
    plans = plans_of(game, policies, batch=False)
    gain = 0.0
    for player, plan in enumerate(plans):
        returns = sequence_returns(game, player, plans)[:, player]
        gain += best_response_to(game, player, returns).value - float(plan @ returns)
    return gain


def exploitability(game: Game, policies: Sequence[Any]) -> float:
    """NashConv per player: in a two-player zero-sum game what a best response to it wins on average over both seats, above the value
    of the game. Half of `nash_conv` there; much of the literature means the one where it says the other."""
    return nash_conv(game, policies) / game.players
