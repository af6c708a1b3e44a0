"""Asynchronous training: with one learner it is bulk synchronous training, algorithm by algorithm; and what only it has."""

import json

import pytest
import torch
from rigs import inline
from safetensors.torch import load_file

from marl_hpc.compose import compose
from marl_hpc.config import ConfigError

LITTLE = ["algorithm.starts=20", "algorithm.batch=8", "algorithm.samples_per_insert=2"]
RUNS = {
    "ppo": [],
    "ppo, ctde": ["paradigm=ctde"],
    "ppo, centralized": ["paradigm=centralized"],
    "a2c": ["algorithm=a2c"],
    "coma": ["algorithm=coma", "paradigm=ctde"],
    "happo": ["algorithm=happo", "paradigm=ctde", "groups=separate"],
    "dqn": ["algorithm=dqn", *LITTLE],
    "dqn, gru": ["algorithm=dqn", "algorithm.gru=4", "algorithm.chunk=5", *LITTLE],
    "qmix": ["algorithm=qmix", "paradigm=ctde", *LITTLE],
    "sac": ["algorithm=sac", "paradigm=ctde", *LITTLE],
    "maddpg": ["algorithm=maddpg", "paradigm=ctde", *LITTLE],
    "sgd": ["algorithm.optimizer=sgd", "algorithm.momentum=0.9"],
    "separate": ["groups=separate"],
}
COMMON = ["env=mpe_fast/simple_spread", "dtype=float64", "rollout.max_lag=0", "budget.env_steps=240", "evaluate.every_steps=100"]


def policies(folder):
    return {path.name: load_file(path) for path in sorted((folder / "policies").glob("*.safetensors"))}


# asp and bap differ in who waits only: one on-policy and one off-policy algorithm stand for all
@pytest.mark.parametrize(("run", "sync"), [*((run, "asp") for run in RUNS), ("ppo", "bap"), ("qmix", "bap")])
def test_with_one_learner_it_is_bulk_synchronous_training(tmp_path, run, sync):
    lines = {}
    for mode in ("bsp", sync):
        lines[mode] = inline.train(tmp_path / mode, *COMMON, *RUNS[run], f"sync={mode}")
    expected, found = policies(tmp_path / "bsp"), policies(tmp_path / sync)
    assert expected.keys() == found.keys()
    for name, tensors in expected.items():
        for key, values in tensors.items():
            torch.testing.assert_close(found[name][key], values, rtol=0, atol=1e-9)
    for mode in lines:
        assert lines[mode][-1]["env_steps"] == 240
    returns = {
        mode: [(line["env_steps"], line["evaluate/return_mean"]) for line in lines[mode] if "evaluate/return_mean" in line]
        for mode in lines
    }
    assert [value for _, value in returns[sync]][-1] == pytest.approx(returns["bsp"][-1][1], rel=1e-6)


def test_a_run_that_goes_on_from_a_checkpoint_spends_the_whole_budget_once(tmp_path):
    options = ["env=mpe_fast/simple_spread", "sync=asp", "evaluate.every_steps=80", "checkpoint.every_steps=80"]
    inline.train(tmp_path, *options, "budget.env_steps=160")
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    resumed = inline.train(tmp_path, *options, "budget.env_steps=400", resume=True)
    assert first["env_steps"] == 160
    steps = [line["env_steps"] for line in resumed if "staleness/mean" in line]
    assert steps == sorted(steps)
    assert steps[-1] == 400
    assert [line["env_steps"] for line in resumed if "evaluate/return_mean" in line] == [80, 160, 240, 320, 400]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["sync.staleness=2"], ["sync.staleness=2", "sync=bap"]),
        (["sync=asp", "sync.staleness=2"], ["sync.staleness=2", "sync=asp"]),
        (["sync=asp", "sync.iteration_s=1"], ["sync.iteration_s=1", "sync=bap"]),
        (["sync.gradients=bfloat16"], ["sync.gradients=bfloat16", "asp or bap"]),
        (["sync.max_data_lag=3"], ["sync.max_data_lag=3", "asp or bap"]),
        (["sync=bap", "sync.staleness=-1"], ["sync.staleness=-1", "0 or more"]),
        (["sync=bap", "sync.iteration_s=0"], ["sync.iteration_s=0", "greater than 0"]),
        (["sync=sometimes"], ["sync='sometimes'", "asp", "bap", "bsp"]),
        (["sync=asp", "sync.gradients=float16"], ["sync.gradients='float16'", "bfloat16"]),
    ],
)
def test_options_of_another_mode_and_bounds_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ConfigError) as error:
        compose(["env=mpe/simple_spread", *options])
    assert all(word in str(error.value) for word in words)


def test_gradients_sent_in_half_the_bytes_train_nearly_alike(tmp_path):
    results = []
    for kind in ("float32", "bfloat16"):
        inline.train(tmp_path / kind, "env=mpe_fast/simple_spread", "sync=asp", f"sync.gradients={kind}", "algorithm.optimizer=sgd")
        results.append(policies(tmp_path / kind)["shared.safetensors"])
    for key, values in results[0].items():
        assert not torch.equal(values, results[1][key]) or values.numel() < 8
        torch.testing.assert_close(results[1][key], values, rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("sync", ["bsp", "asp"])
def test_policies_sent_in_half_the_bytes_act_nearly_alike(tmp_path, sync):
    deviations = {}
    for kind in ("full", "bfloat16", "delta"):
        lines = inline.train(
            tmp_path / kind,
            "env=mpe_fast/simple_spread",
            f"sync={sync}",
            "rollout.max_lag=0",
            f"rollout.transfer={kind}",
            "budget.env_steps=200",
        )
        deviations[kind] = max(line["loss/first_ratio_deviation"] for line in lines if "loss/first_ratio_deviation" in line)
    assert deviations["full"] < 1e-5
    assert 0 < deviations["delta"] < deviations["bfloat16"] < 0.1
