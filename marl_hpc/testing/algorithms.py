"""The contract of an algorithm: what `marl_hpc.algorithms.Algorithm` promises, tried in small real runs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from marl_hpc.cli import run
from marl_hpc.config import ConfigError

# name -> overrides: what an algorithm may meet
WORLDS = {
    "discrete": ("env=mpe/simple_spread",),
    "box": ("env=mpe/simple_spread", "env.continuous_actions=true"),
    "two kinds of agents": ("env=mpe/simple_speaker_listener",),
}
PARADIGMS = ("independent", "ctde", "centralized")
SHORT = (
    "world=inline",
    "rollout.envs=4",
    "rollout.fragment=10",
    "rollout.max_lag=0",
    "evaluate.episodes=2",
    "evaluate.final_episodes=2",
)


def algorithm_contract(algorithm: type, overrides: Sequence[str] = ()) -> list[str]:
    """Train with an algorithm in every paradigm and action space for a few updates; returns what was trained, one line each.

    What it refuses it has to refuse by ConfigError. What it trains must change its policies, give finite metrics, be the same run
    for the same seed, and go on from a checkpoint as if it had never stopped. Raises AssertionError saying what broke.
    """
    module = algorithm.__module__
    if module == "__main__":
        module = Path(str(sys.modules["__main__"].__file__)).stem
    named = f"algorithm.name={module}:{algorithm.__qualname__}"
    trained = []
    for world, chosen in WORLDS.items():
        for paradigm in PARADIGMS:
            settings = [*SHORT, *chosen, f"paradigm={paradigm}", named, *overrides]
            what = f"{algorithm.__qualname__}, {world}, paradigm={paradigm}"
            with tempfile.TemporaryDirectory() as folder:
                try:
                    whole = train(settings, Path(folder) / "whole", 240)
                except ConfigError:
                    continue
                check(what, settings, Path(folder), whole)
            trained.append(what)
    assert trained, f"{algorithm.__qualname__} refuses every world of this contract"
    return trained


def train(settings: Sequence[str], folder: Path, env_steps: int, *more: str) -> dict[str, torch.Tensor]:
    """{policy: flat parameters} after a run. Raises AssertionError when it fails."""
    summary = run([*settings, *more, f"run.dir={folder}", f"budget.env_steps={env_steps}", "checkpoint.every_steps=120"])
    assert summary.status == "finished", f"the run {summary.status}: {summary.record['exit_reason']}"
    return {path.stem: load_file(path)["values"] for path in sorted((folder / "policies").glob("*.safetensors"))}


def check(what: str, settings: Sequence[str], folder: Path, whole: dict[str, torch.Tensor]) -> None:
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        bad = [name for name, value in line.items() if not np.isfinite(value)]
        assert not bad, f"{what}: metrics {', '.join(bad)} aren't finite at {line['env_steps']} steps"
    again = train(settings, folder / "again", 240)
    assert same(whole, again), f"{what}: the same seed gave another run; key all randomness by the seed that `minibatches` gets"
    first = train(settings, folder / "part", 120)
    assert not same(whole, first), f"{what}: training on changed no policy"
    resumed = train(settings, folder / "part", 240, "run.resume=auto")
    assert same(whole, resumed), f"{what}: after a checkpoint it went on otherwise; is everything in `state` and `load_state`?"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
