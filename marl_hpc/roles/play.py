"""Playing whole episodes with fixed policies: evaluations, by workers during a run and by the `evaluate` command after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from marl_hpc.keyed_random import EVALUATION_ACTION, EVALUATION_EPISODE, generator, integer
from marl_hpc.networks import Actor, draw_noise, to_env
from marl_hpc.types import EnvBatch, GroupSpec


def play(
    env: EnvBatch,
    actors: dict[str, Actor],
    episodes: Sequence[int],
    *,
    seed: int,
    greedy: bool,
    alive: Callable[[], None] = lambda: None,
) -> list[tuple[float, int]]:
    """(return, length) of each of these episodes: returns are sums over steps, means over agents.

    An episode is known by its number: its start and its action noise are keyed by (seed, number), so the same policies play it alike
    whoever plays it, and beside whatever other episodes.
    """
    waiting = list(episodes)
    playing: dict[int, int] = {}  # copy -> episode
    streams: dict[int, np.random.Generator] = {}
    returns, lengths = np.zeros(env.copies), np.zeros(env.copies, int)
    results: list[tuple[int, float, int]] = []
    over = np.ones(env.copies, bool)
    while waiting or playing:
        alive()
        for b in np.flatnonzero(over).tolist():
            alive()  # a start may be far slower than a step
            start = 0  # a copy without an episode left steps along unseen
            if waiting:
                playing[b] = waiting.pop(0)
                streams[b] = generator(seed, EVALUATION_ACTION, playing[b])
                start = integer(seed, EVALUATION_EPISODE, playing[b])
            returns[b], lengths[b] = 0, 0
            env.reset([b], [start])
        observation, mask, _ = env.observe()
        actions = {}
        for group in env.spec.groups:
            drawn = None if greedy else {b: streams[b] for b in playing}
            actions[group.name] = choose(actors[group.name], group, observation[group.name], mask.get(group.name), drawn)
        after = env.step(actions)
        returns += sum(reward.sum(1) for reward in after.reward.values()) / len(env.spec.agents)
        lengths += 1
        over = after.over
        results += [(playing.pop(b), float(returns[b]), int(lengths[b])) for b in list(playing) if over[b]]
    return [(episode_return, length) for _, episode_return, length in sorted(results)]


@torch.no_grad()
def choose(
    actor: Actor, group: GroupSpec, observation: np.ndarray, mask: np.ndarray | None, streams: dict[int, np.random.Generator] | None
) -> np.ndarray:
    """Actions [B, N, …] of one group as the environment takes them: greedy without `streams`, else drawn, each copy from its own."""
    dtype = next(actor.parameters()).dtype
    parameters = actor(torch.from_numpy(observation).to(dtype), None if mask is None else torch.from_numpy(mask))
    if streams is None:
        return to_env(group.action_space, actor.mode(parameters).numpy())
    noise = np.full(tuple(parameters.shape), 0.5)
    for b, stream in streams.items():
        noise[b] = draw_noise(group.action_space, stream, (len(group.agents),))
    return to_env(group.action_space, actor.sample(parameters, torch.from_numpy(noise).to(dtype)).numpy())
