"""SAC against its definition written out with torch.distributions, loops and enumeration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rigs.drawn import SPACES, agent_of, batch_of, build, gradients, interface_of, minibatch_of
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from marl_hpc.algorithms.off_policy_actor_critic import CRITIC, POLICY
from marl_hpc.algorithms.sac import SAC, TEMPERATURE, SACConfig
from marl_hpc.config import ConfigError
from marl_hpc.distributions import distribution_of

CONFIG = SACConfig(hidden=[8], batch=6, gamma=0.9)
ALPHA = 0.2


def targets_of(sac, batch):
    minibatch = minibatch_of(sac, batch, CRITIC)
    return minibatch, *sac.soft_targets(minibatch, sac.taken(minibatch))


def outputs_of(sac, observation):
    """What the policy of group a says [S, N, …] of a step's observations [1, S, N, D]."""
    return sac.policies["a"].network(observation)[0].detach()


def alone(sac, k, batch, prefix, beside=None, online=False):
    """What a twin's network says of group a's observations [S, N, …], with its own action beside them where it takes that."""
    critic = (sac.critics if online else sac.target.copies)[k]
    return critic.networks[0](batch[f"a/{prefix}observation"][0], beside).detach()


def bellman(batch, value, gamma):
    """r + gamma V, nothing after a termination; and which agents learn from it."""
    reward, terminated = batch["a/reward"][0].numpy(), batch["a/terminated"][0].numpy()
    return reward + gamma * np.where(terminated, 0, value), batch["a/active"][0]


@pytest.mark.parametrize("mask", [False, True])
def test_discrete_targets_are_expectations_over_the_legal_choices_of_the_lower_twin(mask):
    interface = interface_of("discrete", paradigm="independent", mask=mask)
    sac = build(SAC, CONFIG, interface)
    minibatch, target, known = targets_of(sac, batch_of(interface))
    q = [alone(sac, k, minibatch, "next_").numpy() for k in range(2)]
    logits = outputs_of(sac, minibatch["a/next_observation"]).numpy()
    value = np.zeros(logits.shape[:2])
    for s, n in np.ndindex(value.shape):
        legal = minibatch["a/next_action_mask"][0, s, n].numpy() if mask else np.ones(4, bool)
        p = np.exp(logits[s, n][legal])
        p /= p.sum()
        value[s, n] = (p * (np.minimum(q[0][s, n], q[1][s, n])[legal] - ALPHA * np.log(p))).sum()
    expected, acts = bellman(minibatch, value, 0.9)
    assert torch.equal(known[0], acts)
    np.testing.assert_allclose(target[0][acts].numpy(), expected[acts], atol=1e-12)
    assert (q[0] < q[1]).any()
    assert (q[0] > q[1]).any()


def test_box_targets_are_the_lower_twin_less_alpha_times_the_log_probability_of_a_draw():
    interface = interface_of("box", paradigm="independent")
    sac = build(SAC, CONFIG, interface)
    minibatch, target, known = targets_of(sac, batch_of(interface))
    parameters = sac.distribution("a").parameters(outputs_of(sac, minibatch["a/next_observation"]), None)
    mean, deviation = parameters[..., :2], parameters[..., 2:].exp()
    action = (mean + deviation * minibatch["a/next_noise"][0]).tanh()
    policy = TransformedDistribution(Normal(mean, deviation), [TanhTransform()])
    q = [alone(sac, k, minibatch, "next_", action).squeeze(-1) for k in range(2)]
    value = torch.minimum(*q) - ALPHA * policy.log_prob(action).sum(-1)
    expected, acts = bellman(minibatch, value.numpy(), 0.9)
    assert torch.equal(known[0], acts)
    np.testing.assert_allclose(target[0][acts].numpy(), expected[acts], atol=1e-9)


def test_targets_of_several_choices_are_the_lower_twin_over_all_combinations():
    interface = interface_of("several", paradigm="independent")
    sac = build(SAC, CONFIG, interface)
    minibatch, target, _ = targets_of(sac, batch_of(interface))
    q = [alone(sac, k, minibatch, "next_") for k in range(2)]
    first, second = (x.softmax(-1) for x in outputs_of(sac, minibatch["a/next_observation"]).split((3, 2), -1))
    values, entropy = [0.0, 0.0], 0.0
    for i, j in itertools.product(range(3), range(2)):
        p = first[..., i] * second[..., j]
        values = [value + p * (x[..., i] + x[..., 3 + j]) for value, x in zip(values, q, strict=True)]
        entropy = entropy - p * p.log()
    expected, acts = bellman(minibatch, (torch.minimum(*values) + ALPHA * entropy).numpy(), 0.9)
    np.testing.assert_allclose(target[0][acts].numpy(), expected[acts], atol=1e-12)


