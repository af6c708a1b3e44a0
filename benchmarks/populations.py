"""How far from equilibrium do learned populations come, by scheme, in how many steps and minutes?

    python benchmarks/populations.py kuhn_psro leduc_mmd … [--seeds 5] [--runs FOLDER] [OVERRIDE …]

Each run is `experiment=population/NAME` in one process on one core, unless an override such as roles.learner=2 asks for more. NashConv is a sum over players, of what the scheme amounts to: PSRO's
meta-strategy weighted by reach, the last policy of self-play, NFSP's average network. It is checked by OpenSpiel on the exported policy.
The computed double oracle (`experiment=kuhn_psro_exact`, `leduc_psro_exact`) stands beside, by iteration. Runs that the folder has are not
repeated. Written to benchmarks/results/populations.json, an entry a name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyspiel

from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "marl_hpc" / "configs" / "experiment" / "population"
RESULTS = ROOT / "benchmarks" / "results" / "populations.json"


def run(folder: Path, experiment: str, overrides: list[str]) -> dict[str, Any]:
    """Train, unless that's done: the curve of NashConv, and what OpenSpiel says of what was exported."""
    if not (folder / "summary.json").exists():
        alone = [] if any(override.startswith("roles.") for override in overrides) else ["world=inline"]
        command = [sys.executable, "-m", "marl_hpc", f"experiment={experiment}", *alone, f"run.dir={folder}", *overrides]
        subprocess.run(
            command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["env_steps"], line["time_s"], line["population/nash_conv"]) for line in lines if "population/nash_conv" in line]
    summary = json.loads((folder / "summary.json").read_text())
    game = pyspiel.load_game(summary["environment"]["version"].split()[2])
    checked = pyspiel.nash_conv(game, pyspiel.TabularPolicy(json.loads((folder / "population" / "policy.json").read_text())))
    if abs(checked - curve[-1][2]) > 1e-6:
        raise SystemExit(f"{folder}: NashConv is {curve[-1][2]} by marl_hpc and {checked} by OpenSpiel")
    return {
        "curve": [[steps, round(seconds, 1), round(gap, 6)] for steps, seconds, gap in curve], "nash_conv": curve[-1][2],
        "best": min(gap for *_, gap in curve), "env_steps": summary["env_steps"], "wall_s": summary["wall_s"], "git": summary["git"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(sorted(path.stem for path in EXPERIMENTS.glob('*.yaml')))}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "populations")
    arguments = parser.parse_intermixed_args()
    overrides = [name for name in arguments.names if "=" in name]
    names = [name for name in arguments.names if "=" not in name] or sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    arguments.runs.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": {}}
    for name in names:
        game = name.partition("_")[0]
        beside = run(arguments.runs / f"{game}_psro_exact", f"{game}_psro_exact", [])
        runs = []
        for seed in range(arguments.seeds):
            found = run(arguments.runs / f"{name}-{seed}", f"population/{name}", [f"seed={seed}", *overrides])
            runs.append({"seed": seed, **found})
            print(f"{name}, seed {seed}: NashConv {found['nash_conv']:.4f} (best {found['best']:.4f}) after {found['env_steps']:,} steps, "
                  f"{found['wall_s'] / 60:.1f} minutes", flush=True)  # fmt: skip
        record["entries"][name] = {"runs": runs, "overrides": overrides, "computed": [gap for *_, gap in beside["curve"]]}
        record |= {"question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count()}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
