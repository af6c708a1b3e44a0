"""How a run ended: what `summary.json` says. Torch-free."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marl_hpc.comm.store import Store
from marl_hpc.config import Config, computes_population, fingerprint
from marl_hpc.storage.checkpoint import newest


class Summary(NamedTuple):
    """`record` is what summary.json holds; empty on other ranks than 0. `code` is the exit status of this process."""

    status: str
    code: int
    run_dir: Path
    record: dict[str, Any]


def describe(
    store: Store, config: Config, run_dir: Path, outcome: Mapping[str, Any], wall_s: float, job: Mapping[str, Any], hosts: Sequence[str],
    launcher: str,
) -> dict[str, Any]:  # fmt: skip
    """The record of a run that has ended. `job`: its roles, devices and the environment's spec, as far as they got known."""
    result = store.get("result") or {}
    status, reason = outcome["status"], outcome["reason"]
    saved = newest(run_dir, fingerprint(config))
    abandoned = store.get("control/abandoned")
    if status == "stopped" and (abandoned or "lost" in outcome):
        where = f"it goes on from {saved[0].name}" if saved else "it starts again from the beginning"
        reason = f"{reason}, but {abandoned}; {where}" if abandoned else f"{reason}; {where}"
    # of networked agents: how many edges and rows cross learners, by which transport
    graphs = {
        key.partition("/")[2]: {name: x for name, x in record.items() if name != "text"}
        for key, record in store.scan("graph/").items()
    }
    reached = {k: getattr(saved[1], k) for k in ("env_steps", "agent_steps", "learner_steps", "wall_s")} if saved else {}
    return {
        "status": status,
        "env_steps": 0, "agent_steps": 0, "learner_steps": 0, "wall_s": wall_s, "env_steps_per_s": 0.0, "evaluate": None,
        **reached,  # a run that failed got at least as far as its last checkpoint
        **result,
        "exit_reason": reason if status != "finished" else result.get("exit_reason", reason),
        "environment": {"name": config.env["name"], "version": job["spec"]["version"]},
        "algorithm": f"{config.population.name}, computed" if computes_population(config) else config.algorithm["name"], "paradigm": config.paradigm.name,
        "git": git_state(), "versions": versions(),
        "world": [
            {"rank": rank, "role": role, "host": host, "device": device, "launcher": launcher}
            for rank, (role, host, device) in enumerate(zip(job["roles"], hosts, job["devices"], strict=False))
        ],
        "time_split": {key.partition("/")[2]: value for key, value in store.scan("time/").items()},
        **({"graphs": graphs} if graphs else {}),
        "faults": [value for _, value in sorted(store.scan("fault/").items())],
    }  # fmt: skip


def last_words(summary: Summary) -> str:
    """What a person is told in the end; nothing on other ranks than 0."""
    if not summary.record:
        return ""
    record, evaluated = summary.record, summary.record["evaluate"]
    lines = [f"{summary.status}: {record['exit_reason']}"]
    if evaluated:
        low, high = evaluated["mean_interval"]
        lines.append(
            f"evaluated return {evaluated['return_mean']:.2f} [{low:.2f}, {high:.2f}] over {evaluated['episodes']} episodes "
            f"({evaluated['return_scale']}) at {evaluated['env_steps']:,} environment steps of {record['environment']['version']}"
        )
    lines.append(f"report: {summary.run_dir}/report.html")
    if summary.status == "stopped":
        lines.append(f"continue with: marl-hpc resume {summary.run_dir}")
    return "\n".join(lines)


def git_state() -> dict[str, Any]:
    """Commit of the checkout that this package runs from, if it is one, and whether anything but results of benchmarks differs from it."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        differing = ["status", "--porcelain", "--", ".", ":!benchmarks/results"]
        changed = subprocess.run(["git", "-C", str(root), *differing], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip() or None, "dirty": bool(changed.stdout.strip())}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("marl_hpc", "torch", "numpy", "pettingzoo", "gymnasium", "mpe2"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
