"""How many agents a second do the networked environments step, by number of agents, in one copy and in many?

Random legal actions, drawn beforehand; one process on one core, nothing but `step` is timed. Before anything is measured, one copy of
those that step together has to get the rewards that it gets alone. The table gives medians and ranges of agent steps per second of CPU
time over all copies.

    python benchmarks/networked_steps.py [--repeats 7] [--output benchmarks/results/networked_steps.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from marl_hpc import envs
from marl_hpc.summary import git_state, versions

SIZES: dict[str, dict[int, dict[str, Any]]] = {
    "networked/cacc": {n: {"vehicles": n} for n in (8, 100, 10_000, 1_000_000)},
    "networked/wireless": {h * w: {"height": h, "width": w} for h, w in ((2, 4), (10, 10), (100, 100), (1000, 1000))},
    "networked/mdp": {n: {"agents": n} for n in (8, 100, 10_000, 1_000_000)},
}
COPIES = {8: (1, 64, 1024), 100: (1,), 10_000: (1,), 1_000_000: (1,)}
AGENT_STEPS = 2_000_000  # about, of each repeat; at most STEPS steps
STEPS = 150  # no episode ends before


def actions(env: Any, random: np.random.Generator) -> np.ndarray:
    """Legal ones [B, N], uniform; a platoon keeps to one that never crashes it."""
    (group,) = env.spec.groups
    shape = env.copies, len(group.agents)
    if env.spec.name == "networked/cacc":
        return np.full(shape, 3)
    mask = env.observe().action_mask.get(group.name, np.ones((*shape, group.action_space.n), bool))
    return np.where(mask, random.random(mask.shape), -1).argmax(-1)


def start(name: str, options: dict[str, Any], copies: int) -> tuple[Any, dict[str, np.ndarray]]:
    env = envs.make(name, copies=copies, **options)
    env.reset(list(range(copies)), list(range(copies)))
    return env, {env.spec.groups[0].name: actions(env, np.random.default_rng(0))}


def check(name: str, options: dict[str, Any]) -> None:
    """The last of three copies gets what it gets alone; also warms up."""
    (many, acts), (one, _) = start(name, options, 3), start(name, options, 1)
    one.reset([0], [2])
    for _ in range(20):
        ((group, together),) = many.step(acts).reward.items()
        alone = one.step({group: acts[group][2:]}).reward[group]
        np.testing.assert_array_equal(together[2:], alone)


def measure(name: str, options: dict[str, Any], copies: int, n: int, repeats: int) -> dict[str, Any]:
    began = time.perf_counter()
    env, acts = start(name, options, copies)
    built_s = time.perf_counter() - began
    steps = int(np.clip(AGENT_STEPS // (n * copies), 3, STEPS))
    rates = []
    for _ in range(repeats):
        env.reset(list(range(copies)), list(range(copies)))
        env.observe()
        began = time.process_time()
        for _ in range(steps):
            env.step(acts)
        rates.append(n * copies * steps / (time.process_time() - began))
    return {
        "environment": name, "agents": n, "copies": copies, "agent_steps_per_cpu_s": statistics.median(rates),
        "range": [min(rates), max(rates)], "built_s": built_s,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "networked_steps.json")
    arguments = parser.parse_args()
    print("| environment | agents | copies | million agent steps per CPU-s | seconds to build |\n|---|---|---|---|---|")
    table = []
    for name, sizes in SIZES.items():
        for n, options in sizes.items():
            if n <= 100:
                check(name, options)
            for copies in COPIES[n]:
                row = measure(name, options, copies, n, arguments.repeats)
                table.append(row)
                low, high = (rate / 1e6 for rate in row["range"])
                rate = row["agent_steps_per_cpu_s"] / 1e6
                print(f"| {name} | {n:,} | {copies:,} | {rate:.2f} ({low:.2f}–{high:.2f}) | {row['built_s']:.2f} |", flush=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "repeats": arguments.repeats, "cores": os.cpu_count(), "git": git_state(),
        "versions": versions(), "table": table,
    }  # fmt: skip
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