def test_targets_of_a_team_know_what_the_others_would_do():
    """An agent's own choices are averaged over, the others' are drawn; who doesn't act next counts as nothing; and who was cut off is
    judged as if it went on."""
    interface = interface_of("discrete", "box")
    sac = build(SAC, CONFIG, interface)
    minibatch, target, known = targets_of(sac, batch_of(interface))
    noise = {g: minibatch[f"{g}/next_noise"][0] for g in "ab"}
    log_p = outputs_of(sac, minibatch["a/next_observation"]).log_softmax(-1)
    choice = torch.nn.functional.one_hot((log_p - (-noise["a"].log()).log()).argmax(-1), 4).double()
    said = sac.policies["b"].network(minibatch["b/next_observation"])[0].detach()
    parameters = sac.distribution("b").parameters(said, None)
    mean, deviation = parameters[..., :2], parameters[..., 2:].exp()
    action = (mean + deviation * noise["b"]).tanh()
    log_prob = TransformedDistribution(Normal(mean, deviation), [TanhTransform()]).log_prob(action).sum(-1)
    state = minibatch["next_state"][0]
    for s in range(6):
        here = {"a": minibatch["a/next_active"][0, s], "b": minibatch["b/next_active"][0, s]}
        if s == 1:
            here = {name: torch.ones_like(x) for name, x in here.items()}
        for n in range(3):
            others = [choice[s, i] * (here["a"][i] and i != n) for i in range(2)] + [action[s, 0] * (here["b"][0] and n != 2)]
            group, i = ("a", n) if n < 2 else ("b", 0)
            observation = minibatch[f"{group}/next_observation"][0, s, i]
            identity = [torch.eye(2, dtype=torch.float64)[i]] if group == "a" else []
            own = [action[s, 0]] if group == "b" else []
            x = torch.cat([observation, *identity, state[s], *others, *own])
            q = [critic.networks["ab".index(group)].body(x).detach() for critic in sac.target.copies]
            if group == "a":
                p = log_p[s, i].exp()
                value = (p * (torch.minimum(*q) - ALPHA * log_p[s, i])).sum()
            else:
                value = torch.minimum(*q)[0] - ALPHA * log_prob[s, 0]
            after = 0.0 if minibatch[f"{group}/terminated"][0, s, i] else value.item()
            assert known[0, s, n] == minibatch[f"{group}/active"][0, s, i]
            if known[0, s, n]:
                assert target[0, s, n].item() == pytest.approx(minibatch[f"{group}/reward"][0, s, i].item() + 0.9 * after, abs=1e-9)


def test_returns_of_several_steps_bootstrap_once():
    interface = interface_of("discrete", paradigm="independent")
    sac = build(SAC, replace(CONFIG, n_step=3), interface)
    minibatch, target, _ = targets_of(sac, batch_of(interface, steps=3))
    single = {name: x if name == "weight" else x[2:] for name, x in minibatch.items()}
    last, _ = sac.soft_targets(single, sac.taken(single))
    reward = minibatch["a/reward"]
    expected = reward[0] + 0.9 * reward[1] + 0.81 * last[0]
    torch.testing.assert_close(target[0][[0, 1, 4, 5]], expected[[0, 1, 4, 5]], rtol=0, atol=1e-12)


def test_the_critics_loss_is_the_squared_error_of_both():
    interface = interface_of("discrete", paradigm="independent")
    sac = build(SAC, CONFIG, interface)
    batch = batch_of(interface)
    batch["weight"][:] = torch.linspace(0.5, 1, 6)
    minibatch, target, known = targets_of(sac, batch)
    expected = 0.0
    for k in range(2):
        q = alone(sac, k, minibatch, "", online=True).gather(-1, minibatch["a/action"][0].unsqueeze(-1)).squeeze(-1)
        expected += (minibatch["weight"][0, :, None] * (q - target[0]) ** 2 * known[0]).sum().item()
    assert gradients(sac, minibatch)[0] == pytest.approx(expected, abs=1e-10)


