"""Writes the measured numbers from benchmarks/results/ into the README, between its markers; a number there is never typed.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

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
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    written = re.sub(r"(<!-- measured -->\n).*(\n<!-- end -->)", lambda m: m[1] + tables() + m[2], text, flags=re.DOTALL)
    if written == text and tables() not in text:
        raise SystemExit("README.md has no markers '<!-- measured -->' and '<!-- end -->'")
    readme.write_text(written)


if __name__ == "__main__":
    main()
