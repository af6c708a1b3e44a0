"""A2C against its gradient written by hand."""

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.replicas import Alone

from marl_hpc.agents import IndependentAgent
from marl_hpc.algorithms.a2c import A2C, A2CConfig
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

GROUP = GroupSpec(
    name="g", agents=("g0", "g1"), observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=4), action_mask=True
)
ALONE = InterfaceSpec(name="g", paradigm="independent", groups=(GROUP,))
T, B = 7, 4


def agent_of(**options):
    config = A2CConfig(**{"hidden": [8], "normalize_values": False, "gamma": 0.9, "max_grad_norm": 1e9, **options})
    agent = IndependentAgent(A2C, config, ALONE, Alone(), device=torch.device("cpu"), dtype=torch.float64, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        agent.parameters.values += 0.5 * torch.randn(agent.parameters.values.shape, dtype=torch.float64, generator=generator)
    return agent


def returns_of(batch, values, following):
    """Mnih et al. 2016, algorithm S3: rewards up to the episode's end or the fragment's, and there the value of what follows; nothing
    follows a termination."""
    result = np.zeros((T, B, 2))
    for t, b, n in np.ndindex(T, B, 2):
        discount = 1.0
        for later in range(t, T):
            result[t, b, n] += discount * float(batch["g/reward"][later, b, n])
            discount *= 0.9
            if batch["g/terminated"][later, b, n]:
                break
            if batch["g/truncated"][later, b, n] or later == T - 1:
                result[t, b, n] += discount * float(following[later, b, n])
                break
    return result


def test_with_lambda_1_advantages_are_n_step_returns_less_the_value():
    assert A2CConfig().gae_lambda == 1.0
    agent, batch = agent_of(), batch_of(ALONE, T, B, ends=0.2)
    with torch.no_grad():
        value, following = (
            agent.algorithm.critic.networks[0](batch[f"g/{name}"])[..., 0] for name in ("observation", "next_observation")
        )
    result, active = agent.algorithm.with_advantages(batch), batch["g/active"]
    expected = returns_of(batch, value, following)
    assert batch["g/truncated"].any()
    assert batch["g/terminated"].any()
    assert torch.equal(result["known"], active)
    np.testing.assert_allclose(result["target"][active].numpy(), expected[active.numpy()], atol=1e-12)
    np.testing.assert_allclose(result["advantage"][active].numpy(), (expected - value.numpy())[active.numpy()], atol=1e-12)


def vtrace_of(batch, values, following, ratio, rho_bar, c_bar):
    """(vs, r + γ vs' - V) by the recursion of Espeholt et al. 2018, remark 1."""
    targets, advantages = values.clone(), torch.zeros_like(values)
    for b, n in np.ndindex(B, 2):
        for t in reversed(range(T)):
            reward, terminated = batch["g/reward"][t, b, n], batch["g/terminated"][t, b, n]
            last = terminated or batch["g/truncated"][t, b, n] or t == T - 1
            after = 0.0 if terminated else following[t, b, n] if last else values[t + 1, b, n]
            vs_after = after if last else targets[t + 1, b, n]
            rho, c = min(rho_bar, ratio[t, b, n]), min(c_bar, ratio[t, b, n])
            targets[t, b, n] = values[t, b, n] + rho * (reward + 0.9 * after - values[t, b, n]) + 0.9 * c * (vs_after - after)
            advantages[t, b, n] = reward + 0.9 * vs_after - values[t, b, n]
    return targets, advantages


@pytest.mark.parametrize(
    ("stale", "correction", "bound"),
    [
        (False, {"max_weight": 1.2}, 1.2),
        (True, {"max_weight": 1.2}, 1.2),
        (True, {"correction": "vtrace", "rho_bar": 1.4, "c_bar": 0.8}, 1.4),
        (True, {"correction": "none"}, None),
    ],
)
def test_one_step_takes_the_gradient_written_by_hand(stale, correction, bound):
    """∂/∂logits of -w A log π(a) - β H is w A (π - 1_a) + β π (log π + H), ∂/∂V of c (V - R)² is 2 c (V - R), averaged over who acts."""
    agent, batch = agent_of(entropy=0.05, value_weight=0.7, **correction), batch_of(ALONE, T, B, ends=0.2)
    network, critic = agent.algorithm.policies["g"].network, agent.algorithm.critic.networks[0]
    logits, value = network(batch["g/observation"]), critic(batch["g/observation"])[..., 0]
    with torch.no_grad():
        following = critic(batch["g/next_observation"])[..., 0]
        masked = logits.masked_fill(~batch["g/action_mask"], -1e30).exp()
        pi = masked / masked.sum(-1, keepdim=True)
        chosen = torch.nn.functional.one_hot(batch["g/action"], 4)
        now = (pi * chosen).sum(-1).log()
        if not stale:
            batch["g/log_prob"] = now.clone()
        log_pi = torch.where(pi > 0, pi, 1.0).log()
        entropy = -(pi * log_pi).sum(-1, keepdim=True)
        active = batch["g/active"]
        ratio = (now - batch["g/log_prob"]).exp()
        if correction.get("correction") == "vtrace":
            returns, advantage = vtrace_of(batch, value, following, ratio, 1.4, 0.8)
        else:
            returns = torch.from_numpy(returns_of(batch, value.detach(), following))
            advantage = returns - value
        weight = torch.ones_like(ratio) if bound is None else ratio.clamp(max=bound)
        assert (weight[active] != ratio[active]).any() == stale
        advantage = (weight * advantage).unsqueeze(-1)
        by_logits = (advantage * (pi - chosen) + 0.05 * pi * (log_pi + entropy)) * active.unsqueeze(-1) / active.sum()
        by_value = 2 * 0.7 * (value - returns) * active / active.sum()
    parameters = [*network.parameters(), *critic.parameters()]
    expected = torch.autograd.grad([logits, value], parameters, [by_logits, by_value])
    agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    assert agent.updates == 1
    found = agent.parameters.values.grad
    torch.testing.assert_close(found, torch.cat([x.flatten() for x in expected]), rtol=1e-8, atol=1e-11)
    assert found.abs().max() > 0.01


def test_gradient_of_one_step_moves_parameters_against_it():
    agent, batch = agent_of(lr=0.01), batch_of(ALONE, T, B)
    before = agent.parameters.values.detach().clone()
    agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=0)
    gradient = agent.parameters.values.grad
    step = agent.parameters.values.detach() - before
    clear = gradient.abs() > 1e-3  # Adam's first step is the sign of the gradient, lr long
    assert clear.sum() > 20
    torch.testing.assert_close(step[clear], -0.01 * gradient[clear].sign(), rtol=0.02, atol=0)
