"""A policy network as a table: what it does in every information state of a game that is written down whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from marl_hpc.actors import Actor, PolicyNetwork
from marl_hpc.games import Game, uniform_policy

MOST_HISTORIES = 3_000_000


def tabulates(networks: Mapping[str, PolicyNetwork], game: Game | None) -> bool:
    """Whether these policies can be written down in this game."""
    return game is not None and game.views is not None and len(game.player) <= MOST_HISTORIES and remembers_nothing(networks)


def remembers_nothing(networks: Mapping[str, PolicyNetwork]) -> bool:
    """Whether each of these policies acts for itself, by what it sees now."""
    return all(isinstance(policy, Actor) and not policy.together and not policy.memory_shape[1] for policy in networks.values())


@torch.no_grad()
def tabular(
    networks: Mapping[str, PolicyNetwork], places: Mapping[str, list[int]], game: Game, player: int, played: str
) -> np.ndarray:
    """The behavior policy [I, A] of a player whose one agent stands at `places` of its group; `played` as in `populations.Member`."""
    if played == "uniform":
        return uniform_policy(game, player)
    ((group, (place,)),) = places.items()
    policy = next(network for network in networks.values() if network.groups[0].name == group)
    assert isinstance(policy, Actor)
    assert game.seen is not None
    assert game.views is not None
    mine = np.flatnonzero(game.player == player)
    _, first = np.unique(game.state[mine], return_index=True)
    like, agents = next(policy.parameters()), len(policy.group.agents)
    views = torch.from_numpy(game.views[game.seen[mine[first], player]]).to(like)
    legal = torch.from_numpy(game.legal[player])
    seen, mask = (
        views.new_zeros(len(views), agents, views.shape[-1]),
        torch.ones(len(views), agents, legal.shape[-1], dtype=torch.bool),
    )
    seen[:, place], mask[:, place] = views, legal
    outputs, _ = policy.network.step(seen, views.new_zeros(len(views), *policy.memory_shape))
    parameters = policy.settle(policy.group, policy.duel(outputs), mask)
    distribution = policy.distributions[group]
    if played == "greedy":
        return np.eye(game.actions)[distribution.mode(parameters)[:, place].numpy()]
    chances = parameters[:, place].double().exp().numpy() * game.legal[player]
    return chances / chances.sum(1, keepdims=True)
