"""Do networked agents who only mix critics with neighbors learn as well as the same agents with one critic of everybody's reward?

The random MDPs of Zhang et al. 2018, section 6, smaller where exact values are wanted: 8 agents, 2 choices each, 20 states. A run is
`marl-hpc experiment=networked/mdp`, and its arms differ in one thing each: who is mixed with whom.

  networked     neighbors on the MDP's own sparse graph, Metropolis-Hastings weights
  centralized   everybody's exact mean after every step. Linear critics and their mixing commute, so that is the same algorithm with one
                critic, trained on the team's average reward
  independent   nobody: private rewards only

Every seed has an MDP, a graph and a run of its own, the same ones in each arm. J, the long-run average of all agents' rewards, is exact:
from the stationary distribution under the product of the final policies. J of uniform policies and the optimum of one who controls all
agents stand beside it. What counts is the share of the centralized arm's gain over uniform policies, (J - J_uniform) / (J_centralized -
J_uniform), over sums of all seeds; at least 0.95 is expected of the networked arm.

Features: policies are tabular (softmax of numbers for each state and choice; the paper's are Boltzmann policies over 5 random features),
critics linear in the state times each agent's choice and the state (340 numbers for 8 agents; the paper's have 10 random features).
With 20 agents, as in the paper, there are 2^20 joint actions, and J is simulated.

    python benchmarks/networked_mdp.py [--seeds 5] [--jobs 1] [--runs FOLDER] [--output FILE]
    python benchmarks/networked_mdp.py --longer 4000000      # one networked run of algorithm 1 that goes on: do critics go on to agree?

Runs that are finished already in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marl_hpc.actors import Actor
from marl_hpc.envs.networked.average_reward import average_reward, optimum, product_policy
from marl_hpc.envs.networked.mdp import RandomMDP, simulated_average_reward
from marl_hpc.policies import load_networks
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
EXPECTED = 0.95
ARMS = {
    "networked": (),
    "centralized": ("topology=complete", "topology.weights=uniform"),
    "independent": ("topology.mix=none",),
}
ALGORITHMS = {
    "action_value": (),
    # a reward model is a regression, whose largest stable step is a smaller one
    "state_value": ("algorithm.critic=state_value", "algorithm.lr=200", "algorithm.critic_lr=1.5"),
}
MANY = ("env.agents=20", "algorithm.critic_lr=1.5")
SIMULATED = {"steps": 2000, "copies": 64, "burn_in": 100}


class Case:
    """One run: an algorithm, an arm, a seed."""

    def __init__(self, runs: Path, agents: int, algorithm: str, arm: str, seed: int, steps: int | None = None) -> None:
        self.agents, self.algorithm, self.arm, self.seed = agents, algorithm, arm, seed
        self.folder = runs / f"{agents}-{algorithm}-{arm}-{seed}{f'-{steps}' if steps else ''}"
        self.settings = [*ALGORITHMS[algorithm], *ARMS[arm], *(MANY if agents == 20 else ())]
        if steps:
            self.settings.append(f"budget.env_steps={steps}")

    def run(self) -> None:
        """Train, unless that's done. Raises RuntimeError with the end of its output where it fails."""
        if (self.folder / "summary.json").exists():
            return
        overrides = [
            "experiment=networked/mdp", *self.settings, f"seed={self.seed}", f"env.mdp_seed={self.seed}", "world=inline",
            "evaluate.every_steps=1000000", "evaluate.final_episodes=1", f"run.dir={self.folder}", "run.resume=auto",
        ]  # fmt: skip
        command = [sys.executable, "-m", "marl_hpc", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def result(self) -> dict[str, Any]:
        """J of the final policies, and how far critics were apart on the way."""
        policies = policies_of(self.folder)
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        curve = [(line["env_steps"], line["consensus/error"]) for line in lines if "consensus/error" in line]
        thinned = curve[:: max(1, len(curve) // 40)] + curve[-1:]
        summary = json.loads((self.folder / "summary.json").read_text())
        record: dict[str, Any] = {"seed": self.seed, "env_steps": summary["env_steps"], "wall_s": round(summary["wall_s"], 1)}
        record["entropy"] = float(-(policies * np.log(policies.clip(1e-300))).sum(-1).mean())
        record["consensus_error"] = [[steps, float(f"{error:.4g}")] for steps, error in thinned]
        return record | value(self.agents, self.seed, policies)


def policies_of(folder: Path) -> np.ndarray:
    """Final policies [N, S, A] of a run, whose agents observe the state as a one-hot."""
    (actor,) = load_networks(folder).values()
    assert isinstance(actor, Actor)
    name, agents, states = actor.group.name, len(actor.group.agents), actor.group.observation_shape[0]
    seen = torch.eye(states).unsqueeze(1).expand(1, -1, agents, -1)
    inputs = {name: {"observation": seen, "active": torch.ones(seen.shape[:-1], dtype=torch.bool)}}
    with torch.no_grad():
        logits = actor.parameters_of(inputs, torch.zeros(0), torch.zeros(seen.shape[:2], dtype=torch.bool))[name]
    chances = logits[0].movedim(1, 0).double().exp().numpy()
    return chances / chances.sum(-1, keepdims=True)


def value(agents: int, seed: int, policies: np.ndarray) -> dict[str, float]:
    """J: exact, or with its standard error where tables would be too large."""
    mdp = RandomMDP(agents=agents, seed=seed)
    if agents == 8:
        transition, reward = tables(seed)
        return {"j": float(average_reward(transition, reward, product_policy(policies)))}
    estimate = simulated_average_reward(mdp, policies, **SIMULATED)
    return {"j": estimate.mean, "j_standard_error": estimate.standard_error}


@cache
def tables(seed: int) -> tuple[np.ndarray, np.ndarray]:
    transition, reward = RandomMDP(agents=8, seed=seed).tables()
    return transition, reward.mean(-1)


def compare(agents: int, arms: dict[str, list[dict[str, Any]]], seeds: int) -> dict[str, Any]:
    """Arms' J beside the uniform policies' and the optimum, and their shares of the centralized gain."""
    uniform = [value(agents, seed, np.full((agents, 20, 2), 0.5))["j"] for seed in range(seeds)]
    record: dict[str, Any] = {"runs": arms, "j_uniform": uniform}
    if agents == 8:
        record["j_optimum"] = [optimum(*tables(seed)).average for seed in range(seeds)]
    gains = {arm: np.array([run["j"] for run in runs]) - uniform for arm, runs in arms.items()}
    record["share_of_centralized_gain"] = {arm: float(gain.sum() / gains["centralized"].sum()) for arm, gain in gains.items()}
    record["share_by_seed"] = {arm: (gain / gains["centralized"]).tolist() for arm, gain in gains.items()}
    return record


def table(title: str, record: dict[str, Any]) -> str:
    lines = [f"{title}\n", "| | J, mean over seeds | share of the centralized gain | last consensus error |", "|---|---|---|---|"]
    for arm, runs in record["runs"].items():
        errors = [run["consensus_error"][-1][1] for run in runs if run["consensus_error"]]
        last = f"{max(errors):.2g}" if errors else "–"
        lines.append(
            f"| {arm} | {np.mean([run['j'] for run in runs]):.4f} | {record['share_of_centralized_gain'][arm]:.3f} | {last} |"
        )
    lines.append(f"| uniform policies | {np.mean(record['j_uniform']):.4f} | 0 | – |")
    if "j_optimum" in record:
        lines.append(f"| optimum | {np.mean(record['j_optimum']):.4f} | – | – |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of 8 agents")
    parser.add_argument("--seeds-20", type=int, default=1, help="of 20 agents")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "networked_mdp", help="where runs lie")
    parser.add_argument("--longer", type=int, help="environment steps of the one run that goes on")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "networked_mdp.json")
    arguments = parser.parse_args()
    if arguments.longer:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        case = Case(arguments.runs, 8, "action_value", "networked", 0, arguments.longer)
        case.run()
        found = {"runs": {"networked": [case.result()]}, "settings": {"networked": case.settings}}
        write(arguments.output.with_name("networked_mdp-long.json"), {"8 agents, action_value": found})
        return
    asked = [(8, algorithm, arguments.seeds) for algorithm in ALGORITHMS] + [(20, "action_value", arguments.seeds_20)]
    cases = {
        (agents, algorithm): {arm: [Case(arguments.runs, agents, algorithm, arm, seed) for seed in range(seeds)] for arm in ARMS}
        for agents, algorithm, seeds in asked
        if seeds
    }
    arguments.runs.mkdir(parents=True, exist_ok=True)
    results = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (agents, algorithm), arms in cases.items():
            for _ in pool.map(Case.run, [case for group in arms.values() for case in group]):
                pass
            record = compare(
                agents, {arm: [case.result() for case in group] for arm, group in arms.items()}, len(arms["networked"])
            )
            record["settings"] = {arm: group[0].settings for arm, group in arms.items()}
            results[f"{agents} agents, {algorithm}"] = record
            print(table(f"{agents} agents, critic={algorithm}", record) + "\n", flush=True)
            write(arguments.output, results)
    share = results.get("8 agents, action_value", {}).get("share_of_centralized_gain", {}).get("networked", math.inf)
    if share < EXPECTED:
        sys.exit(f"networked agents got {share:.3f} of the centralized gain; at least {EXPECTED} was expected")


def write(path: Path, results: dict[str, Any]) -> None:
    experiment = ROOT / "marl_hpc" / "configs" / "experiment" / "networked" / "mdp.yaml"
    record = {
        "question": (__doc__ or "").splitlines()[0],
        "features": {
            "policies": "tabular: a softmax of numbers for each state and choice",
            "critics": "linear in the state, and the state times each agent's choice (20 + 40 N numbers)",
        },
        "states": 20, "actions": 2, "mdp_seed": "the run's seed", "experiment": experiment.read_text(), "simulated_j": SIMULATED,
        "cores": os.cpu_count(), "git": git_state(), "versions": versions(), "results": results,
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
