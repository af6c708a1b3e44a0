"""How much of the bare environment's speed does a whole training run keep, by layout of roles?

Ceiling: the environment alone, stepped with random actions in one process, in the same script on the same machine. Beside it whole
training runs (environments, inference, transport, learning) of several layouts, in environment steps per second of wall time and per
second of CPU time of all their processes. Each is repeated; the table gives the median and the spread. Wall time counts training, not
start-up.

    python benchmarks/throughput.py [--repeats 5] [--env-steps 32000] [--output benchmarks/results/throughput.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from marl_hpc import envs
from marl_hpc.summary import git_state, versions

LAYOUTS = {
    "inline (1 process)": ["world=inline"],
    "1 learner + 1 rollout + 1 + 1": [],
    "1 learner + 2 rollout + 1 + 1": ["roles.rollout=2", "rollout.envs=16"],
    "2 learners + 1 rollout + 1 + 1": ["roles.learner=2"],
}


def bare_loop(env_steps: int, copies: int = 32) -> dict[str, float]:
    """Environment steps per second of stepping and resetting alone."""
    environments = [envs.resolve("mpe/simple_spread")() for _ in range(copies)]
    random = np.random.default_rng(0)
    for env in environments:
        env.reset(seed=0)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(env_steps // copies):
        actions = random.integers(0, 5, (copies, 3))
        for env, chosen in zip(environments, actions, strict=True):
            env.step({agent: int(action) for agent, action in zip(env.agents, chosen, strict=True)})
            if not env.agents:
                env.reset()
    return {"per_second": env_steps / (time.perf_counter() - began), "per_cpu_second": env_steps / (time.process_time() - cpu)}


def training(env_steps: int, overrides: list[str]) -> dict[str, float]:
    """One whole run; its CPU time is that of all its role processes from their start on, start-up of Python left out."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [
            sys.executable, "-m", "marl_hpc", "experiment=quickstart", f"budget.env_steps={env_steps}", f"run.dir={run_dir}",
            "evaluate.every_steps=100000000", "evaluate.final_episodes=1", *overrides,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        summary = json.loads((run_dir / "summary.json").read_text())
        # the comparison counts only if the run did what it was asked to
        assert summary["env_steps"] >= env_steps, summary["env_steps"]
        assert summary["learner_steps"] * 32 * 50 == summary["env_steps"], summary["learner_steps"]
        cpu_s = sum(entry["cpu_since_start_s"] for entry in summary["time_split"].values())
        return {"per_second": summary["env_steps"] / summary["wall_s"], "per_cpu_second": summary["env_steps"] / cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=32_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "throughput.json")
    arguments = parser.parse_args()
    bare_loop(3200)  # warm-up
    results: dict[str, list[dict[str, float]]] = {"bare environment loop": [], **{name: [] for name in LAYOUTS}}
    for _ in range(arguments.repeats):  # interleaved, so that what else the machine does meets all alike
        results["bare environment loop"].append(bare_loop(arguments.env_steps))
        for name, overrides in LAYOUTS.items():
            results[name].append(training(arguments.env_steps, overrides))
    ceiling = statistics.median(r["per_second"] for r in results["bare environment loop"])
    ceiling_cpu = statistics.median(r["per_cpu_second"] for r in results["bare environment loop"])
    print("| layout | env steps/s | of the bare loop | env steps per CPU-s | of the bare loop |\n|---|---|---|---|---|")
    table = {}
    for name, runs in results.items():
        wall, cpu = ([r[key] for r in runs] for key in ("per_second", "per_cpu_second"))
        row = {
            "env_steps_per_s": statistics.median(wall), "env_steps_per_s_range": [min(wall), max(wall)],
            "env_steps_per_cpu_s": statistics.median(cpu), "env_steps_per_cpu_s_range": [min(cpu), max(cpu)],
        }  # fmt: skip
        table[name] = row
        print(
            f"| {name} | {row['env_steps_per_s']:,.0f} ({min(wall):,.0f}–{max(wall):,.0f}) | {row['env_steps_per_s'] / ceiling:.2f} "
            f"| {row['env_steps_per_cpu_s']:,.0f} ({min(cpu):,.0f}–{max(cpu):,.0f}) | {row['env_steps_per_cpu_s'] / ceiling_cpu:.2f} |"
        )
    arguments.output.parent.mkdir(exist_ok=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "environment": "mpe2 simple_spread_v3, 3 agents, 25 steps", "repeats": arguments.repeats,
        "env_steps": arguments.env_steps, "cores": os.cpu_count(), "git": git_state(), "versions": versions(), "table": table,
        "peak_memory_mb_of_largest_child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
