"""What is a wider view worth in wireless access: scalable actor-critic by κ, against localized ALOHA and independent actor-critics?

Qu, Wierman & Li 2020, section 5: users on a grid (3 × 4 here, one in each cell, packets with two steps to go) who share access points.
Everybody's policy is of its own queue; critics see, and policies answer for, those within κ hops. Also:

    independent   a2c whose critics see the own observation alone: κ = 0, with a baseline
    ALOHA         with probability p a user with a packet sends it, to one of its access points, drawn in proportion to its success
                  probability over its number of users; p is the best of 20 on episodes of their own

The score is the mean over users of Σ γ^t r_t, γ = 0.7, over the first 30 steps of 500 fresh episodes; policies are sampled, not greedy.
The network's probabilities are those of `network_seed` 0. The table gives means over training seeds with 95 % bootstrap intervals.

    python benchmarks/networked_wireless.py [--seeds 3] [--output benchmarks/results/networked_wireless.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marl_hpc import envs
from marl_hpc.distributions import draw_noise
from marl_hpc.envs.networked.wireless import NOWHERE, Wireless
from marl_hpc.evaluation import bootstrap_interval
from marl_hpc.policies import load_networks
from marl_hpc.summary import git_state, versions

GAMMA, STEPS, EPISODES, ENV_STEPS = 0.7, 30, 500, 400_000
TRAINING = (
    "env=networked/wireless", "env.episode_steps=50", "paradigm=networked", "topology.mix=none", f"algorithm.gamma={GAMMA}",
    "algorithm.hidden=[32]", "algorithm.lr=3e-3", "algorithm.entropy=0.01", "rollout.envs=64", "rollout.fragment=25",
    f"budget.env_steps={ENV_STEPS}", "evaluate.final_episodes=1", "world=inline", "logger=none",
)  # fmt: skip
METHODS = {
    "independent": ["algorithm=a2c", "algorithm.normalize_advantages=true"],
    **{f"κ = {kappa}": ["algorithm=scalable_ac", f"algorithm.kappa={kappa}"] for kappa in (1, 2, 3)},
}
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]  # observations [B, N, D] and masks [B, N, A] to actions [B, N]


def score(choose: Choose, first_seed: int) -> np.ndarray:
    """Discounted returns [episodes], means over users."""
    env = envs.make("networked/wireless", copies=EPISODES)
    env.reset(list(range(EPISODES)), list(range(first_seed, first_seed + EPISODES)))
    (group,), total = env.spec.groups, np.zeros(EPISODES)
    for t in range(STEPS):
        seen = env.observe()
        step = env.step({group.name: choose(seen.observation[group.name], seen.action_mask[group.name])})
        total += GAMMA**t * step.reward[group.name].mean(1)
    return total


def aloha(probability: float, random: np.random.Generator) -> Choose:
    env = envs.make("networked/wireless", copies=1)
    assert isinstance(env, Wireless)
    there = env.access[:, 1:] != NOWHERE
    users = np.bincount(env.access[:, 1:][there], minlength=len(env.success))
    weight = np.where(there, (env.success / users)[np.where(there, env.access[:, 1:], 0)], 0)
    bounds = np.cumsum(weight / weight.sum(1, keepdims=True), 1)

    def choose(observation: np.ndarray, mask: np.ndarray) -> np.ndarray:
        place = (random.random((*observation.shape[:2], 1)) > bounds).sum(-1)
        sends = observation.any(-1) & (random.random(place.shape) < probability)
        return np.where(sends, 1 + np.minimum(place, 3), 0)

    return choose


def trained(overrides: list[str], seed: int) -> float:
    """Train once in one process; the final policies' score."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "marl_hpc", *TRAINING, *overrides, f"seed={seed}", f"run.dir={folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        (policy,) = load_networks(Path(folder) / "run").values()
    (group,), random = policy.groups, np.random.default_rng(seed)

    @torch.no_grad()
    def choose(observation: np.ndarray, mask: np.ndarray) -> np.ndarray:
        fields = {
            "observation": torch.from_numpy(observation), "action_mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "active": torch.ones(observation.shape[:2], dtype=torch.bool),
        }  # fmt: skip
        noise = torch.from_numpy(draw_noise(group.action_space, random, observation.shape[:2])).float()
        return policy.act({group.name: fields}, torch.zeros(0), {group.name: noise})[0][group.name].numpy()

    return float(score(choose, 1_000_000).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "networked_wireless.json")
    arguments = parser.parse_args()
    chances = np.linspace(0.05, 1, 20)
    best = max(chances, key=lambda p: score(aloha(p, np.random.default_rng(0)), 2_000_000).mean())
    returns = score(aloha(best, np.random.default_rng(1)), 1_000_000)
    low, high = bootstrap_interval(returns, lambda drawn: drawn.mean(-1))
    results: dict[str, Any] = {
        "ALOHA": {"mean": float(returns.mean()), "interval": [low, high], "over": "episodes", "probability": float(best)}
    }
    print(
        f"| policies | discounted return [95 %] |\n|---|---|\n| ALOHA, p = {best:.2f} | {returns.mean():.3f} [{low:.3f}, {high:.3f}] |"
    )
    for name, overrides in METHODS.items():
        scores = np.array([trained(overrides, seed) for seed in range(arguments.seeds)])
        low, high = bootstrap_interval(scores, lambda drawn: drawn.mean(-1))
        results[name] = {"mean": float(scores.mean()), "interval": [low, high], "over": "seeds", "scores": scores.tolist()}
        print(f"| {name} | {scores.mean():.3f} [{low:.3f}, {high:.3f}] |", flush=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "training": TRAINING, "methods": METHODS, "gamma": GAMMA, "steps": STEPS,
        "episodes": EPISODES, "cores": os.cpu_count(), "git": git_state(), "versions": versions(), "results": results,
    }  # fmt: skip
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
