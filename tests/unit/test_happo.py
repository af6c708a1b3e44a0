"""HAPPO against a plain loop over Kuba et al. 2022, algorithm 4."""

from dataclasses import replace

import pytest
import torch
from rigs.batches import batch_of
from rigs.replicas import Alone, Pair

from marl_hpc.agents import TeamAgent
from marl_hpc.algorithms.happo import HAPPO
from marl_hpc.algorithms.ppo import PPOConfig
from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

SPACES = {
    "x": ActionSpace(kind="discrete", n=4), "y": ActionSpace(kind="multi_discrete", nvec=(3, 2)),
    "z": ActionSpace(kind="box", shape=(2,)),
}  # fmt: skip
GROUPS = tuple(
    GroupSpec(name=name, agents=(name,), observation_shape=(3,), action_space=space, action_mask=name == "x")
    for name, space in SPACES.items()
)
TEAM = InterfaceSpec(name="team", paradigm="ctde", groups=GROUPS, team_reward="mean", critic_sees="state", state_size=4)
CONFIG = PPOConfig(hidden=[8], epochs=2, minibatches=2, lr=0.02, max_weight=1.5)
T, B = 6, 5


def agent_of(exchange=None, config=CONFIG):
    return TeamAgent(HAPPO, config, TEAM, exchange or Alone(), device=torch.device("cpu"), dtype=torch.float64, seed=0)


def log_probs_of(agent, name, batch):
    """Of one agent's actions [T, B], by torch's own distributions."""
    policy, space = agent.algorithm.policies[name], SPACES[name]
    with torch.no_grad():
        out, action = policy.network(batch[f"{name}/observation"])[:, :, 0], batch[f"{name}/action"][:, :, 0]
    if space.kind == "box":
        return torch.distributions.Normal(out, policy.log_std[name].detach().exp()).log_prob(action).sum(-1)
    if space.kind == "multi_discrete":
        parts = zip(out.split(space.nvec, -1), action.unbind(-1), strict=True)
        return sum(torch.distributions.Categorical(logits=part).log_prob(choice) for part, choice in parts)
    return torch.distributions.Categorical(logits=out.masked_fill(~batch[f"{name}/action_mask"][:, :, 0], -1e30)).log_prob(action)


def tagged(batch):
    return {**batch, "tag": torch.arange(T * B).reshape(T, B)}


def test_agents_are_updated_in_one_random_order_and_the_critics_last():
    orders = set()
    for seed in range(20):
        agent = agent_of()
        turns = [agent.algorithm.trained for _ in agent.algorithm.minibatches(batch_of(TEAM, T, B), torch.arange(B), B, seed, 0)]
        assert turns[12:] == [3] * 4
        assert all(len(set(turns[k : k + 4])) == 1 for k in range(0, 12, 4))
        orders.add(tuple(turns[:12:4]))
        assert sorted(turns[:12:4]) == [0, 1, 2]
    assert len(orders) == 6


@pytest.mark.parametrize("ends", [0.0, 0.2])
def test_the_factor_is_the_product_of_the_ratios_of_those_before_over_the_whole_batch(ends):
    agent, batch = agent_of(), tagged(batch_of(TEAM, T, B, ends=ends))
    start = {name: log_probs_of(agent, name, batch) for name in SPACES}
    names, seen, moved = list(SPACES), [], 0.0
    for minibatch in agent.algorithm.minibatches(agent.rewarded(batch), torch.arange(B), B, 1, 0):
        trained = agent.algorithm.trained
        if trained < 3:
            if trained not in seen:
                factor = torch.ones(T, B, dtype=torch.float64)
                for place in seen:  # who has been updated is as it will be; who is dead has changed nothing
                    name = names[place]
                    ratio = (log_probs_of(agent, name, batch) - start[name]).exp()
                    factor = factor * torch.where(batch[f"{name}/active"][:, :, 0], ratio, 1.0)
                seen.append(trained)
                moved = max(moved, (factor - 1).abs().max().item())
            torch.testing.assert_close(minibatch["factor"][0, :, 0], factor.flatten()[minibatch["tag"][0]], rtol=0, atol=1e-10)
        agent.gradient_step(minibatch)
    assert len(seen) == 3
    assert moved > 0.01


