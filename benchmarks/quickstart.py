"""What return does the quickstart's run reach, seed by seed, and what does a random policy get?

Both are evaluated on the original environment: mpe2's simple_spread_v3 with 3 agents and its default reward, sum over 25 steps, mean
over agents.

    python benchmarks/quickstart.py [--seeds 3] [--output benchmarks/results/quickstart.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from marl_hpc import envs
from marl_hpc.evaluation import summarize
from marl_hpc.summary import git_state, versions


def random_returns(episodes: int) -> list[float]:
    env = envs.resolve("mpe/simple_spread")()
    random = np.random.default_rng(0)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total = 0.0
        while env.agents:
            _, rewards, _, _, _ = env.step({agent: int(random.integers(5)) for agent in env.agents})
            total += sum(rewards.values()) / 3
        returns.append(total)
    return returns


def train(seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "marl_hpc", "experiment=quickstart", f"seed={seed}", f"run.dir={run_dir}"]
        began = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1800)
        summary = json.loads((run_dir / "summary.json").read_text())
        kept = {key: summary[key] for key in ("env_steps", "learner_steps", "wall_s", "evaluate", "environment")}
        return {"seed": seed, "command_s": time.monotonic() - began, **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quickstart.json")
    arguments = parser.parse_args()
    runs = [train(seed) for seed in range(arguments.seeds)]
    random = summarize(random_returns(2000), scale=runs[0]["evaluate"]["return_scale"])
    print("| policy | return, mean | IQM [95 % interval] | episodes | env steps | seconds |\n|---|---|---|---|---|---|")
    rows = [
        ("random", random, 0, 0.0),
        *((f"trained, seed {r['seed']}", r["evaluate"], r["env_steps"], r["command_s"]) for r in runs),
    ]
    for name, e, steps, seconds in rows:
        low, high = e["interval"]
        print(
            f"| {name} | {e['return_mean']:.2f} | {e['iqm']:.2f} [{low:.2f}, {high:.2f}] | {e['episodes']} | {steps:,} | {seconds:.0f} |"
        )
    arguments.output.parent.mkdir(exist_ok=True)
    record = {
        "question": (__doc__ or "").splitlines()[0],
        "cores": os.cpu_count(),
        "git": git_state(),
        "versions": versions(),
        "random": random,
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
