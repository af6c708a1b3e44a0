"""COMA against its definitions written out: counterfactual advantages, TD(λ) targets, and exploration inside the probabilities."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from rigs import inline
from rigs.batches import batch_of
from rigs.replicas import Alone, Pair

from marl_hpc.agents import TeamAgent
from marl_hpc.algorithms.coma import COMA, COMAConfig
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

A = GroupSpec(
    name="a", agents=("a0", "a1"), observation_shape=(3,), action_space=ActionSpace(kind="discrete", n=4), action_mask=True
)
B = GroupSpec(name="b", agents=("b0",), observation_shape=(2,), action_space=ActionSpace(kind="discrete", n=3))
TEAM = InterfaceSpec(name="team", paradigm="ctde", groups=(A, B), team_reward="mean", critic_sees="state", state_size=5)
AGENTS = [(A, 0), (A, 1), (B, 0)]
T, COPIES = 9, 6
PLAIN = {"hidden": [8], "normalize_values": False, "epsilon_start": 0.3, "epsilon_end": 0.3}


def shaken(module, seed=1, size=0.7):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


def build(exchange=None, **options):
    coma = COMA(COMAConfig(**{**PLAIN, **options}), TEAM, exchange or Alone(), device="cpu", dtype=torch.float64, seed=0)
    for seed, module in enumerate([*coma.policies.values(), coma.critic, coma.target]):
        shaken(module, seed)
    for policy in coma.policies.values():
        policy.epsilon = COMA.exploration(coma.config, 0)
    return coma


def probabilities(coma, group, observation, i, mask):
    """Foerster et al. 2018, section 6: π(a) = (1 - ε) softmax(a) + ε / |A|, over the legal actions of one agent."""
    everyone = torch.zeros(len(group.agents), *observation.shape, dtype=torch.float64)
    everyone[i] = observation
    with torch.no_grad():
        logits = coma.policies[group.name].network(everyone)[i].tolist()
    legal = [True] * len(logits) if mask is None else mask.tolist()
    exps = [math.exp(x) if ok else 0.0 for x, ok in zip(logits, legal, strict=True)]
    return np.array([0.7 * x / sum(exps) + (0.3 / sum(legal) if ok else 0.0) for x, ok in zip(exps, legal, strict=True)])


def pi(coma, batch, t, b, group, i, prefix=""):
    mask = batch.get(f"{group.name}/{prefix}action_mask")
    return probabilities(
        coma, group, batch[f"{group.name}/{prefix}observation"][t, b, i], i, None if mask is None else mask[t, b, i]
    )


def table(state, place, others, action):
    """A critic that is a table: of the state, the agent, what the others do (-1: nothing) and its own action."""
    return math.sin(3 * float(state[0]) + place + 1.7 * action + sum((j + 2) * (x + 1) * 0.6 for j, x in enumerate(others)))


def tabular(batch, chosen, prefix=""):
    """`table` in a critic's place: {group: Q [..., N, A]}."""
    lead = batch[f"{prefix}state"].shape[:-1]
    actions = {name: x.argmax(-1) if x.is_floating_point() else x for name, x in chosen.items()}
    values = {g.name: torch.zeros(*lead, len(g.agents), g.action_space.n, dtype=torch.float64) for g in TEAM.groups}
    for at in np.ndindex(*lead):
        does = [
            int(actions[g.name][(*at, i)]) if batch[f"{g.name}/{prefix}active"][(*at, i)] else -1 for g, i in AGENTS
        ]  # fmt: skip
        for place, (g, i) in enumerate(AGENTS):
            others = does[:place] + does[place + 1 :]
            for action in range(g.action_space.n):
                values[g.name][(*at, i, action)] = table(batch[f"{prefix}state"][at], place, others, action)
    return values


def with_tables(coma):
    coma.critic.forward = coma.target.forward = tabular
    return coma


def test_advantage_is_what_the_own_action_added_to_the_mean_over_the_own_actions():
    """Foerster et al. 2018, eq. 4, with a table as the critic; the others' actions stay what they were."""
    coma = with_tables(build())
    batch = batch_of(TEAM, T, COPIES)
    advantage = coma.with_counterfactuals(coma.with_targets(batch, first=True))["advantage"]
    seen = 0
    for t, b in product(range(T), range(COPIES)):
        does = [int(batch[f"{g.name}/action"][t, b, i]) if batch[f"{g.name}/active"][t, b, i] else -1 for g, i in AGENTS]
        for place, (g, i) in enumerate(AGENTS):
            if does[place] < 0:
                assert advantage[t, b, place] == 0
                continue
            others = does[:place] + does[place + 1 :]
            q = [table(batch["state"][t, b], place, others, action) for action in range(g.action_space.n)]
            expected = q[does[place]] - sum(pi(coma, batch, t, b, g, i) * q)
            assert advantage[t, b, place].item() == pytest.approx(expected, abs=1e-12)
            seen += 1
    assert seen > 100


