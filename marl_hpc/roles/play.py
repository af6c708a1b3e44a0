"""Playing whole episodes with fixed policies: evaluations, by workers during a run and by the `evaluate` command after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from marl_hpc.distributions import draw_noise
from marl_hpc.envs.part import earned, own, whole_of
from marl_hpc.keyed_random import EVALUATION_ACTION, EVALUATION_EPISODE, generator, integer
from marl_hpc.networks import to_env
from marl_hpc.roles.acting import Acting, Answer, ask, dtype_of
from marl_hpc.types import EnvBatch, Step


def play(
    env: EnvBatch,
    inference: Acting,
    episodes: Sequence[int],
    *,
    seed: int,
    greedy: bool,
    alive: Callable[[], None] = lambda: None,
) -> list[tuple[float, ...]]:
    """(return, length, return of each group) of each of these episodes: returns are sums over steps, means over agents.

    An episode is known by its number: its start and its action noise are keyed by (seed, number), so the same policies play it alike
    whoever plays it, and beside whatever other episodes.
    """
    sizes = np.array([len(group.agents) for group in whole_of(env).groups])

    def start(copy: int, episode: int) -> tuple[int, np.random.Generator | None]:
        stream = None if greedy else generator(seed, EVALUATION_ACTION, episode)
        return integer(seed, EVALUATION_EPISODE, episode), stream

    found = episodes_of(env, inference, episodes, start, lambda step: earned(env.spec, step), alive=alive)
    return [summary_of(returns, sizes, length) for returns, length in found]


def episodes_of(
    env: EnvBatch,
    acting: Acting,
    episodes: Sequence[int],
    start: Callable[[int, int], tuple[int, np.random.Generator | None]],
    tally: Callable[[Step], np.ndarray],
    *,
    alive: Callable[[], None] = lambda: None,
) -> list[tuple[np.ndarray, int]]:
    """(what an episode's steps have been tallied as in all, its length), in the order of `episodes`.

    `start` is told which copy plays an episode next, and gives the seed of its beginning and the stream of its action noise, None for the
    most likely actions; `tally` [B, …] is of one step.
    """
    waiting = list(episodes)
    playing: dict[int, int] = {}  # copy -> episode
    streams: dict[int, np.random.Generator] = {}
    results: dict[int, tuple[np.ndarray, int]] = {}
    sums, lengths = np.zeros(0), np.zeros(env.copies, int)
    over = np.ones(env.copies, bool)
    memories = {
        name: torch.zeros(env.copies, *policy.memory_shape, dtype=dtype_of(policy)) for name, policy in acting.policies.items()
    }
    while waiting or playing:
        alive()
        for b in np.flatnonzero(over).tolist():
            alive()  # a start may be far slower than a step
            seed = 0  # a copy without an episode left steps along unseen
            if waiting:
                playing[b] = waiting.pop(0)
                seed, stream = start(b, playing[b])
                if stream is not None:
                    streams[b] = stream
            env.reset([b], [seed])
            for memory in memories.values():
                memory[b] = 0
        answers = choose(acting, env, memories, {b: streams[b] for b in playing} if streams else None)
        memories = {name: answer.memory for name, answer in answers.items()}
        chosen = {name: x.numpy() for answer in answers.values() for name, x in answer.actions.items()}
        after = env.step({group.name: to_env(group.action_space, chosen[group.name]) for group in env.spec.groups})
        gained = tally(after)
        sums = gained if not len(sums) else np.where(over.reshape(-1, *[1] * (gained.ndim - 1)), 0, sums) + gained
        lengths = np.where(over, 0, lengths) + 1
        over = after.over
        for b in [b for b in playing if over[b]]:
            results[playing.pop(b)] = sums[b].copy(), int(lengths[b])
    return [results[episode] for episode in episodes]


def summary_of(returns: np.ndarray, sizes: np.ndarray, length: int) -> tuple[float, ...]:
    """(return, length, return of each group), means over agents, from the groups' sums [G] over so many agents [G]."""
    return (float(returns.sum() / sizes.sum()), float(length), *(returns / sizes).tolist())


def choose(
    inference: Acting, env: EnvBatch, memories: Mapping[str, torch.Tensor], streams: dict[int, np.random.Generator] | None
) -> dict[str, Answer]:
    """What each policy says, without exploration: greedy without `streams`, else drawn, each copy from its own."""
    drawn: Mapping[str, np.ndarray] = {}
    if streams is not None:
        noise = {g.name: np.full((env.copies, len(g.agents), g.action_space.size), 0.5) for g in whole_of(env).groups}
        for g in whole_of(env).groups:
            for b, stream in streams.items():
                noise[g.name][b] = draw_noise(g.action_space, stream, (len(g.agents),))
        drawn = own(env, noise)
    seen, questions = env.observe(), {}
    for name, policy in inference.policies.items():
        mine = {group.name: torch.from_numpy(drawn[group.name]).to(dtype_of(policy)) for group in policy.groups if drawn}
        questions[name] = ask(policy, seen, memories[name], mine or None, epsilon=0.0)
    return inference.act(questions)