@pytest.mark.parametrize(
    ("correction", "bound"),
    [
        ({}, 1.5), ({"correction": "vtrace", "max_weight": 2.0, "rho_bar": 1.2}, 1.2),
        ({"correction": "none", "max_weight": 2.0}, None),
    ],
)  # fmt: skip
def test_loss_of_an_agent_is_its_clipped_surrogate_times_the_factor(correction, bound):
    config = replace(CONFIG, entropy=0.0, minibatches=1, **correction)
    HAPPO.check(config, TEAM, T)
    agent, batch = agent_of(config=config), tagged(batch_of(TEAM, T, B))
    start = {name: log_probs_of(agent, name, batch) for name in SPACES}
    checked = 0
    for minibatch in agent.algorithm.minibatches(agent.rewarded(batch), torch.arange(B), B, 1, 0):
        trained, rows = agent.algorithm.trained, minibatch["tag"][0]
        if trained < 3:
            name = list(SPACES)[trained]
            now, before = (x.flatten()[rows] for x in (log_probs_of(agent, name, batch), start[name]))
            active = batch[f"{name}/active"].flatten()[rows]
            acted = batch[f"{name}/log_prob"].flatten()[rows]
            advantage = minibatch["advantage"][0, :, trained] * minibatch["factor"][0, :, 0]
            total = 0.0
            for i in range(len(rows)):
                if active[i]:
                    ratio = (now[i] - before[i]).exp()
                    weight = 1.0 if bound is None else min((before[i] - acted[i]).exp().item(), bound)
                    gain = weight * advantage[i]
                    total -= min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).item()
            assert agent.algorithm.loss(minibatch)[0].item() == pytest.approx(total, rel=1e-9)
            checked += 1
        agent.gradient_step(minibatch)
    assert checked == 6


def test_updating_one_agent_leaves_the_others_and_their_momentum_alone():
    agent = agent_of()
    sizes = [sum(p.numel() for p in module.parameters()) for module in [*agent.algorithm.policies.values(), agent.algorithm.critic]]
    parameters = agent.parameters.values.detach()
    for seed in range(2):  # in the second batch everyone has momentum
        for minibatch in agent.algorithm.minibatches(agent.rewarded(batch_of(TEAM, T, B)), torch.arange(B), B, seed, 0):
            before = parameters.clone().split(sizes)
            moments = [{name: x.clone() for name, x in optimizer.state().items()} for optimizer in agent.optimizers]
            agent.gradient_step(minibatch)
            for place, (old, new) in enumerate(zip(before, parameters.split(sizes), strict=True)):
                same = torch.equal(old, new)
                kept = all(torch.equal(x, moments[place][name]) for name, x in agent.optimizers[place].state().items())
                assert same == kept == (place != agent.algorithm.trained)
    assert [int(optimizer.count) for optimizer in agent.optimizers] == [8] * 4


@pytest.mark.parametrize("split", [([0, 3], [1, 2, 4]), ([0, 1, 2, 3, 4], [])])
def test_two_replicas_learn_the_parameters_of_one_in_the_same_order(split):
    batch = batch_of(TEAM, T, B)

    def train(exchange, columns):
        agent, turns = agent_of(exchange), []
        step = agent.gradient_step
        agent.gradient_step = lambda minibatch: (turns.append(agent.algorithm.trained), step(minibatch))[1]
        for seed in range(2):
            part = {name: x[:, columns] for name, x in batch.items()}
            metrics = agent.learn(part, torch.tensor(columns, dtype=torch.int64), total=B, seed=seed, env_steps=0)
        return agent.parameters.values.detach(), turns, metrics

    alone, turns, metrics = train(Alone(), list(range(B)))
    (first, first_turns, first_metrics), (second, second_turns, _) = Pair().run(
        lambda exchange, place: train(exchange, split[place])
    )
    assert turns == first_turns == second_turns
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)
    for name in ("loss/policy", "loss/value", "loss/entropy", "loss/kl"):
        assert first_metrics[name] == pytest.approx(metrics[name], abs=1e-9)


def test_shared_policies_are_refused():
    shared = GroupSpec(name="s", agents=("s0", "s1"), observation_shape=(3,), action_space=SPACES["x"])
    HAPPO.check(CONFIG, TEAM, 20)
    with pytest.raises(ConfigError, match=r"group 's' has 2 agents: set groups=separate"):
        HAPPO.check(CONFIG, replace(TEAM, groups=(*GROUPS, shared)), 20)
