"""What return does each algorithm reach, on games whose best return is known and on those of the literature?

    python benchmarks/learning.py                    # all that isn't done yet, then the results
    python benchmarks/learning.py climbing spread/mappo --seeds 2 --jobs 2 --minutes 40

A run is `marl-hpc experiment=SUITE/NAME seed=S`, all its settings in marl_hpc/configs/experiment/SUITE/NAME.yaml. One that takes longer
than --minutes is stopped, its checkpoint kept, and goes on the next time; one that reaches its `budget.return_mean` ends there. Final
policies play 100 episodes, greedily and by sampling, on the original environment where training ran on a port of it.
Written to benchmarks/results/learning/SUITE.json, with the commit of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import marl_hpc
from marl_hpc.evaluation import bootstrap_interval, interquartile_mean
from marl_hpc.summary import git_state, versions
from marl_hpc.train import evaluate_run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning"
EXPERIMENTS = Path(marl_hpc.__file__).parent / "configs" / "experiment"


class Suite(NamedTuple):
    seeds: int
    episodes: int = 100
    play: tuple[str, ...] = ()  # the environment that final policies are evaluated on, where it isn't that of training


SUITES = {
    "climbing": Suite(5, 4),
    "penalty": Suite(5, 4),
    "penalty0": Suite(5, 4),
    "two_step": Suite(5, 4),
    "memory": Suite(5),
    "foraging": Suite(3, 400, play=("env.name=lbf/8x8-2p-2f-coop",)),
    "spread": Suite(3, play=("env.name=mpe/simple_spread",)),
    "speaker_listener": Suite(10, play=("env.name=mpe/simple_speaker_listener",)),
    "tictactoe": Suite(3),
}


def names(suite: str) -> list[str]:
    return sorted(path.stem for path in (EXPERIMENTS / suite).glob("*.yaml"))


def run(suite: str, name: str, seed: int, runs: Path, minutes: float) -> str:
    """Train until the run ends or its minutes are over; what it ended with."""
    folder = runs / f"{suite}-{name}-{seed}"
    if status(folder) != "finished":
        folder.mkdir(parents=True, exist_ok=True)
        overrides = [f"experiment={suite}/{name}", f"seed={seed}", f"run.dir={folder}", "run.resume=auto", "world=inline"]
        with open(runs / f"{folder.name}.log", "ab") as log:
            command = [sys.executable, "-m", "marl_hpc", *overrides]
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
            try:
                process.wait(minutes * 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait()
    return status(folder)


def status(folder: Path) -> str:
    path = folder / "summary.json"
    return json.loads(path.read_text())["status"] if path.exists() else "not run"


def result(suite: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a run reached: its curve, and its final policies' return both ways."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["env_steps"], line["evaluate/return_mean"]) for line in lines if "evaluate/return_mean" in line]
    record = {key: summary[key] for key in ("status", "env_steps", "wall_s", "exit_reason", "environment", "git") if key in summary}
    record |= {"seed": seed, "curve": curve, "return_scale": (summary.get("evaluate") or {}).get("return_scale")}
    if summary["status"] == "finished":
        for way in ("greedy", "sampled"):
            options = [f"episodes={SUITES[suite].episodes}", f"greedy={way == 'greedy'}".lower(), *SUITES[suite].play]
            played = json.loads(evaluate_run(folder, options))
            record[way] = {key: played[key] for key in ("return_mean", "iqm", "mean_interval", "episodes", "environment")}
    return record


def collect(suite: str, name: str, seeds: int, runs: Path) -> None:
    """Write what the runs of an entry have reached so far."""
    path = RESULTS / f"{suite}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    folders = {seed: runs / f"{suite}-{name}-{seed}" for seed in range(seeds)}
    done = [result(suite, seed, folder) for seed, folder in folders.items() if status(folder) != "not run"]
    settings = (EXPERIMENTS / suite / f"{name}.yaml").read_text()
    if done:
        record |= {"cores": os.cpu_count(), "git": git_state(), "versions": versions()}
        record.setdefault("entries", {})[name] = {
            "command": f"marl-hpc experiment={suite}/{name}",
            "settings": settings,
            "runs": done,
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{suite}/{name}: {line(done)}", flush=True)


def line(done: list[dict[str, Any]]) -> str:
    finished = [r for r in done if r["status"] == "finished"]
    if not finished:
        return f"{len(done)} runs, none finished"
    means = [r["greedy"]["return_mean"] for r in finished]
    low, high = bootstrap_interval(means) if len(means) > 1 else (means[0], means[0])
    each = " ".join(f"{mean:.4g}" for mean in means)
    return f"greedy IQM {float(interquartile_mean(means)):.4g} [{low:.4g}, {high:.4g}], by seed {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="SUITE or SUITE/NAME; default: all")
    parser.add_argument("--seeds", type=int, help="the first so many, instead of all of a suite's")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument("--minutes", type=float, default=40.0, help="of one run before it is put off")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning", help="where runs lie")
    arguments = parser.parse_args()
    asked = arguments.what or list(SUITES)
    entries = [(s, n) for s in SUITES for n in names(s) if s in asked or f"{s}/{n}" in asked]
    unknown = [what for what in asked if what not in SUITES and tuple(what.split("/")) not in entries]
    if unknown or not entries:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(f'{s}/{n}' for s in SUITES for n in names(s))}")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    seeds = {suite: min(arguments.seeds or SUITES[suite].seeds, SUITES[suite].seeds) for suite in SUITES}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for suite, name in entries:
            waiting = [pool.submit(run, suite, name, seed, arguments.runs, arguments.minutes) for seed in range(seeds[suite])]
            for future in waiting:
                future.result()
            collect(suite, name, seeds[suite], arguments.runs)


if __name__ == "__main__":
    main()