def test_the_policys_gradient_is_that_of_the_masked_expectation_written_out():
    interface = interface_of("discrete", paradigm="independent", mask=True)
    sac = build(SAC, CONFIG, interface)
    minibatch = minibatch_of(sac, batch_of(interface), POLICY)
    loss, sums, gradient = gradients(sac, minibatch)
    q = torch.minimum(*(alone(sac, k, minibatch, "", online=True) for k in range(2)))
    logits = sac.policies["a"].network(minibatch["a/observation"])[0]
    mask, acts = minibatch["a/action_mask"][0], minibatch["a/active"][0]
    p = logits.exp() * mask
    p = p / p.sum(-1, keepdim=True)
    terms = torch.where(mask, p * (ALPHA * p.clamp_min(1e-300).log() - q), 0.0)
    expected = terms.sum(-1)[acts].sum()
    assert loss == pytest.approx(expected.item(), abs=1e-10)
    assert sums["count"] == acts.sum()
    written = torch.autograd.grad(expected, list(sac.policies["a"].parameters()))
    torch.testing.assert_close(gradient["a"], torch.cat([x.flatten() for x in written]), rtol=0, atol=1e-10)


def test_illegal_choices_have_no_gradient():
    interface = interface_of("discrete", mask=True)
    sac = build(SAC, CONFIG, interface)
    minibatch = minibatch_of(sac, batch_of(interface), POLICY)
    outputs = sac.policies["a"].network(minibatch["a/observation"]).detach().requires_grad_()
    value, entropy = sac.expected(minibatch, {"a": outputs}, "", sac.critics, [None, None])
    (value["a"] + 7e9 * entropy["a"]).sum().backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[~minibatch["a/action_mask"]].abs().max() == 0
    assert outputs.grad[minibatch["a/action_mask"]].abs().max() > 0


def test_a_boxs_gradient_goes_through_its_own_draw_alone():
    interface = interface_of("box")
    sac = build(SAC, CONFIG, interface)
    minibatch = minibatch_of(sac, batch_of(interface), POLICY)
    outputs = sac.policies["a"].network(minibatch["a/observation"]).detach().requires_grad_()
    value, _ = sac.expected(minibatch, {"a": outputs}, "", sac.critics, [None, None])
    value["a"][..., 0].sum().backward()
    assert outputs.grad[..., 0, :].abs().max() > 0
    assert outputs.grad[..., 1, :].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probability_of_a_squashed_draw_is_right_also_where_tanh_rounds_to_one(dtype):
    distribution = distribution_of(SPACES["box"], "squashed")
    parameters = torch.tensor([[0.3, -0.2, -1.0, 0.1], [9.0, -12.0, 0.0, 0.5], [40.0, 0.0, -2.0, 1.0]], dtype=dtype)
    noise = torch.tensor([[0.5, -1.0], [1.0, -1.5], [0.2, 2.0]], dtype=dtype)
    action, log_prob = distribution.draw(parameters, noise)
    assert torch.equal(action, distribution.sample(parameters, noise))
    mean, log_std = parameters.double().chunk(2, -1)
    before = mean + noise.double() * log_std.exp()
    # log(1 - tanh(u)^2) = log 4 - 2|u| - 2 log(1 + exp(-2|u|))
    change = math.log(4) - 2 * before.abs() - 2 * torch.log1p(torch.exp(-2 * before.abs()))
    expected = (Normal(mean, log_std.exp()).log_prob(before) - change).sum(-1)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("share", "falls"), [(0.0, True), (1.0, False)])
def test_the_temperature_moves_towards_the_entropy_that_is_wanted(share, falls):
    interface = interface_of("discrete", paradigm="independent")
    agent = agent_of(SAC, replace(CONFIG, discrete_entropy=share, alpha_lr=0.1), interface)
    assert agent.algorithm.temperature.log_alpha.exp().item() == pytest.approx(ALPHA)
    agent.learn(batch_of(interface), torch.arange(6), total=6, seed=0, env_steps=0)
    moved = agent.algorithm.temperature.log_alpha.item() - math.log(ALPHA)
    assert moved == pytest.approx(-0.1 if falls else 0.1, rel=1e-2)


