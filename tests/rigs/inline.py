"""A whole run in this process, without supervisors: what `world=inline` does once its rank has started."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marl_hpc.building import make_env
from marl_hpc.comm.store import Store
from marl_hpc.comm.world import World
from marl_hpc.compose import compose
from marl_hpc.roles.assign import count_roles
from marl_hpc.storage.checkpoint import newest
from marl_hpc.train import Rank

SMALL = ("rollout.envs=2", "rollout.fragment=20", "budget.env_steps=80", "evaluate.final_episodes=1", "algorithm.hidden=[8]")


class NoDeadline:
    def expect_within(self, seconds: float) -> None:
        pass


def rank(run_dir: Path, *overrides: str, resume: bool = False) -> Rank:
    """The one rank of a world=inline run, ready to `run()`; with `resume` from the newest checkpoint that is there."""
    config = compose([*SMALL, *overrides])
    run_dir.mkdir(parents=True, exist_ok=True)
    env = make_env(config, 1)
    counts = count_roles(config.roles, None)
    job: dict[str, Any] = {
        "spec": env.spec.to_json(), "run_dir": str(run_dir), "devices": ["cpu"], "config": asdict(config),
        "counts": counts, "team": 1,
    }  # fmt: skip
    store = Store()
    found = newest(run_dir) if resume else None
    store.set("start/0", {"checkpoint": str(found[0]), "manifest": asdict(found[1])} if found else {})
    return Rank(config, job, World(0, 0, ["inline"], store, NoDeadline(), 60.0, 60.0))  # type: ignore[arg-type]


def train(run_dir: Path, *overrides: str, resume: bool = False) -> list[dict[str, Any]]:
    """Train to the end; the run's metrics, line by line."""
    assert rank(run_dir, *overrides, resume=resume).run() == 0
    return metrics(run_dir)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
