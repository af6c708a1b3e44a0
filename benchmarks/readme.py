"""Writes the measured numbers from benchmarks/results/ into the README, between its markers; a number there is never typed.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from marl_hpc.evaluation import bootstrap_interval, interquartile_mean, probability_of_improvement

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def tables() -> str:
    quickstart, throughput = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("quickstart", "throughput"))
    first = quickstart["runs"][0]
    lines = [
        f"`python benchmarks/quickstart.py`: {first['environment']['version']}, 3 agents, return as {first['evaluate']['return_scale']}, "
        f"{quickstart['cores']} cores, commit {quickstart['git']['commit'][:8]}.",
        "",
        "| policy | return, mean | IQM [95 % interval] | episodes | environment steps | seconds with start-up |",
        "|---|---|---|---|---|---|",
    ]
    rows = [("random", quickstart["random"], 0, 0)]
    rows += [(f"quickstart, seed {r['seed']}", r["evaluate"], r["env_steps"], r["command_s"]) for r in quickstart["runs"]]
    for name, e, steps, seconds in rows:
        low, high = e["interval"]
        spent = f"{steps:,} | {seconds:.0f}" if steps else "– | –"
        lines.append(f"| {name} | {e['return_mean']:.2f} | {e['iqm']:.2f} [{low:.2f}, {high:.2f}] | {e['episodes']} | {spent} |")
    lines += [
        "",
        f"`python benchmarks/throughput.py`: whole training beside the bare environment loop, {throughput['cores']} cores, median of "
        f"{throughput['repeats']} (range), commit {throughput['git']['commit'][:8]}.",
        "",
        "| layout | environment steps per second | of the bare loop | per CPU-second | of the bare loop |",
        "|---|---|---|---|---|",
    ]
    bare = throughput["table"]["bare environment loop"]
    for name, row in throughput["table"].items():
        low, high = row["env_steps_per_s_range"]
        lines.append(
            f"| {name} | {row['env_steps_per_s']:,.0f} ({low:,.0f}–{high:,.0f}) | {row['env_steps_per_s'] / bare['env_steps_per_s']:.2f} "
            f"| {row['env_steps_per_cpu_s']:,.0f} | {row['env_steps_per_cpu_s'] / bare['env_steps_per_cpu_s']:.2f} |"
        )
    return "\n".join(lines + matrix_games() + learning() + spread() + improvement() + tictactoe())


MATRIX = {
    "climbing": "climbing (best 275, usual trap 175, safe 125)",
    "penalty0": "penalty, k = 0 (best 250)",
    "penalty": "penalty, k = -100 (best 250, safe 50)",
    "two_step": "two-step game, exploring uniformly throughout (best 8, safe 7)",
}
GAMES = {
    "memory": "memory task, cue 20 steps earlier (best 1)",
    "foraging": "Foraging-8x8-2p-2f-coop-v3, mean over its two agents (best 0.5)",
    "spread": "mpe2 simple_spread_v3, 3 agents",
    "speaker_listener": "mpe2 simple_speaker_listener_v4",
}


def matrix_games() -> list[str]:
    """Greedy returns by seed, an algorithm a row."""
    found = {suite: {name: finished(entry) for name, entry in entries(suite).items()} for suite in MATRIX}
    names = sorted({name for runs in found.values() for name in runs})
    if not names:
        return []
    runs = [run for suite in found.values() for done in suite.values() for run in done]
    most = max(run["env_steps"] for run in runs)
    commits = ", ".join(sorted({run["git"]["commit"][:8] for run in runs}))
    return [
        "",
        "`python benchmarks/learning.py climbing penalty0 penalty two_step`: matrix games, 25 repeats where not said otherwise: the final",
        f"policies' greedy return per agent by seed, after at most {most:,} environment steps. Each run is `marl-hpc",
        f"experiment=climbing/mappo seed=0` and so on; commits {commits}.",
        "",
        "| algorithm | " + " | ".join(MATRIX.values()) + " |",
        "|---" * (len(MATRIX) + 1) + "|",
        *(
            f"| {name} | "
            + " | ".join(counted([r["greedy"]["return_mean"] for r in found[suite].get(name, [])]) for suite in MATRIX)
            + " |"
            for name in names
        ),
    ]


def counted(values: list[float]) -> str:
    """Each value, and how often it came where more than once in a row."""
    groups = [(f"{round(value, 2):g}", len(list(same))) for value, same in groupby(values)]
    return ", ".join(text if count == 1 else f"{text} × {count}" for text, count in groups) or "–"


def learning() -> list[str]:
    """One table of what `benchmarks/learning.py` has run beside matrix games."""
    lines = [
        "",
        "`python benchmarks/learning.py`: final policies' return, mean over agents, sum over steps, on the original environments; each run is",
        "`marl-hpc experiment=GAME/ALGORITHM seed=S`. By seed where there are up to five, else IQM [95 % interval].",
        "",
        "| game | algorithm | greedy | sampled | best evaluation | environment steps | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    head = len(lines)
    for suite, title in GAMES.items():
        for name, entry in entries(suite).items():
            done = finished(entry)
            going = len(entry["runs"]) - len(done)
            steps = (
                ", ".join(sorted({f"{r['env_steps']:,}" for r in done}, key=len)) if len(done) <= 5 else f"{done[0]['env_steps']:,}"
            )
            returns = [several([r[way]["return_mean"] for r in done]) for way in ("greedy", "sampled")]
            best = several([max(value for _, value in r["curve"]) for r in done])
            commits = ", ".join(sorted({r["git"]["commit"][:8] for r in done}))
            note = f"; {going} of {len(entry['runs'])} runs not finished" if going else ""
            lines.append(f"| {title} | {name} | {returns[0]} | {returns[1]} | {best} | {steps}{note} | {commits} |")
    return lines if len(lines) > head else []


def spread() -> list[str]:
    """simple_spread on both scales."""
    rows = []
    for name, entry in entries("spread").items():
        if done := finished(entry):
            cells = []
            for values in (
                [r["greedy"]["return_mean"] for r in done],
                [r["sampled"]["return_mean"] for r in done],
                [max(value for _, value in r["curve"]) for r in done],
                [r["curve"][-1][1] for r in done],
            ):
                iqm = float(interquartile_mean(values))
                cells.append(f"{iqm:.2f} ({6 * iqm - 75:.0f})")
            rows.append(f"| {name} | {done[0]['env_steps']:,} | {len(done)} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    return [
        "",
        "simple_spread_v3, IQM over seeds, 100 episodes each: the mean over agents with mpe2's default reward, and in brackets the scale of",
        "Papoudakis et al. (2021), per agent, which is 6 × the first - 75 (three times the shared term, every contact, and a constant 75).",
        "",
        "| algorithm | environment steps | seeds | last, greedy | last, sampled | best evaluation in training, on the port | last evaluation, on the port |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def improvement() -> list[str]:
    """How likely a run of MAPPO has the better evaluation curve than one of IPPO on simple_speaker_listener."""
    found = {name: finished(entry) for name, entry in entries("speaker_listener").items()}
    if not (found.get("mappo") and found.get("ippo")):
        return []
    areas = {name: [area(r["curve"]) for r in runs] for name, runs in found.items()}
    chance, low, high = probability_of_improvement(areas["mappo"], areas["ippo"])
    return [
        "",
        f"simple_speaker_listener_v4: a run of MAPPO has a larger area under its evaluation curve than one of IPPO with probability {chance:.2f}",
        f"[{low:.2f}, {high:.2f}] ({len(found['mappo'])} and {len(found['ippo'])} seeds, {found['mappo'][0]['env_steps']:,} environment steps; "
        f"mean evaluation {np.mean(areas['mappo']):.1f} and {np.mean(areas['ippo']):.1f}).",
    ]


def area(curve: list[list[float]]) -> float:
    """Mean height of an evaluation curve, by the trapezoid rule."""
    steps, values = np.array(curve).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def tictactoe() -> list[str]:
    path = RESULTS / "tictactoe.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    lines = [
        "",
        "`python benchmarks/tictactoe.py`: PettingZoo's tictactoe_v3 after self-play (`experiment=tictactoe/ppo`), greedy against random.",
        "",
        "| seed | seat | games | wins | draws | losses | illegal actions | environment steps | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in record["runs"]:
        for seat in ("first", "second"):
            row = run[seat]
            shares = " | ".join(f"{100 * row[key]:.2f} %" for key in ("wins", "draws", "losses"))
            lines.append(
                f"| {run['seed']} | {seat} | {row['games']:,} | {shares} | {row['illegal']} | {run['env_steps']:,} | {run['git']['commit'][:8]} |"
            )
    return lines


def entries(suite: str) -> dict[str, Any]:
    """What `benchmarks/learning.py` has run of a suite, by name."""
    path = RESULTS / "learning" / f"{suite}.json"
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def finished(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in entry["runs"] if r["status"] == "finished"]


def several(values: list[float]) -> str:
    """Each, or where there are many their interquartile mean and its interval."""
    if len(values) <= 5:
        return " ".join(f"{round(value, 2):g}" for value in values) or "–"
    low, high = bootstrap_interval(values)
    return f"{interquartile_mean(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    written = re.sub(r"(<!-- measured -->\n).*(\n<!-- end -->)", lambda m: m[1] + tables() + m[2], text, flags=re.DOTALL)
    if written == text and tables() not in text:
        raise SystemExit("README.md has no markers '<!-- measured -->' and '<!-- end -->'")
    readme.write_text(written)


if __name__ == "__main__":
    main()