def test_advantages_weighted_by_the_own_policy_are_zero_with_the_real_critic():
    coma = build()
    batch = coma.with_targets(batch_of(TEAM, T, COPIES), first=True)
    for place, (g, i) in enumerate(AGENTS):
        total, size = torch.zeros(T, COPIES, dtype=torch.float64), 0.0
        for action in range(g.action_space.n):
            actions = batch[f"{g.name}/action"].clone()
            actions[..., i] = action
            advantage = coma.with_counterfactuals({**batch, f"{g.name}/action": actions})["advantage"][..., place]
            for t, b in product(range(T), range(COPIES)):
                total[t, b] += pi(coma, batch, t, b, g, i)[action] * advantage[t, b]
            size = max(size, advantage.abs().max().item())
        assert size > 0.1
        assert total.abs().max() < 1e-10


def test_the_critic_hears_what_the_others_who_act_do_and_not_the_agent_itself():
    coma = build()
    batch = batch_of(TEAM, T, COPIES)

    def values(one):
        with torch.no_grad():
            q = coma.critic(one, coma.chosen(one))
        return torch.cat([torch.nn.functional.pad(q[g.name], (0, 4 - g.action_space.n)) for g in TEAM.groups], -2)

    before = values(batch)
    for place, (g, i) in enumerate(AGENTS):
        other = {**batch, f"{g.name}/action": batch[f"{g.name}/action"].clone()}
        other[f"{g.name}/action"][..., i] = (other[f"{g.name}/action"][..., i] + 1) % g.action_space.n
        moved, acts = (values(other) != before).any(-1), batch[f"{g.name}/active"][..., i]
        for judged in range(3):
            assert torch.equal(moved[..., judged], acts if judged != place else torch.zeros_like(acts))


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_critic_targets_are_td_lambda_by_the_target_critic(lam):
    """G_t = r_t + γ ((1 - λ) Q(t+1) + λ G_{t+1}); at an episode's cut, and at the fragment's end, r_t + γ E_π Q of what follows, the
    others doing what they most likely would; a termination is followed by nothing."""
    coma = build(gae_lambda=lam, gamma=0.9)
    coma.target.forward = tabular
    batch = batch_of(TEAM, T, COPIES, ends=0.2)
    result = coma.with_targets(batch, first=True)

    def q(t, b, place):
        does = [int(batch[f"{g.name}/action"][t, b, i]) if batch[f"{g.name}/active"][t, b, i] else -1 for g, i in AGENTS]
        return table(batch["state"][t, b], place, does[:place] + does[place + 1 :], does[place])

    def after(t, b, place):
        does = []
        for g, i in AGENTS:
            there = batch[f"{g.name}/next_active"][t, b, i] or batch[f"{g.name}/truncated"][t, b, i]
            does.append(int(pi(coma, batch, t, b, g, i, "next_").argmax()) if there else -1)
        g, i = AGENTS[place]
        others = does[:place] + does[place + 1 :]
        return sum(
            p * table(batch["next_state"][t, b], place, others, a) for a, p in enumerate(pi(coma, batch, t, b, g, i, "next_"))
        )

    def target(t, b, place):
        g, i = AGENTS[place]
        reward = float(batch[f"{g.name}/reward"][t, b, i])
        if batch[f"{g.name}/terminated"][t, b, i]:
            return reward
        if batch[f"{g.name}/truncated"][t, b, i] or t == T - 1:
            return reward + 0.9 * after(t, b, place)
        return reward + 0.9 * ((1 - lam) * q(t + 1, b, place) + lam * target(t + 1, b, place))

    known, cuts = 0, 0
    for t, b, place in np.ndindex(T, COPIES, 3):
        g, i = AGENTS[place]
        assert result["known"][t, b, place] == batch[f"{g.name}/active"][t, b, i]
        if result["known"][t, b, place]:
            assert result["target"][t, b, place].item() == pytest.approx(target(t, b, place), abs=1e-10)
            known, cuts = known + 1, cuts + int(batch[f"{g.name}/truncated"][t, b, i])
    assert known > 100
    assert cuts > 3


