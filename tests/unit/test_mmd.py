"""Magnetic mirror descent against its definition, and against what it is to come to."""

import math

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.replicas import Alone

from marl_hpc.agents import IndependentAgent
from marl_hpc.algorithms.mmd import MMD, MMDConfig
from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec


def interface_of(actions=3, mask=True, kind="discrete"):
    space = ActionSpace(kind="discrete", n=actions) if kind == "discrete" else ActionSpace(kind="box", shape=(1,))
    group = GroupSpec(name="g", agents=("a", "b"), observation_shape=(2,), action_space=space, action_mask=mask)
    return InterfaceSpec(name="g", paradigm="independent", groups=(group,))


def build(**options):
    given = {"hidden": [6], "temperature": 0.3, "temperature_end": 0.1, "kl_weight": 2.0, "epochs": 1, "minibatches": 1, **options}
    return MMD(MMDConfig(**given), interface_of(), Alone(), device="cpu", dtype=torch.float64, seed=0)


def minibatch_of(algorithm, env_steps=0):
    """One whole batch, and the policies moved away from where learning started."""
    batch = batch_of(algorithm.interface, 5, 4)
    with torch.no_grad():
        batch["g/log_prob"] = algorithm.act(batch)[0]
    (minibatch,) = algorithm.minibatches(batch, torch.arange(4), 4, 0, env_steps)
    with torch.no_grad():
        for parameter in algorithm.policies["g"].parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=parameter.dtype)
    return minibatch


def log_softmax(outputs, mask):
    allowed = np.where(mask, outputs, -np.inf)
    return (
        allowed - np.log(np.exp(allowed - allowed.max(-1, keepdims=True)).sum(-1, keepdims=True)) - allowed.max(-1, keepdims=True)
    )


@pytest.mark.parametrize(("env_steps", "temperature"), [(0, 0.3), (500, 0.3 * (1 / 3) ** 0.5), (2000, 0.1)])
def test_its_loss_is_ppos_and_both_divergences(env_steps, temperature):
    algorithm = build(temperature_steps=1000)
    minibatch = minibatch_of(algorithm, env_steps)
    loss, sums = algorithm.loss(minibatch)
    policy, config = algorithm.policies["g"], algorithm.config
    with torch.no_grad():
        outputs = policy.network.step(minibatch["g/observation"], torch.zeros(0))[0].numpy()
    known, mask = minibatch["known"].numpy(), minibatch["g/action_mask"].numpy()
    now, before = log_softmax(outputs, mask), minibatch["g/proximal"].numpy()
    entropy = -np.where(mask, np.exp(now) * np.where(mask, now, 0), 0).sum(-1)
    divergence = np.where(mask, np.exp(now) * (np.where(mask, now, 0) - np.where(mask, before, 0)), 0).sum(-1)
    assert (divergence[known] > 0).any()
    chosen = np.take_along_axis(now, minibatch["g/action"].numpy()[..., None], -1)[..., 0]
    ratio, advantage = np.exp(chosen - minibatch["proximal_log_prob"].numpy()), minibatch["advantage"].numpy()
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage)
    with torch.no_grad():
        value = algorithm.value_loss(minibatch).numpy()
    expected = (
        -surrogate - temperature * entropy + config.kl_weight * (0.3 / temperature) * divergence + config.value_weight * value
    )
    assert loss.item() == pytest.approx(expected[known].sum(), rel=1e-9)
    assert sums["count"] == known.sum()


def test_where_returns_are_known_policies_come_to_the_softmax_of_returns_over_the_temperature():
    """The quantal response of one who decides once (Sokota et al. 2023, section 2)."""
    returns, temperature = np.array([0.0, 0.2, 0.5]), 0.25
    algorithm_options = MMDConfig(
        hidden=[4], temperature=temperature, temperature_end=temperature, kl_weight=1.0, epochs=2, minibatches=1, lr=3e-2,
        gae_lambda=0.0, gamma=1.0,
    )  # fmt: skip
    agent = IndependentAgent(
        MMD, algorithm_options, interface_of(mask=False), Alone(), device=torch.device("cpu"), dtype=torch.float64, seed=0
    )
    random, copies = np.random.default_rng(0), 512
    policy, late = agent.algorithm.policies["g"], []
    for step in range(160):
        seen = torch.zeros(1, copies, 2, 2, dtype=torch.float64)
        with torch.no_grad():
            log_probs = policy.parameters_of(
                {"g": {"observation": seen, "active": torch.ones(1, copies, 2)}}, torch.zeros(0), torch.ones(1, copies)
            )["g"]
        chances = log_probs.exp().numpy()
        action = torch.from_numpy((random.random((1, copies, 2, 1)) > chances.cumsum(-1)).sum(-1).clip(max=2))
        flags = torch.ones(1, copies, 2, dtype=torch.bool)
        batch = {
            "first": flags[..., 0], "g/observation": seen, "g/next_observation": seen, "g/action": action,
            "g/log_prob": log_probs.gather(-1, action[..., None])[..., 0], "g/reward": torch.from_numpy(returns)[action], "g/active": flags,
            "g/next_active": ~flags, "g/terminated": flags, "g/truncated": ~flags,
        }  # fmt: skip
        agent.learn(batch, torch.arange(copies), total=copies, seed=step, env_steps=0)
        if step >= 120:
            late.append(chances[0, 0])
    expected = np.exp(returns / temperature) / np.exp(returns / temperature).sum()
    np.testing.assert_allclose(np.mean(late, 0), np.broadcast_to(expected, (2, 3)), atol=0.03)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature_end": 0.5}, "no greater than the first"),
        ({"temperature_end": 0.0}, "above 0"),
        ({"entropy": 0.1}, "leave entropy out"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be 0 or more"),
        ({"temperature": math.nan}, "temperature=nan"),
    ],
)
def test_what_cant_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        MMD.check(MMDConfig(**{"temperature": 0.3, "temperature_end": 0.1, **options}), interface_of(), 10)


def test_continuous_actions_have_no_uniform_policy():
    with pytest.raises(ConfigError, match="use algorithm=ppo"):
        MMD.check(MMDConfig(), interface_of(mask=False, kind="box"), 10)