def test_the_temperatures_gradient_is_how_much_entropy_there_is_too_much():
    interface = interface_of("discrete", "box", mask=True)
    sac = build(SAC, replace(CONFIG, discrete_entropy=0.5, box_entropy=-0.7), interface)
    batch = batch_of(interface)
    _, sums, gradient = gradients(sac, minibatch_of(sac, batch, POLICY))
    assert gradient["temperature"].abs().max() == 0
    minibatch = minibatch_of(sac, batch, TEMPERATURE)
    _, said, gradient = gradients(sac, minibatch)
    p = (sac.policies["a"].network(minibatch["a/observation"])[0].detach()).masked_fill(~minibatch["a/action_mask"][0], -math.inf)
    entropy = torch.distributions.Categorical(logits=p).entropy()
    goal = 0.5 * minibatch["a/action_mask"][0].sum(-1).double().log()
    a = ((entropy - goal) * minibatch["a/active"][0]).sum().item()
    parameters = sac.distribution("b").parameters(sac.policies["b"].network(minibatch["b/observation"])[0].detach(), None)
    _, log_prob = sac.distribution("b").draw(parameters, minibatch["b/noise"][0])
    b = (-log_prob + 0.7 * 2).sum().item()
    assert gradient["temperature"].tolist() == pytest.approx([a, b], abs=1e-9)
    assert said["count"] == sums["count"] == 6 * 3 - 1


def test_the_entropy_wanted_of_several_choices_counts_the_legal_ones_of_each():
    interface = interface_of("several", mask=True)
    sac = build(SAC, CONFIG, interface)
    mask = torch.tensor([[[[True, True, True, True, True], [True, False, True, False, True]]]])
    goal = sac.target_entropy({"a/action_mask": mask}, "a")
    assert goal.flatten().tolist() == pytest.approx([0.3 * (math.log(3) + math.log(2)), 0.3 * math.log(2)])


def test_a_temperature_that_stays_takes_no_pass():
    interface = interface_of("discrete")
    agent = agent_of(SAC, replace(CONFIG, alpha_lr=0.0), interface)
    metrics = agent.learn(batch_of(interface), torch.arange(6), total=6, seed=0, env_steps=0)
    assert agent.updates == 2
    assert metrics["loss/alpha"] == pytest.approx(ALPHA)
    assert agent.algorithm.temperature.log_alpha.exp().item() == pytest.approx(ALPHA)


def test_metrics_are_means_over_samples():
    interface = interface_of("discrete", paradigm="independent")
    agent = agent_of(SAC, replace(CONFIG, lr=1e-12, critic_lr=1e-12, alpha_lr=1e-12, target_tau=1e-12), interface)
    batch = batch_of(interface)
    sums = [gradients(agent.algorithm, minibatch_of(agent.algorithm, batch, place))[1] for place in (CRITIC, POLICY)]
    metrics = agent.learn({k: torch.cat([x, x], 1) for k, x in batch.items()}, torch.arange(6), total=6, seed=5, env_steps=0)
    assert metrics["loss/q"] == pytest.approx(sums[0]["q"] / 11, abs=1e-6)
    assert metrics["loss/entropy"] == pytest.approx(sums[1]["entropy"] / 11, abs=1e-6)
    assert metrics["loss/alpha"] == pytest.approx(ALPHA, abs=1e-6)


@pytest.mark.parametrize(
    ("interface", "options", "words"),
    [
        (
            interface_of(paradigm="centralized"),
            {},
            ["algorithm=sac", "independent or ctde", "paradigm=centralized", "algorithm=ppo"],
        ),
        (interface_of(paradigm="independent"), {"critic": "shared"}, ["algorithm.critic=shared", "ctde", "paradigm=independent"]),
        (interface_of(), {"alpha": 0.0}, ["algorithm.alpha=0.0", "greater than 0"]),
        (interface_of(), {"alpha_lr": -1.0}, ["algorithm.alpha_lr=-1.0", "0 (the temperature stays)"]),
        (interface_of(), {"discrete_entropy": 1.2}, ["algorithm.discrete_entropy=1.2", "between 0 and 1"]),
        (interface_of("box"), {"discrete_entropy": 0.5}, ["algorithm.discrete_entropy=0.5", "choices", "leave it out"]),
        (interface_of(), {"box_entropy": -2.0}, ["algorithm.box_entropy=-2.0", "boxes", "leave it out"]),
    ],
)
def test_what_it_cannot_serve_is_refused_with_what_would_work(interface, options, words):
    with pytest.raises(ConfigError) as caught:
        SAC.check(SACConfig(**options), interface, 10)
    assert [word for word in words if word not in str(caught.value)] == []


def test_it_takes_no_epsilon():
    assert not {name for name in SACConfig.__dataclass_fields__ if name.startswith("epsilon")}