def test_exploration_is_inside_the_probabilities_of_loss_and_gradient():
    coma = build(entropy=0.0, critic_steps=1, max_weight=1.5)
    *_, minibatch = list(coma.minibatches(batch_of(TEAM, T, COPIES), torch.arange(COPIES), COPIES, 0, 0))
    assert coma.trained == 0
    coma.parameters.message.zero_()
    loss, _ = coma.loss(minibatch)
    loss.backward()
    found = coma.parameters.values.grad.clone()
    log_prob = coma.act(minibatch)[0]
    place, total = 0, torch.zeros((), dtype=torch.float64)
    for g in TEAM.groups:
        logits = coma.policies[g.name].network(minibatch[f"{g.name}/observation"])
        mask = minibatch.get(f"{g.name}/action_mask", torch.ones_like(logits, dtype=torch.bool)).double()
        soft = (logits.exp() * mask) / (logits.exp() * mask).sum(-1, keepdim=True)
        floor = 0.7 * soft + 0.3 * mask / mask.sum(-1, keepdim=True)
        own = floor.gather(-1, minibatch[f"{g.name}/action"].unsqueeze(-1)).squeeze(-1).log()
        span = slice(place, place := place + len(g.agents))
        torch.testing.assert_close(log_prob[..., span], own, rtol=0, atol=1e-10)
        weight = (own.detach() - minibatch["log_prob"][..., span]).exp().clamp(max=1.5)  # nothing has been learned in between
        total = total - (own * weight * minibatch["advantage"][..., span] * minibatch["known"][..., span]).sum()
    assert loss.item() == pytest.approx(total.item(), rel=1e-9)
    coma.parameters.message.zero_()
    total.backward()
    torch.testing.assert_close(found, coma.parameters.values.grad, rtol=1e-8, atol=1e-10)
    assert found.abs().max() > 1e-3


def agent_of(exchange=None, **options):
    config = COMAConfig(**{"hidden": [8], "critic_steps": 3, "target_every": 2, "lr": 0.01, "critic_lr": 0.02, **options})
    return TeamAgent(COMA, config, TEAM, exchange or Alone(), device=torch.device("cpu"), dtype=torch.float64, seed=0)


def test_policies_and_critic_are_optimized_each_by_itself_and_the_target_follows_critic_steps():
    agent = agent_of()
    coma, parameters = agent.algorithm, agent.parameters.values.detach()
    policies = sum(p.numel() for policy in coma.policies.values() for p in policy.parameters())
    target = coma.targets.state()
    batch, critic_steps, turns = batch_of(TEAM, T, COPIES), 0, []
    for _ in range(3):
        for minibatch in coma.minibatches(agent.rewarded(batch), torch.arange(COPIES), COPIES, 0, 0):
            before, moments = parameters.clone(), [optimizer.mean.clone() for optimizer in agent.optimizers]
            turns.append(coma.trained)
            agent.gradient_step(minibatch)
            trained, other = (
                (slice(policies, None), slice(policies)) if coma.trained == 1 else (slice(policies), slice(policies, None))
            )
            assert torch.equal(parameters[other], before[other])
            assert not torch.equal(parameters[trained], before[trained])
            assert torch.equal(agent.optimizers[1 - coma.trained].mean, moments[1 - coma.trained])
            if coma.trained == 1:
                critic_steps += 1
                if critic_steps % 2 == 0:
                    target = parameters[policies:].clone()
            assert torch.equal(coma.targets.state(), target)
    assert turns == [1, 1, 1, 0] * 3


def test_two_replicas_learn_the_parameters_of_one():
    batch = batch_of(TEAM, T, COPIES)

    def train(exchange, columns):
        agent = agent_of(exchange, normalize_advantages=True)
        for seed in range(2):
            part = {name: x[:, columns] for name, x in batch.items()}
            agent.learn(part, torch.tensor(columns), total=COPIES, seed=seed, env_steps=0)
        return agent.parameters.values.detach(), agent.algorithm.targets.state()

    alone, target = train(Alone(), list(range(COPIES)))
    (first, first_target), (second, _) = Pair().run(lambda exchange, place: train(exchange, [[0, 3, 5], [1, 2, 4]][place]))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(first_target, target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("memory", [[], ["algorithm.gru=4"]])
def test_workers_explore_by_the_probabilities_that_are_learned_from(tmp_path, memory):
    overrides = ["algorithm=coma", "paradigm=ctde", "env.name=rigs.games:board", "env.masked=true", "rollout.max_lag=0", *memory]
    lines = inline.train(tmp_path, *overrides, "algorithm.epsilon_steps=120", "budget.env_steps=120")
    deviations = [line["loss/first_ratio_deviation"] for line in lines if "loss/first_ratio_deviation" in line]
    assert len(deviations) == 3
    assert max(deviations) < 1e-5
