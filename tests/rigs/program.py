"""How the launcher tests start marl_hpc, and what a run that went well has left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rigs import environment

ROOT = Path(__file__).resolve().parents[2]
RANKS = 4
ENV_STEPS = 400
DEADLINE_S = 120

# The cheapest run that passes through all four roles.
OVERRIDES = (
    "env=mpe/simple_spread", f"budget.env_steps={ENV_STEPS}", "rollout.envs=2", "rollout.fragment=25",
    "evaluate.episodes=2", "evaluate.final_episodes=2", "roles.learner=1", "roles.rollout=1", "roles.parameter=1", "roles.dataset=1",
)  # fmt: skip


def module(run_dir: Path, *overrides: str) -> list[str]:
    """What stands after `python` or `torchrun`."""
    return ["-m", "marl_hpc", "train", *OVERRIDES, *overrides, f"run.dir={run_dir}"]


def train(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, *module(run_dir, *overrides)]


def run(argv: Sequence[str], *, cwd: Path, timeout: float = DEADLINE_S, env: Mapping[str, str] | None = None, code: int = 0) -> str:
    """Run to the end and return what was printed; AssertionError when the exit status isn't `code` or it takes too long."""
    return join([start(argv, cwd=cwd, env=env)], timeout=timeout, code=code)[0]


class Started(NamedTuple):
    process: subprocess.Popen[bytes]
    printed: Path


def start(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Started:
    # into a file: a pipe would stay open as long as any grandchild lives
    handle, name = tempfile.mkstemp(prefix="printed-", suffix=".txt", dir=cwd)
    with os.fdopen(handle, "wb") as out:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, Path(name))


def join(started: Sequence[Started], *, timeout: float = DEADLINE_S, code: int = 0) -> list[str]:
    """Wait for processes that belong together; ends them all when one is late or has failed."""
    late = False
    try:
        for process, _ in started:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                late = True
                break
    finally:
        for process, _ in started:
            _end(process)
    texts = [printed.read_text(errors="replace") for _, printed in started]
    codes = [process.returncode for process, _ in started]
    if late or any(each != code for each in codes):
        told = f"not done after {timeout:g} s" if late else f"exit status {codes}, expected {code}"
        raise AssertionError(f"{told}: {' '.join(started[0].process.args)}\n" + "\n---\n".join(text[-6000:] for text in texts))
    return texts


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM first: launchers start their workers in sessions of their own and only they can end those."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)


class Finished(NamedTuple):
    summary: dict[str, Any]
    hosts: set[str]
    policies: dict[str, bytes]


def finished(run_dir: Path, *, ranks: int = RANKS, env_steps: int = ENV_STEPS) -> Finished:
    """Check that the run in `run_dir` is whole and finished, and the only one there; returns what differs by test."""
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "finished", summary
    assert summary["env_steps"] >= env_steps
    world = summary["world"]
    assert sorted(entry["rank"] for entry in world) == list(range(ranks))
    assert {"learner", "rollout", "parameter", "dataset"} <= {entry["role"].split("/")[0] for entry in world}
    assert [path.parent for path in run_dir.parent.glob("*/summary.json")] == [run_dir]
    check_metrics(run_dir, env_steps)
    policies = {path.name: path.read_bytes() for path in sorted((run_dir / "policies").glob("*.safetensors"))}
    assert policies
    return Finished(summary, {entry["host"] for entry in world}, policies)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All finished lines so far."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def learned(run_dir: Path) -> list[int]:
    """env_steps of the training lines. Evaluations have lines of their own, which come when they are done."""
    return [line["env_steps"] for line in metrics(run_dir) if "throughput/env_steps_per_s" in line]


def check_metrics(run_dir: Path, env_steps: int) -> None:
    """Every update stands there once and in order, over all attempts of the run, and every evaluation once."""
    steps = learned(run_dir)
    assert steps
    assert steps == list(range(steps[0], steps[-1] + 1, steps[0])), steps
    assert steps[-1] >= env_steps
    evaluated = [line["env_steps"] for line in metrics(run_dir) if "evaluate/return_mean" in line]
    assert len(evaluated) == len(set(evaluated)), evaluated


def pids(run_dir: Path, role: str) -> list[int]:
    """Process ids that a role has had, in order, from its log."""
    found = []
    for log in sorted((run_dir / "logs").glob("rank_*.log")):
        found += [int(pid) for pid in re.findall(rf"\| {role} starts: pid (\d+)", log.read_text())]
    return found


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} didn't happen in {timeout} s")


def until_learned(run_dir: Path, env_steps: int) -> None:
    wait_for(lambda: (steps := learned(run_dir)) and steps[-1] >= env_steps, f"{env_steps} learned steps")
