"""Do agents who know only their own rewards learn to earn the most together, over a graph? Zhang et al. 2018's experiment.

    python benchmarks/networked_mdp.py [--agents 8] [--seeds 5] [--steps 400000] [--version 2]

A random MDP per seed: 20 states, 2 actions an agent, private mean rewards uniform in [0, 4] with noise within 0.5 (`networked/mdp`). Policies
are Boltzmann over one hidden layer of a one-hot state (features are learned, not given); critics see the state and all actions as one-hots,
one hidden layer each. Three ways with the same settings: critics averaged over the MDP's graph of 2 (N - 1) edges (networked), over a
complete graph with equal weights (the exact mean each step: what a center would do), and not at all (each for its own reward).

J is the long-run average reward of the final policies, a mean over agents: exact from the stationary distribution where the joint actions
can be written out (8 agents: 256), else simulated. Also printed: J of uniform play, the optimum where it can be computed, and how far
critics are from their mean, relative to it. Written to benchmarks/results/networked_mdp-AGENTS.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats

from marl_hpc.envs.networked.average_reward import average_reward, optimum, product_policy
from marl_hpc.envs.networked.mdp import RandomMDP, simulated_average_reward
from marl_hpc.policies import load_networks
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
WAYS = {
    "networked": [],
    "complete": ["topology=complete", "topology.weights=uniform"],
    "alone": ["topology.mix=none"],
}
SETTINGS = [
    "env=networked/mdp", "paradigm=networked", "algorithm=networked_ac", "algorithm.hidden=[32]", "algorithm.lr=3e-3", "algorithm.entropy=0.05",
    "algorithm.critic_lr=0.01", "algorithm.critic_lr_exponent=0.1", "rollout.envs=32", "rollout.fragment=8", "rollout.max_lag=0", "world=inline",
    "evaluate.final_episodes=1", "evaluate.episodes=1", "evaluate.every_steps=100000000",
]  # fmt: skip


def run(way: str, agents: int, seed: int, steps: int, version: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        overrides = [
            *SETTINGS, *WAYS[way], f"env.agents={agents}", f"env.mdp_seed={seed}", f"seed={seed}", f"budget.env_steps={steps}",
            f"checkpoint.every_steps={steps}", f"algorithm.version={version}", f"run.dir={folder}",
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        mdp = RandomMDP(agents=agents, seed=seed)
        policies = probabilities(folder, mdp)
        (checkpoint,) = sorted((folder / "checkpoints").iterdir())[-1:]
        rows = load_file(checkpoint / "learner-shared.safetensors")["values"]
        distances = [line["consensus/distance"] for line in lines(folder) if "consensus/distance" in line]
    found: dict[str, Any] = {"seed": seed, "env_steps": steps, "J": earned(mdp, policies)}
    if distances:
        found["consensus"] = {"distance_first": distances[0], "distance_last": float(np.mean(distances[-10:]))}
    width = policy_width(mdp)
    critics = rows[:, width:].double()
    found["critic_spread"] = float((critics - critics.mean(0)).norm() / (len(critics) ** 0.5 * critics.mean(0).norm()))
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def policy_width(mdp: RandomMDP) -> int:
    """Numbers of one agent's policy: one hidden layer of 32."""
    return mdp.states * 32 + 32 + 32 * mdp.actions + mdp.actions


def probabilities(folder: Path, mdp: RandomMDP) -> np.ndarray:
    """The policies [N, S, A] of a run."""
    (network,) = load_networks(folder).values()
    (group,) = network.groups
    seen = torch.eye(mdp.states).unsqueeze(1).expand(-1, mdp.agents, -1).unsqueeze(0)
    fields = {"observation": seen, "active": torch.ones(seen.shape[:-1], dtype=torch.bool)}
    with torch.no_grad():
        said = network.parameters_of({group.name: fields}, torch.zeros(0), torch.zeros(1, mdp.states, dtype=torch.bool))[group.name]
    chance = said.double().exp()[0].transpose(0, 1).numpy()
    return chance / chance.sum(-1, keepdims=True)


def earned(mdp: RandomMDP, policies: np.ndarray) -> float:
    """J, in reward units a step: exact where there are tables."""
    if mdp.agents <= 8:
        tables = mdp.tables()
        return float(average_reward(tables.transition, tables.reward.mean(-1), product_policy(policies)))
    return simulated_average_reward(mdp, policies, steps=2000, copies=64).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--version", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        mdp = RandomMDP(agents=arguments.agents, seed=seed)
        uniform = earned(mdp, np.full((mdp.agents, mdp.states, mdp.actions), 1 / mdp.actions))
        row: dict[str, Any] = {"seed": seed, "uniform": uniform}
        if arguments.agents <= 8:
            tables = mdp.tables()
            row["optimum"] = optimum(tables.transition, tables.reward.mean(-1)).average
        for way in WAYS:
            row[way] = run(way, arguments.agents, seed, arguments.steps, arguments.version)
        row["ratio"] = (row["networked"]["J"] - uniform) / (row["complete"]["J"] - uniform)
        rows.append(row)
        best = f", optimum {row['optimum']:.4f}" if "optimum" in row else ""
        print(
            f"seed {seed}: uniform {uniform:.4f}, alone {row['alone']['J']:.4f}, networked {row['networked']['J']:.4f}, complete "
            f"{row['complete']['J']:.4f}{best}; ratio {row['ratio']:.3f}; critics differ by {row['networked']['critic_spread']:.1e}, alone "
            f"{row['alone']['critic_spread']:.1e}",
            flush=True,
        )
    ratios = [row["ratio"] for row in rows]
    record: dict[str, Any] = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "settings": SETTINGS, "ways": WAYS,
        "version": arguments.version, "agents": arguments.agents, "env_steps": arguments.steps, "rows": rows, "ratio_mean": float(np.mean(ratios)),
    }  # fmt: skip
    if len(ratios) > 1:
        record["ratio_interval"] = list(map(float, stats.t.interval(0.95, len(ratios) - 1, np.mean(ratios), stats.sem(ratios))))
    path = ROOT / "benchmarks" / "results" / f"networked_mdp-{arguments.agents}-{arguments.version}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"ratio {record['ratio_mean']:.3f} {record.get('ratio_interval', '')}")


if __name__ == "__main__":
    main()
