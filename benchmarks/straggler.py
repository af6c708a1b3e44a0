"""What does one slow learner cost, by synchronization mode?

    python benchmarks/straggler.py [--seconds 15] [--iteration 0.1]

Three learners of one policy, whose gradients take `--iteration` seconds each; one takes four times as long. They wait instead of
computing: on a machine with fewer cores than ranks the scheduler would be measured. Everything else is a whole run with its shards and
rollout worker. Counted are gradients that were applied, per second; in bulk synchronous training each update applies three.
Written to benchmarks/results/straggler.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marl_hpc.algorithms.a2c import A2C, A2CConfig

ROOT = Path(__file__).parent.parent
LEARNERS = 3


@dataclass(frozen=True, kw_only=True)
class WaitingConfig(A2CConfig):
    iteration_s: float = 0.1
    slow: float = 1.0  # how many times as long one of them takes
    pause_every: int = 0  # each pauses at every so many iterations, not all at once …
    pause: float = 0.0  # … for as long as so many take
    claims: str = ""  # a folder: learners number themselves by who makes a file there first


class Waiting(A2C):
    """A2C whose gradients take a fixed time."""

    Config = WaitingConfig

    def __init__(self, config: WaitingConfig, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self.steps = 0
        for self.number in range(LEARNERS):
            try:
                os.close(os.open(Path(config.claims) / str(self.number), os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                pass

    def loss(self, minibatch: Mapping[str, torch.Tensor]) -> Any:
        config = self.config
        wait_s = config.iteration_s * (config.slow if self.number == 0 else 1.0)
        self.steps += 1
        if config.pause_every and self.steps % config.pause_every == self.number * config.pause_every // LEARNERS:
            wait_s += config.pause * config.iteration_s
        time.sleep(wait_s)
        return super().loss(dict(minibatch))


def run(seconds: float, iteration_s: float, sync: list[str], **options: float) -> dict[str, Any]:
    """Gradients applied per second, and how many were dropped."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        overrides = [
            "env=matrix/climbing", "algorithm.name=straggler:Waiting", f"algorithm.claims={scratch}", f"algorithm.iteration_s={iteration_s}",
            *[f"algorithm.{key}={value}" for key, value in options.items()], *sync, f"roles.learner={LEARNERS}", "rollout.envs=6",
            "rollout.fragment=25", "budget.env_steps=100000000", f"budget.seconds={seconds}", "evaluate.every_steps=1000000000",
            "evaluate.final_episodes=1", "checkpoint.every_steps=1000000000", f"run.dir={folder}",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
        }
        subprocess.run(
            [sys.executable, "-m", "marl_hpc", *overrides],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "staleness/mean" in line]
    first, last = lines[len(lines) // 5], lines[-1]  # start-up and first contacts left out

    def gradients(line: dict[str, Any]) -> float:
        return line.get("gradients/applied", LEARNERS * line["learner_steps"])

    return {
        "gradients_per_s": (gradients(last) - gradients(first)) / (last["time_s"] - first["time_s"]),
        "dropped": last.get("gradients/dropped", 0.0),
        "spread_max": max((line.get("gradients/spread", 0.0) for line in lines), default=0.0),
    }


def main() -> None:
    from marl_hpc.summary import git_state, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run")
    parser.add_argument("--iteration", type=float, default=0.1, help="seconds that a gradient takes")
    arguments = parser.parse_args()
    limit = f"sync.iteration_s={2 * arguments.iteration}"
    runs = {
        "bsp": (["sync=bsp"], {"slow": 4.0}),
        "asp": (["sync=asp"], {"slow": 4.0}),
        "bap, S = 4, limit 2 iterations": (["sync=bap", "sync.staleness=4", limit], {"slow": 4.0}),
        "bap, S = 4": (["sync=bap", "sync.staleness=4"], {"slow": 4.0}),
        "bap, S = 4, nobody slow": (["sync=bap", "sync.staleness=4"], {}),
        "bap, S = 4, each pauses for 3 of 30": (["sync=bap", "sync.staleness=4"], {"pause_every": 30, "pause": 3}),
        "bsp, nobody slow": (["sync=bsp"], {}),
        "bsp, each pauses for 3 of 30": (["sync=bsp"], {"pause_every": 30, "pause": 3}),
    }
    table = {}
    for name, (sync, options) in runs.items():
        table[name] = run(arguments.seconds, arguments.iteration, sync, **options)
        ratio = table[name]["gradients_per_s"] / table["bsp"]["gradients_per_s"]
        table[name]["of_bsp"] = ratio
        print(
            f"{name:<40} {table[name]['gradients_per_s']:6.2f} gradients/s  {ratio:5.2f} of bsp  {table[name]['dropped']:.0f} dropped",
            flush=True,
        )
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "seconds": arguments.seconds, "iteration_s": arguments.iteration, "learners": LEARNERS, "table": table,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "straggler.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
