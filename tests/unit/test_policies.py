"""Exported policies play as the networks that they came from."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from marl_hpc.actors import build_policy
from marl_hpc.networks import FlatParameters, to_env
from marl_hpc.policies import export_policy, load_policy
from marl_hpc.types import ActionSpace, GroupSpec

NETWORK = {"hidden": [16], "activation": "tanh", "agent_id": True}
DISCRETE = ActionSpace(kind="discrete", n=5)
BOX = ActionSpace(kind="box", shape=(2,), low=(0.0, -1.0), high=(4.0, 3.0))


def exported(run_dir, space=DISCRETE, agents=("a", "b"), name="shared", shape=(3,), dtype=torch.float32, mask=False):
    """Write a policy whose choices are far from even; returns its actor."""
    group = GroupSpec(name=name, agents=agents, observation_shape=shape, action_space=space, action_mask=mask)
    actor = build_policy([group], NETWORK)
    flat = FlatParameters([actor], device="cpu", dtype=dtype)
    with torch.no_grad():
        flat.values.copy_(torch.randn(len(flat.values), generator=torch.Generator().manual_seed(len(name))))
    (run_dir / "policies").mkdir(exist_ok=True)
    export_policy(run_dir / "policies" / f"{name}.safetensors", [group], flat.values, NETWORK, version=7)
    return actor


def parameters_of(actor, seen):
    """Distribution parameters for observations [..., N, D]."""
    return actor.settle(actor.group, actor.network(seen), None)


def observations(count, agents=2, size=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, agents, size)).astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", [DISCRETE, BOX])
def test_loaded_policy_acts_as_the_network_did(tmp_path, space, dtype):
    actor = exported(tmp_path, space, dtype=dtype)
    seen = observations(20)
    with torch.no_grad():
        expected = to_env(space, actor.distributions["shared"].mode(parameters_of(actor, torch.from_numpy(seen).to(dtype))).numpy())
    for i, agent in enumerate(("a", "b")):
        policy = load_policy(tmp_path, agent)
        batch = policy.act(seen[:, i])
        np.testing.assert_allclose(batch, expected[:, i], rtol=1e-5)
        for row in range(5):
            np.testing.assert_allclose(policy.act(seen[row, i]), batch[row], rtol=1e-5)
    assert not np.array_equal(load_policy(tmp_path, "a").act(seen[:, 0]), load_policy(tmp_path, "b").act(seen[:, 0]))


def test_single_observation_gives_what_the_environment_takes(tmp_path):
    exported(tmp_path)
    exported(tmp_path, BOX, agents=("c",), name="box")
    choice = load_policy(tmp_path, "a").act(np.zeros(3))
    assert type(choice) is int
    move = load_policy(tmp_path, "c").act([0.1, 0.2, 0.3])
    assert (move.shape, move.dtype) == ((2,), np.float32)
    assert ((np.array(BOX.low) <= move) & (move <= np.array(BOX.high))).all()


def test_sampled_actions_have_the_policys_frequencies(tmp_path):
    actor = exported(tmp_path)
    seen = observations(1)
    probabilities = parameters_of(actor, torch.from_numpy(seen)).exp()[0, 1].detach().numpy()
    drawn = load_policy(tmp_path, "b", seed=0).act(np.repeat(seen[:, 1], 20_000, 0), greedy=False)
    counts = np.bincount(drawn, minlength=5)
    assert (((counts - 20_000 * probabilities) ** 2) / (20_000 * probabilities)).sum() < 18.5  # 0.999 quantile
    assert len(np.unique(drawn)) > 1


def test_box_samples_spread_around_the_mean(tmp_path):
    wide = ActionSpace(kind="box", shape=(2,))
    actor = exported(tmp_path, wide)
    seen = observations(1)
    mean, log_std = parameters_of(actor, torch.from_numpy(seen))[0, 0].detach().chunk(2)
    mean, deviation = mean.numpy(), log_std.exp().numpy()
    drawn = load_policy(tmp_path, "a", seed=0).act(np.repeat(seen[:, 0], 20_000, 0), greedy=False)
    assert (np.abs(drawn.mean(0) - mean) < 4 * deviation / np.sqrt(20_000)).all()
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.03)


def test_seed_decides_what_is_drawn(tmp_path):
    exported(tmp_path)
    seen = observations(50)[:, 0]
    draws = [load_policy(tmp_path, "a", seed=seed).act(seen, greedy=False).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("agent", ["a", "b"])
@pytest.mark.parametrize("greedy", [True, False])
def test_masked_actions_are_never_chosen(tmp_path, greedy, agent):
    exported(tmp_path, mask=True)
    policy, seen = load_policy(tmp_path, agent, seed=0), observations(300)[:, 0]
    free = set(policy.act(seen, greedy=False).tolist())
    assert len(free) > 2
    one = np.array([False, True, False, True, False])
    assert set(policy.act(seen, one, greedy=greedy).tolist()) <= {1, 3}
    each = np.eye(5, dtype=bool)[np.arange(300) % 5]
    assert policy.act(seen, each, greedy=greedy).tolist() == (np.arange(300) % 5).tolist()
    assert policy.act(seen[0], [False, False, False, False, True], greedy=greedy) == 4


def test_scalar_observations_come_alone_or_in_batches(tmp_path):
    exported(tmp_path, shape=())
    policy = load_policy(tmp_path, "a")
    assert policy.act(0.5) == policy.act([0.5, 2.0])[0]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (1, 2, 3), ()])
def test_observation_of_another_shape_is_refused(tmp_path, shape):
    exported(tmp_path)
    with pytest.raises(ValueError, match=r"a observes shape \(3,\), or a batch of those; got"):
        load_policy(tmp_path, "a").act(np.zeros(shape))


def test_run_without_exports_says_when_they_come(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported policies; they are written at checkpoints"):
        load_policy(tmp_path, "a")


def test_unknown_agent_is_answered_with_the_agents_there_are(tmp_path):
    exported(tmp_path)
    exported(tmp_path, agents=("c",), name="other")
    assert load_policy(tmp_path, "c").group.name == "other"
    with pytest.raises(KeyError, match=r"no agent 'z'.*c, a, b"):
        load_policy(tmp_path, "z")


def test_file_tells_what_it_holds(tmp_path):
    exported(tmp_path, BOX, name="movers")
    with safe_open(tmp_path / "policies" / "movers.safetensors", "pt") as stored:
        about = json.loads(stored.metadata()["policy"])
        assert stored.keys() == ["values"]
    assert about["version"] == 7
    assert about["network"] == NETWORK
    assert [GroupSpec.from_json(group) for group in about["groups"]] == [
        GroupSpec(name="movers", agents=("a", "b"), observation_shape=(3,), action_space=BOX)
    ]
