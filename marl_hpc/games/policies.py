"""Behavior policies of a compiled game: what they return, what they reach, and the one that a mixture of them amounts to.

The *realization plan* of a policy, [S], is the probability with which the player plays each sequence as far as it depends on itself.
Plans are what to compute with: returns are linear in each player's plan, and the plan of a mixture is the mixture of the plans (Kuhn
1953), which is true of action probabilities only where one state is reached alike. Letters as in `tree`. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marl_hpc.games.tree import Game, checked_player

SUM_TOLERANCE = 1e-6  # by how much given probabilities may miss 1


def uniform_policy(game: Game, player: int) -> np.ndarray:
    """[I, A]: every legal action alike."""
    legal = game.legal[checked_player(game, player)]
    return legal / legal.sum(1, keepdims=True)


def realization_plan(game: Game, player: int, policy: Any) -> np.ndarray:
    """[…, S] of a policy […, I, A]: for each sequence the product of the player's own probabilities along it."""
    given = checked_policy(game, player, policy)
    plan = np.ones((*given.shape[:-2], game.sequences(player)))
    for stage in game.stages[player]:
        plan[..., stage.sequences] = given[..., stage.state, stage.action] * plan[..., stage.before]
    return plan


def behavior_policy(game: Game, player: int, plan: np.ndarray, *, unreached: np.ndarray | None = None) -> np.ndarray:
    """The policy [I, A] of a plan [S]. Where the player's own choices never lead, it is the row of `unreached` [I, A], else uniform."""
    policy = uniform_policy(game, player) if unreached is None else np.array(unreached, float)
    for stage in game.stages[player]:
        reached = plan[stage.state_before] > 0
        rows = policy[stage.states]
        rows[reached] = 0
        inside = plan[stage.before] > 0
        # by their own sum, which rounding keeps no smaller than any of them: none is above 1, which OpenSpiel refuses
        rows[stage.state[inside] - stage.states.start, stage.action[inside]] = plan[stage.sequences][inside]
        rows[reached] /= rows[reached].sum(1, keepdims=True)
    return policy


def mixture_policy(game: Game, player: int, policies: Any, weights: Any) -> np.ndarray:
    """The behavior policy [I, A] that does what drawing one of `policies` [K, I, A] by `weights` [K] before the game does.

    Whatever the others play, it reaches every history as often (Kuhn's theorem): each policy counts in a state by how likely
    it is to come there, so action probabilities aren't simply averaged. Where none comes, they are. Raises ValueError for weights that
    aren't probabilities.
    """
    weights = np.asarray(weights, float)
    plans = realization_plan(game, player, policies)
    if plans.ndim != 2 or weights.shape != plans.shape[:1] or not (weights >= 0).all() or abs(weights.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"a mixture needs policies [K, I, A] and K probabilities; got policies {np.shape(policies)} and weights "
            f"{weights.shape} that sum to {weights.sum():.6g}"
        )
    average = np.tensordot(weights, np.asarray(policies, float), 1)
    return behavior_policy(game, player, weights @ plans, unreached=average)


def reach_probabilities(game: Game, policies: Sequence[Any]) -> np.ndarray:
    """[players + 1, H]: what each player, and last of all chance, contributes to reaching a history; their product is its probability."""
    plans = plans_of(game, policies, batch=False)
    return np.stack([*(plan[game.sequence[:, i]] for i, plan in enumerate(plans)), game.chance])


def expected_returns(game: Game, policies: Sequence[Any]) -> np.ndarray:
    """What each player expects, […, players], when each plays its policy […, I, A]; batches are broadcast against one another.

    One pass over the terminal histories, exact up to rounding. Raises ValueError for policies of another shape, or that aren't
    probabilities of legal actions.
    """
    reach = game.chance[game.terminal]
    for i, plan in enumerate(plans_of(game, policies, batch=True)):
        reach = reach * plan[..., game.sequence[game.terminal, i]]
    return reach @ game.returns[game.terminal]


def plans_of(game: Game, policies: Sequence[Any], *, batch: bool) -> list[np.ndarray]:
    """The plan of each player's policy, [S], or with `batch` […, S]. Raises ValueError for policies that aren't."""
    if len(policies) != game.players:
        raise ValueError(f"{game.name} has {game.players} players, got {len(policies)} policies; give one for each")
    plans = [realization_plan(game, i, policy) for i, policy in enumerate(policies)]
    if not batch and any(plan.ndim > 1 for plan in plans):
        raise ValueError(f"expected one policy [I, A] for each player, got shapes {[np.shape(policy) for policy in policies]}")
    return plans


def sequence_returns(game: Game, player: int, plans: Sequence[np.ndarray]) -> np.ndarray:
    """[S, players]: the share of all players' returns that ends after each of one player's sequences, if it plays there.

    `plans` [S_j] are one per player; the own one doesn't matter. A plan of the player times this is what it and the others return:
    realization_plan(…) @ sequence_returns(…) [, players]. So a batch of its policies costs one product.
    """
    player = checked_player(game, player)
    weight = game.chance[game.terminal]
    for other, plan in enumerate(plans):
        if other != player:
            weight = weight * plan[game.sequence[game.terminal, other]]
    own, count = game.sequence[game.terminal, player], game.sequences(player)
    columns = [np.bincount(own, weight * game.returns[game.terminal, i], count) for i in range(game.players)]
    return np.stack(columns, 1)


def checked_policy(game: Game, player: int, policy: Any) -> np.ndarray:
    """A policy […, I, A] as float64. Raises ValueError for another shape, or what isn't probabilities of legal actions."""
    player = checked_player(game, player)
    given = np.asarray(policy, float)
    expected = game.legal[player].shape
    if given.shape[-2:] != expected:
        raise ValueError(f"a policy of player {player} has shape {given.shape}; expected […, {expected[0]}, {expected[1]}]")
    off = ~(given >= 0) | (~game.legal[player] & (given != 0))
    wrong = off.any(-1) | (np.abs(given.sum(-1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        state = place[-1]
        raise ValueError(
            f"the policy of player {player} at {place} isn't probabilities of legal actions: {given[place].tolist()} in information "
            f"state {game.state_names[player][state]!r}, where {np.flatnonzero(game.legal[player][state]).tolist()} are legal"
        )
    return given
