"""The same run, however its roles are laid out over processes."""

import json
from pathlib import Path

import pytest
import torch
from rigs import program
from safetensors.torch import load_file

RUN = (
    "budget.env_steps=2000", "rollout.envs=4", "rollout.fragment=100", "evaluate.final_episodes=4", "seed=3",
    "roles.rollout=1", "roles.learner=1", "roles.parameter=1", "roles.dataset=1",
)  # fmt: skip
LAYOUTS = {
    "inline": ("world=inline",),
    "four ranks": (),
    "two learners, two parameter shards": ("roles.learner=2", "roles.parameter=2"),
    "two workers, two dataset shards": ("rollout.envs=2", "roles.rollout=2", "roles.dataset=2"),
    "two workers, one inference role": ("rollout.envs=2", "roles.rollout=2", "roles.inference=1"),
    "static membership": ("cluster.membership=static",),
}


def values(run_dir: Path) -> torch.Tensor:
    files = sorted((run_dir / "policies").glob("*.safetensors"))
    return torch.cat([load_file(file)["values"] for file in files])


def train(tmp_path: Path, *overrides: str) -> Path:
    run_dir = tmp_path / "run"
    program.run(program.train(run_dir, *RUN, *overrides), cwd=tmp_path)
    return run_dir


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    return values(train(tmp_path_factory.mktemp("inline"), "dtype=float64", "world=inline"))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "inline"])
def test_layouts_agree_in_float64_after_five_updates(tmp_path, inline, layout):
    run_dir = train(tmp_path, "dtype=float64", *LAYOUTS[layout])
    assert json.loads((run_dir / "summary.json").read_text())["learner_steps"] == 5
    assert inline.dtype == torch.float64
    assert (values(run_dir) - inline).abs().max() < 1e-9


def test_same_seed_and_layout_give_the_same_bits_and_another_seed_does_not(tmp_path):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        runs.append(values(train(tmp_path / name, f"seed={seed}", "rollout.envs=2", "roles.rollout=2")))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "layout",
    [
        ("world=inline",),
        (),
        ("roles.learner=2",),
        ("rollout.envs=2", "roles.rollout=2"),
        ("env.continuous_actions=true",),
        ("groups=separate",),
    ],
)
def test_first_importance_ratio_is_one_without_lag(tmp_path, layout):
    run_dir = train(tmp_path, "rollout.max_lag=0", *layout)
    lines = [line for line in program.metrics(run_dir) if "throughput/env_steps_per_s" in line]
    deviations = [value for line in lines for name, value in line.items() if name.endswith("first_ratio_deviation")]
    assert len(deviations) >= 5
    assert max(deviations) < 1e-5
    # the policy does move: later ratios of the same batch are not one
    assert max(value for line in lines for name, value in line.items() if name.endswith("/kl")) > 1e-6


def test_separate_groups_spread_over_two_learners(tmp_path):
    run_dir = train(tmp_path, "groups=separate", "roles.learner=2", "dtype=float64")
    (tmp_path / "one").mkdir()
    alone = train(tmp_path / "one", "groups=separate", "world=inline", "dtype=float64")
    assert sorted(path.stem for path in (run_dir / "policies").glob("*.safetensors")) == ["agent_0", "agent_1", "agent_2"]
    assert (values(run_dir) - values(alone)).abs().max() < 1e-9


def test_heterogeneous_agents_train_with_the_default_groups(tmp_path):
    run_dir = train(tmp_path, "env=mpe/simple_speaker_listener")
    assert sorted(path.stem for path in (run_dir / "policies").glob("*.safetensors")) == ["listener_0", "speaker_0"]


def test_a_workers_cpu_goes_to_environments_and_inference(tmp_path):
    run_dir = train(tmp_path, "budget.env_steps=16000", "rollout.envs=16")
    summary = json.loads((run_dir / "summary.json").read_text())
    worker = next(entry for entry in summary["time_split"].values() if entry["role"] == "rollout/0")
    useful = sum(worker["cpu"][phase] for phase in ("environment", "inference", "evaluation"))
    # start-up (importing the environment) isn't work of a run: the clock starts when the role does
    assert useful > 0.85 * worker["cpu_since_start_s"], worker
