"""How many agents learn at once on this machine, and where does the time go?

    python benchmarks/networked_scale.py [--sizes 10000 1000000]

Networked PPO with consensus critics on `networked/wireless`, users on a square grid who learn from what they see themselves, each with
networks of its own. 10,000 agents are divided over 4 learners and 4 rollout workers; 1,000,000 over 2 and 2, for a few steps only, with
small networks: their parameters, optimizer states and one fragment fill the memory. Counted is training as a whole, without set-up and
evaluation; the split is of each rank's time, computing and waiting. Written to benchmarks/results/networked_scale.json.
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
from typing import Any

from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
COMMON = [
    "env=networked/wireless", "env.users_per_cell=1", "paradigm=networked", "algorithm=ppo", "algorithm.epochs=2", "algorithm.minibatches=2",
    "evaluate.every_steps=1000000", "evaluate.final_episodes=1", "checkpoint.every_steps=1000000", "timeouts.scale=4",
]  # fmt: skip
RUNS = {
    10_000: [
        "env.height=100", "env.width=100", "rollout.envs=2", "rollout.fragment=20", "budget.env_steps=800", "roles.learner=4",
        "roles.rollout=4", "algorithm.hidden=[32]",
    ],
    1_000_000: [
        "env.height=1000", "env.width=1000", "env.episode_steps=4", "rollout.envs=1", "rollout.fragment=4", "budget.env_steps=12",
        "roles.learner=2", "roles.rollout=2", "algorithm.hidden=[4]", "rollout.max_lag=0",
    ],
}  # fmt: skip


def run(agents: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*COMMON, *RUNS[agents], f"run.dir={folder}/run"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )  # fmt: skip
        took_s = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{done.stderr}")
        path = Path(folder) / "run"
        summary = json.loads((path / "summary.json").read_text())
        logs = "\n".join(log.read_text() for log in (path / "logs").glob("rank_*.log"))
        parameters = sum(file.stat().st_size for file in (path / "policies").glob("*.safetensors")) // 4
    layout = next(line.partition("| ")[2] for line in logs.splitlines() if "agents on" in line)
    split: dict[str, dict[str, float]] = {}
    for entry in summary["time_split"].values():
        kind = split.setdefault(entry["role"].partition("/")[0], {})
        for name, seconds in [*entry["computing"].items(), *((f"waiting for {k}", v) for k, v in entry["waiting"].items())]:
            kind[name] = kind.get(name, 0.0) + seconds
    return {
        "agents": agents, "overrides": overrides[:-1], "layout": layout, "env_steps": summary["env_steps"], "agent_steps": summary["agent_steps"],
        "agent_steps_per_s": summary["env_steps_per_s"] * agents, "training_s": summary["wall_s"], "whole_s": took_s,
        "parameters_of_policies": parameters, "split_s": split,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(RUNS), choices=list(RUNS))
    arguments = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "networked_scale.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    for agents in arguments.sizes:
        found = run(agents)
        record["runs"][str(agents)] = found
        print(
            f"{agents:,} agents: {found['agent_steps_per_s']:,.0f} agent-steps/s in training ({found['training_s']:.1f} s of {found['whole_s']:.1f} s), "
            f"{found['layout']}"
        )
        for kind, parts in found["split_s"].items():
            print(
                f"  {kind}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(parts.items(), key=lambda p: -p[1]))
            )
    record |= {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
