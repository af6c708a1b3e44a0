"""How well do platoons drive that learn by themselves, from critics shared with neighbors, or by talking to them?

    python benchmarks/networked_cacc.py [--scenarios catchup slowdown] [--seeds 3]
    python benchmarks/networked_cacc.py --scenarios catchup --vehicles 100 --ways independent consensus neurcomm --seeds 5 --steps 160000

Each run is `experiment=networked/cacc_SCENARIO` with the overrides of its way, the same steps and settings for all; platoons of more than
8 vehicles have smaller networks, all with a memory, as messages need one. The final policies play
100 episodes greedily with `env.near=0`, as the authors of the task evaluate; the score is theirs, too: the mean over steps of the sum over
vehicles of -(headway error)² - (speed error)² - 0.1 (acceleration)², m and s. Beside it stand two policies that don't learn from rewards of
single steps: action 3 always, and a linear one tuned by the cross-entropy method (`benchmarks/cacc_baselines.py`, 8 vehicles).
Written to benchmarks/results/networked_cacc-VEHICLES.json; runs that the folder has are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cacc_baselines import evaluate

from marl_hpc import envs
from marl_hpc.evaluation import bootstrap_interval
from marl_hpc.policies import load_networks
from marl_hpc.roles.acting import OwnPolicies
from marl_hpc.roles.play import play
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
WAYS = {
    "independent": ["topology.mix=none", "topology.reward_discount=0"],
    "experiment": [],  # consensus as the experiment has it
    "consensus": ["topology.mix=critic"],
    "neurcomm": ["topology.mix=critic", "algorithm.messages=neurcomm"],
}
LARGE = ["algorithm.hidden=[16]", "algorithm.gru=16", "algorithm.chunk=20", "algorithm.epochs=4", "rollout.envs=16"]
STEPS, EPISODES, ACTIONS = 600, 100, 4


def run(folder: Path, scenario: str, vehicles: int, way: str, seed: int, steps: int | None) -> Path:
    path = folder / f"{scenario}-{vehicles}-{way.replace(', ', '-').replace(' ', '_')}-{seed}"
    if not (path / "summary.json").exists():
        overrides = [
            f"experiment=networked/cacc_{scenario}", f"env.vehicles={vehicles}", f"seed={seed}",
            *(LARGE if vehicles > 8 else []), *WAYS[way], "world=inline", f"run.dir={path}",
            "run.resume=auto", *([] if steps is None else [f"budget.env_steps={steps}", f"algorithm.lr_steps={steps}"]),
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return path


def score(path: Path, scenario: str, vehicles: int) -> dict[str, Any]:
    """What a run's final policies score, and how many of their episodes end in a collision."""
    env = envs.make("networked/cacc", copies=20, scenario=scenario, vehicles=vehicles, near=0.0)
    rows = np.array(play(env, OwnPolicies(load_networks(path)), range(EPISODES), seed=1, greedy=True))
    scores = rows[:, 0] * vehicles / rows[:, 1]
    summary = json.loads((path / "summary.json").read_text())
    return {
        "score": float(scores.mean()), "collisions": int((rows[:, 1] < STEPS).sum()), "episodes": EPISODES, "env_steps": summary["env_steps"],
        "wall_s": summary["wall_s"], "git": summary["git"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=["catchup", "slowdown"], choices=["catchup", "slowdown"])
    parser.add_argument("--vehicles", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=["experiment"], choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="environment steps; default: the experiment's")
    parser.add_argument("--runs", type=Path, default=Path("runs/networked_cacc"))
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    for scenario in arguments.scenarios:
        for way in arguments.ways:
            found = []
            for seed in range(arguments.seeds):
                path = run(arguments.runs, scenario, arguments.vehicles, way, seed, arguments.steps)
                found.append({"seed": seed, **score(path, scenario, arguments.vehicles)})
            scores = [row["score"] for row in found]
            low, high = bootstrap_interval(scores, lambda x: np.mean(x, -1)) if len(scores) > 1 else (scores[0], scores[0])
            table.setdefault(scenario, {})[way] = {"runs": found, "score_mean": float(np.mean(scores)), "interval": [low, high]}
            each = " ".join(f"{x:.1f}" for x in scores)
            collisions = sum(row["collisions"] for row in found)
            print(f"{scenario}, {way}: {np.mean(scores):.1f} [{low:.1f}, {high:.1f}] ({each}), {collisions} collisions", flush=True)
    constants: dict[str, dict[str, Any]] = {}
    for action in range(ACTIONS):
        constants[f"constant action {action}"] = {
            scenario: evaluate(
                scenario, lambda seen, a=action: np.full(seen.shape[:2], a), EPISODES, vehicles=arguments.vehicles, near=0.0
            )
            for scenario in arguments.scenarios
        }
        print(
            f"action {action} always: "
            + ", ".join(f"{s} {row['mean']:.1f}" for s, row in constants[f"constant action {action}"].items())
        )
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "vehicles": arguments.vehicles,
        "score": "mean over steps, sum over vehicles", "ways": WAYS, "large": LARGE, "constants": constants, "table": table,
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / f"networked_cacc-{arguments.vehicles}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
