"""How many episodes a second do one and two rollout workers simulate for a payoff table?

    python benchmarks/payoff_workers.py [--repeats 5] [--episodes 4000] [--env openspiel_fast/leduc_poker]

PSRO with a tiny best response, so that nearly all there is to do is the table: after each stage every new cell takes so many
episodes. Counted are the seconds from a stage's last learner step to the first of the next, which waits for the table; one worker and two
take turns, on a machine with two cores or more. All runs' tables have to be the same.
Written to benchmarks/results/payoff_workers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
STAGES, STEPS, ITERATION = 5, 640, 160  # environment steps of a stage, of a learner step


def simulate(run_dir: Path, env: str, workers: int, episodes: int) -> tuple[float, Any]:
    """(episodes a second, the table)."""
    command = [
        sys.executable, "-m", "marl_hpc", f"env={env}", "population=psro", "groups=separate", "population.payoffs=simulated",
        f"population.every_steps={STEPS}", f"budget.env_steps={STAGES * STEPS}", f"population.min_episodes={episodes}",
        f"population.max_episodes={episodes}", "rollout.fragment=10", f"rollout.envs={16 // workers}", f"roles.rollout={workers}",
        "evaluate.every_steps=1000000", "evaluate.final_episodes=2", "algorithm.hidden=[64,64]", f"run.dir={run_dir}",
    ]  # fmt: skip
    subprocess.run(
        command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    times = {line["env_steps"]: line["time_s"] for line in lines if "population/size" not in line}  # of learner steps
    boundaries = [stage * STEPS for stage in range(1, STAGES)]
    spent = sum(times[steps + ITERATION] - times[steps] for steps in boundaries)
    played = sum(2 * stage + 1 for stage in range(1, STAGES)) * episodes
    return played / spent, json.loads((run_dir / "population" / "payoffs.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=4000, help="of each cell")
    parser.add_argument("--env", default="openspiel_fast/leduc_poker")
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    tables = []
    for repeat in range(arguments.repeats):
        for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                rate, table = simulate(Path(folder) / "run", arguments.env, workers, arguments.episodes)
            rates[workers].append(rate)
            tables.append(table)
            print(f"{workers} workers: {rate:,.0f} episodes/s", flush=True)
    if any(table != tables[0] for table in tables):
        raise SystemExit("the tables differ")
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(
        f"two workers' rate is {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] of one's; the tables are equal"
    )
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(), "env": arguments.env,
        "episodes of a cell": arguments.episodes, "episodes_per_s": rates, "ratio": statistics.median(ratios), "ratios": ratios,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "payoff_workers.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
