"""How much faster are the ports of other packages' environments than the originals, by number of copies?

Both sides play random actions in one process on one core, with every episode started from a seed of its own, in the same script and
interleaved. The originals are stepped copy by copy in a plain loop, without anything of ours around them. Before anything is measured,
both sides play the same episodes and have to agree. Each is repeated; the table gives medians and ranges of environment steps per second
of CPU time, over all copies.

    python benchmarks/ports.py [--repeats 7] [--output benchmarks/results/ports.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lbforaging.foraging import ForagingEnv
from mpe2 import simple_speaker_listener_v4, simple_spread_v3

from marl_hpc import envs
from marl_hpc.summary import git_state, versions

COPIES = (32, 128)
FORAGING = {
    "players": 2, "field_size": (8, 8), "max_num_food": 2, "sight": 8, "force_coop": True, "max_episode_steps": 50,
    "min_player_level": 1, "max_player_level": 2, "min_food_level": 1, "max_food_level": None,
}  # fmt: skip
ORIGINALS: dict[str, Callable[[], Any]] = {
    "mpe_fast/simple_spread": simple_spread_v3.parallel_env,
    "mpe_fast/simple_speaker_listener": simple_speaker_listener_v4.parallel_env,
    "lbf_fast/8x8-2p-2f-coop": lambda: ForagingEnv(**FORAGING),
}


def choices(spec: Any, random: np.random.Generator, copies: int) -> np.ndarray:
    """Random actions [B, agents], in the order of the specification's agents."""
    return np.stack([random.integers(0, g.action_space.n, copies) for g in spec.groups for _ in g.agents], 1)


def by_group(spec: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(g.agents) for g in spec.groups])
    return {g.name: chosen[:, end - len(g.agents) : end] for g, end in zip(spec.groups, ends, strict=True)}


def play_port(env: Any, batch_steps: int, copies: int) -> list[np.ndarray]:
    """Step all copies; rewards [B, agents] of each step."""
    random, seed, over, rewards = np.random.default_rng(0), 0, np.ones(copies, bool), []
    for _ in range(batch_steps):
        ended = np.flatnonzero(over).tolist()
        if ended:
            env.reset(ended, list(range(seed, seed := seed + len(ended))))
            env.observe()
        step = env.step(by_group(env.spec, choices(env.spec, random, copies)))
        over = step.over
        rewards.append(np.concatenate(list(step.reward.values()), 1))
    return rewards


def play_original(plain: list[Any], spec: Any, batch_steps: int) -> list[np.ndarray]:
    random, seed, over, rewards = np.random.default_rng(0), 0, np.ones(len(plain), bool), []
    for _ in range(batch_steps):
        paid = []
        for b in np.flatnonzero(over).tolist():
            for player in getattr(plain[b], "players", []):
                player.position = None  # else food stays off the places where players stood last
            plain[b].reset(seed=seed)
            seed += 1
        chosen = choices(spec, random, len(plain)).tolist()
        for b, env in enumerate(plain):
            if isinstance(env, ForagingEnv):
                _, reward, over[b], _, _ = env.step(chosen[b])
                paid.append(reward)
            else:
                _, reward, *_ = env.step(dict(zip(spec.agents, chosen[b], strict=True)))
                paid.append([reward[agent] for agent in spec.agents])
                over[b] = not env.agents
        rewards.append(np.array(paid))
    return rewards


def rate(play: Callable[[], Any], env_steps: int) -> float:
    began = time.process_time()
    play()
    return env_steps / (time.process_time() - began)


def measure(name: str, copies: int, repeats: int, original_steps: int, port_steps: int) -> dict[str, Any]:
    env, plain = envs.make(name, copies=copies), [ORIGINALS[name]() for _ in range(copies)]
    steps = (max(original_steps // copies, 60), port_steps // copies)
    # the comparison counts only if both play the same; it also warms both up
    ours, theirs = play_port(env, 60, copies), play_original(plain, env.spec, 60)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=1e-6)
    original, port = [], []
    for _ in range(repeats):  # interleaved, so that what else the machine does meets both alike
        original.append(rate(lambda: play_original(plain, env.spec, steps[0]), steps[0] * copies))
        port.append(rate(lambda: play_port(env, steps[1], copies), steps[1] * copies))
    ratios = [fast / slow for fast, slow in zip(port, original, strict=True)]
    return {
        "version": env.spec.version,
        "original_env_steps_per_cpu_s": statistics.median(original), "original_range": [min(original), max(original)],
        "port_env_steps_per_cpu_s": statistics.median(port), "port_range": [min(port), max(port)],
        "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--original-steps", type=int, default=4_000)
    parser.add_argument("--port-steps", type=int, default=128_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ports.json")
    arguments = parser.parse_args()
    print("| environment | copies | original, env steps per CPU-s | port, env steps per CPU-s | ratio |\n|---|---|---|---|---|")
    table: dict[str, dict[str, Any]] = {}
    for name in ORIGINALS:
        for copies in COPIES:
            row = measure(name, copies, arguments.repeats, arguments.original_steps, arguments.port_steps)
            table.setdefault(name, {})[str(copies)] = row
            print(
                f"| {name} | {copies} | {row['original_env_steps_per_cpu_s']:,.0f} ({row['original_range'][0]:,.0f}–"
                f"{row['original_range'][1]:,.0f}) | {row['port_env_steps_per_cpu_s']:,.0f} ({row['port_range'][0]:,.0f}–"
                f"{row['port_range'][1]:,.0f}) | {row['ratio']:,.0f} ({row['ratio_range'][0]:,.0f}–{row['ratio_range'][1]:,.0f}) |",
                flush=True,
            )
    arguments.output.parent.mkdir(exist_ok=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "repeats": arguments.repeats, "original_steps": arguments.original_steps,
        "port_steps": arguments.port_steps, "cores": os.cpu_count(), "git": git_state(),
        "versions": {**versions(), **{name: importlib.metadata.version(name) for name in ("mpe2", "lbforaging")}},
        "table": table,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
