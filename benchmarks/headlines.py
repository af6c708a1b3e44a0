"""What the README says was measured, a line each, from benchmarks/results/. The tables behind it are in benchmarks/RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

RESULTS = Path(__file__).parent / "results"


def recorded(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def headlines() -> list[str]:
    """The README's table."""
    rows = [
        quickstart(), spread(), foraging(), climbing(), stragglers(), cue(), many_agents(), neighbors(), computed(), self_play(), payoffs(),
    ]  # fmt: skip
    return [
        "| what | measured | command |",
        "|---|---|---|",
        *(f"| {what} | {measured} | `python benchmarks/{command}` |" for what, measured, command in rows),
    ]


Row = tuple[str, str, str]


def last(suite: str, name: str) -> list[float]:
    """Final greedy returns of an experiment's finished runs, by seed."""
    runs = recorded(f"learning/{suite}")["entries"][name]["runs"]
    return [run["greedy"]["return_mean"] for run in runs if run["status"] == "finished"]


def quickstart() -> Row:
    record = recorded("quickstart")
    reached = [run["evaluate"]["return_mean"] for run in record["runs"]]
    seconds = [run["command_s"] for run in record["runs"]]
    return (
        "the quickstart: IPPO on mpe2's simple_spread_v3, 300,000 steps, sum over steps, mean over agents",
        f"{min(reached):.1f} to {max(reached):.1f} in {min(seconds):.0f} to {max(seconds):.0f} s (random policy {record['random']['return_mean']:.1f})",
        "quickstart.py",
    )


def spread() -> Row:
    found = mean(last("spread", "mappo"))
    return (
        "MAPPO on simple_spread_v3, 1,000,000 steps, the same scale",
        f"{found:.1f}, which is {6 * found - 75:.0f} on the scale of Papoudakis et al. 2021, who report -133 after 20,000,000",
        "learning.py spread",
    )


def foraging() -> Row:
    return (
        "QMIX on Foraging-8x8-2p-2f-coop-v3, sum over the two agents (best 1)",
        " ".join(f"{2 * x:.2f}" for x in last("foraging", "qmix")),
        "learning.py foraging",
    )


def climbing() -> Row:
    return (
        "the climbing game's best joint action (275; most algorithms end at 175), by one autoregressive policy",
        f"found by {sum(x > 274 for x in last('climbing', 'joint_ppo'))} of {len(last('climbing', 'joint_ppo'))} seeds",
        "learning.py climbing",
    )


def stragglers() -> Row:
    table = recorded("straggler")["table"]
    return (
        "one of three learners four times as slow: gradients a second, of bulk synchronous",
        f"asynchronous {table['asp']['of_bsp']:.1f}, bounded {table['bap, S = 4, limit 2 iterations']['of_bsp']:.1f}",
        "straggler.py",
    )


def cue() -> Row:
    results = recorded("networked_cue")["results"]
    return (
        "a cue that must be passed on over four hops (chance 0.25, best 1): agents that talk, those that don't",
        f"NeurComm {results['neurcomm']['mean']:.2f}, nothing exchanged {results['independent']['mean']:.2f}",
        "networked_cue.py",
    )


def many_agents() -> Row:
    runs = recorded("networked_scale")["runs"]
    told = [f"{run['agents']:,} agents, {run['agent_steps_per_s']:,.0f} agent-steps a second" for run in runs.values()]
    return "agents that learn at once, each with networks of its own, on two cores", "; ".join(told), "networked_scale.py"


def neighbors() -> Row:
    record = recorded("neighbor_allreduce")
    edges = next(claim for claim in record["claims"] if claim["claim"].startswith("a message an edge"))
    large = record["table"]["torus, 1,000,000 agents, P = 64, 2 ranks"]
    return (
        "mixing with graph neighbors inside a host, beside a message an edge",
        f"{edges['worst']:.0f} to {max(edges['values'].values()):,.0f} times as fast; a million agents in "
        f"{large['shared memory'] / large['memory copy']:.1f} memory copies of their numbers",
        "neighbor_allreduce.py",
    )


def computed() -> Row:
    record = recorded("psro_exact")
    reached: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run["game"] == "leduc_poker" and run["reached"][0]:
            reached.setdefault(run["side"], []).append(run["reached"][0][1])
    told = ", ".join(f"{side} {median(values):.1f} s" for side, values in reached.items())
    return f"double oracle on Leduc poker to NashConv {record['targets']['leduc_poker'][0]}, CPU-seconds", told, "psro_exact.py"


def self_play() -> Row:
    entries = recorded("populations")["entries"]

    def gap(name: str) -> str:
        return f"{mean(run['nash_conv'] for run in entries[name]['runs']):.2f}"

    return (
        "self-play of magnetic mirror descent, NashConv of the last policy, 5 seeds",
        f"Kuhn {gap('kuhn_mmd')}, Leduc {gap('leduc_mmd')}, in two minutes on one core",
        "populations.py kuhn_mmd leduc_mmd",
    )


def payoffs() -> Row:
    return (
        "a payoff table by two rollout workers instead of one",
        f"{recorded('payoff_workers')['ratio']:.2f} times as fast, the same to the bit",
        "payoff_workers.py",
    )
