"""How well do platoons drive that learn by themselves, by averaging with neighbors, or by talking to them?

    python benchmarks/networked_cacc.py [--scenarios catchup slowdown] [--seeds 3]
    python benchmarks/networked_cacc.py --vehicles 100 --scenarios catchup --ways independent consensus all neurcomm --seeds 5 --steps 160000 --tune

Each run is `experiment=networked/cacc_SCENARIO` with the overrides of its way. With --tune every way is first tried, on two seeds that aren't
among the others, with the same learning rates and values of topology.reward_discount, and goes on with those whose mean score is best:
what agents are rewarded for is no way to learn, and none may have more of it, or be tuned better, than another. The final policies play 100 episodes greedily with `env.near=0`, as the
authors of the task evaluate; the score is theirs, too: the mean over steps of the sum over vehicles of -(headway error)² - (speed error)² -
0.1 (acceleration)², m and s. Beside it stand policies that don't learn from rewards of single steps: the same action always, and a linear
one that all vehicles share, tuned by the cross-entropy method (`benchmarks/cacc_baselines.py`).
Written to benchmarks/results/networked_cacc-VEHICLES.json; runs that the folder has are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cacc_baselines import evaluate, linear, tune

from marl_hpc import envs
from marl_hpc.evaluation import bootstrap_interval
from marl_hpc.policies import load_networks
from marl_hpc.roles.acting import OwnPolicies
from marl_hpc.roles.play import play
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
WAYS = {
    "experiment": [],  # as the experiment has it
    "independent": ["topology.mix=none"],
    "consensus": ["topology.mix=critic"],
    "all": ["topology.mix=all", "topology.rounds=4"],
    "neurcomm": ["topology.mix=critic", "algorithm.messages=neurcomm", "algorithm.gru=16", "algorithm.chunk=20"],
}
# for platoons of more than 8, chosen with `independent` on a tuning seed: a hundred small networks a step, and vehicles that keep further apart
LARGE = ["algorithm.hidden=[32]", "algorithm.epochs=4", "rollout.envs=16", "env.near=20"]
SETTINGS = [
    [f"algorithm.lr={rate}", f"topology.reward_discount={discount}"] for rate in ("1e-3", "3e-3") for discount in (0.5, 0.9)
]
TUNING_SEEDS = 100, 101
LINEAR = {"iterations": 25, "population": 48}
STEPS, EPISODES, ACTIONS = 600, 100, 4


def run(folder: Path, scenario: str, vehicles: int, way: str, seed: int, steps: int | None, setting: list[str]) -> Path:
    path = folder / "-".join(map(str, (scenario, vehicles, way, seed, *(s.partition("=")[2] for s in setting))))
    if not (path / "summary.json").exists():
        overrides = [
            f"experiment=networked/cacc_{scenario}", f"env.vehicles={vehicles}", f"seed={seed}",
            *(LARGE if vehicles > 8 else []), *WAYS[way], "world=inline", f"run.dir={path}", "run.resume=auto", *setting,
            *([] if steps is None else [f"budget.env_steps={steps}", f"algorithm.lr_steps={steps}"]),
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
    parser.add_argument(
        "--tune", action="store_true", help="choose learning rate and reward discount for each way; default: the experiment's"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a core each")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}

    def scored(scenario: str, way: str, seed: int, setting: list[str]) -> dict[str, Any]:
        path = run(arguments.runs, scenario, arguments.vehicles, way, seed, arguments.steps, setting)
        return {"seed": seed, **score(path, scenario, arguments.vehicles)}

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for scenario in arguments.scenarios:
            for way in arguments.ways:
                tuned: dict[str, list[float]] = {}
                setting: list[str] = []
                if arguments.tune:
                    tries = list(product(range(len(SETTINGS)), TUNING_SEEDS))
                    found = pool.map(lambda t, s=scenario, w=way: scored(s, w, t[1], SETTINGS[t[0]]), tries)
                    for (number, _), row in zip(tries, found, strict=True):
                        tuned.setdefault(" ".join(SETTINGS[number]), []).append(row["score"])
                    setting = max(SETTINGS, key=lambda s: np.mean(tuned[" ".join(s)]))
                found = list(pool.map(lambda seed, s=scenario, w=way, o=setting: scored(s, w, seed, o), range(arguments.seeds)))
                scores = [row["score"] for row in found]
                low, high = bootstrap_interval(scores, lambda x: np.mean(x, -1)) if len(scores) > 1 else (scores[0], scores[0])
                table.setdefault(scenario, {})[way] = {
                    "runs": found, "score_mean": float(np.mean(scores)), "interval": [low, high], "tuned": tuned, "setting": setting,
                }  # fmt: skip
                each = " ".join(f"{x:.1f}" for x in scores)
                collisions = sum(row["collisions"] for row in found)
                print(
                    f"{scenario}, {way}: {np.mean(scores):.1f} [{low:.1f}, {high:.1f}] ({each}), {collisions} collisions, {tuned}",
                    flush=True,
                )
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
    if arguments.vehicles > 8:
        size: dict[str, Any] = {"vehicles": arguments.vehicles}
        constants["linear, tuned from seed 0"] = {
            scenario: evaluate(scenario, linear(tune(scenario, 0, **LINEAR, **size)), EPISODES, near=0.0, **size)
            for scenario in arguments.scenarios
        }
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "vehicles": arguments.vehicles,
        "score": "mean over steps, sum over vehicles", "ways": WAYS, "large": LARGE, "tuned over": {"settings": SETTINGS, "seeds": TUNING_SEEDS}, "linear": LINEAR, "constants": constants, "table": table,
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / f"networked_cacc-{arguments.vehicles}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
