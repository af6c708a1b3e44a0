"""Do asynchronous learners end where bulk synchronous ones do, after the same number of samples?

    python benchmarks/synchronization.py [--seeds 5] [--steps 300000]

Three learners of one policy learn simple_spread (the vectorized port; three agents, 25 steps) in each synchronization mode with the same
settings; the final policies play 200 episodes. Printed are the returns (sum over steps, mean over agents), and whether a mode's mean over
seeds lies in the 95 % interval of bulk synchronous training's. Written to benchmarks/results/synchronization.json.
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
from scipy import stats

from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
MODES = {
    "bsp": ["sync=bsp"],
    "asp": ["sync=asp"],
    "asp, V-trace": ["sync=asp", "algorithm.correction=vtrace"],
    "bap, S = 2": ["sync=bap", "sync.staleness=2"],
}


def run(sync: list[str], seed: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        overrides = [
            "env=mpe_fast/simple_spread", "algorithm.gamma=0.95", "algorithm.gae_lambda=0.9", "rollout.envs=48", "rollout.fragment=25",
            "roles.learner=3", f"budget.env_steps={steps}", f"evaluate.every_steps={steps}", "evaluate.final_episodes=200",
            f"seed={seed}", *sync, f"run.dir={folder}",
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learned = [line for line in lines if "staleness/mean" in line]
    means = {
        key: float(np.mean([line[key] for line in learned if key in line]))
        for key in ("staleness/mean", "gradients/delay_mean")
        if any(key in line for line in learned)
    }
    return {"seed": seed, "env_steps": summary["env_steps"], "wall_s": summary["wall_s"], "evaluate": summary["evaluate"], **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300_000)
    arguments = parser.parse_args()
    table: dict[str, Any] = {}
    for name, sync in MODES.items():
        runs = [run(sync, seed, arguments.steps) for seed in range(arguments.seeds)]
        returns = [r["evaluate"]["return_mean"] for r in runs]
        low, high = stats.t.interval(0.95, len(returns) - 1, np.mean(returns), stats.sem(returns))
        table[name] = {"runs": runs, "return_mean": float(np.mean(returns)), "interval": [float(low), float(high)]}
        low, high = table["bsp"]["interval"]
        inside = "inside" if low <= table[name]["return_mean"] <= high else "outside"
        each = " ".join(f"{value:.2f}" for value in returns)
        print(f"{name:<14} {table[name]['return_mean']:.2f} ({each}), {inside} bsp's [{low:.2f}, {high:.2f}]", flush=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "return_scale": "sum over steps, mean over agents", "table": table,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "synchronization.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
