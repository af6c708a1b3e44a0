"""DQN, VDN and QMIX against their definitions written out, one sample at a time."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.replicas import Alone

from marl_hpc.agents import IndependentAgent, TeamAgent
from marl_hpc.algorithms.dqn import DQN, DQNConfig, best_of
from marl_hpc.algorithms.qmix import QMIX, Mixer, QMIXConfig
from marl_hpc.algorithms.vdn import VDN
from marl_hpc.distributions import Categorical
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

CHOICE, SEVERAL = ActionSpace(kind="discrete", n=4), ActionSpace(kind="multi_discrete", nvec=(3, 2))
A = GroupSpec(name="a", agents=("a0", "a1"), observation_shape=(3,), action_space=CHOICE, action_mask=True)
B = GroupSpec(name="b", agents=("b0",), observation_shape=(2,), action_space=SEVERAL)
S = 5
ALONE = InterfaceSpec(name="a", paradigm="independent", groups=(A,))
TEAM = InterfaceSpec(name="team", paradigm="ctde", groups=(A, B), team_reward="mean", critic_sees="state", state_size=S)
KINDS = {"dqn": (DQN, DQNConfig, ALONE), "vdn": (VDN, DQNConfig, TEAM), "qmix": (QMIX, QMIXConfig, TEAM)}
kinds = pytest.mark.parametrize("kind", KINDS)


def shaken(modules, seed=1, size=0.7):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


def build(kind, **options):
    """With networks and targets that are far from each other, and from their start."""
    algorithm, config, interface = KINDS[kind]
    options = {"hidden": [8], "gamma": 0.9, **options}
    built = algorithm(config(**options), interface, Alone(), device="cpu", dtype=torch.float64, seed=0)
    shaken([*built.policies.values(), built.mixer])
    shaken([*built.target_policies.values(), built.target_mixer], 2)
    return built


def sequences(built, length, count=40, seed=0, **options):
    """A minibatch [L, S, N, …] with weights [1, S]."""
    batch = batch_of(built.interface, length, count, seed, **options)
    generator = torch.Generator().manual_seed(seed)
    return {**batch, "weight": 0.1 + torch.rand(1, count, dtype=torch.float64, generator=generator)}


# the definition, with networks asked for one agent's observation at a time


def q_of(policy, observation, i):
    """Q-values [A] of agent i of a policy's group, without a memory."""
    everyone = torch.zeros(len(policy.group.agents), *observation.shape, dtype=torch.float64)
    everyone[i] = observation
    x = policy.network.inputs(everyone, None)[i]
    with torch.no_grad():
        for layer in policy.network.body:
            x = layer(x)
    return x.numpy()


def parts_of(group):
    ends = np.cumsum([0, *group.action_space.choices])
    return list(pairwise(ends.tolist()))


def best_value(group, judge, value, legal):
    """Σ over parts of the value of the best legal choice, as `judge` sees it."""
    total = 0.0
    for begin, end in parts_of(group):
        choices = [a for a in range(begin, end) if legal is None or legal[a]]
        total += value[max(choices, key=lambda a: judge[a])]
    return total


def taken_value(group, value, action):
    return sum(value[begin + int(a)] for (begin, _), a in zip(parts_of(group), np.atleast_1d(action), strict=True))


def agents_of(built):
    return [(group, i) for group in built.interface.groups for i in range(len(group.agents))]


def next_best(built, batch, t, s, group, i):
    """Double Q (van Hasselt et al. 2016): the online network chooses, the target network judges."""
    online, target = built.policies[group.name], built.target_policies[group.name]
    seen = batch[f"{group.name}/next_observation"][t, s, i]
    value = q_of(target, seen, i)
    judge = q_of(online, seen, i) if built.config.double else value
    mask = batch.get(f"{group.name}/next_action_mask")
    return best_value(group, judge, value, None if mask is None else mask[t, s, i])


def mixed(built, mixer, values, state):
    if not isinstance(built, QMIX):
        return sum(values)
    return by_hand(mixer, values, state)


def by_hand(mixer, values, state):
    """Rashid et al. 2018, figure 2: |W2|·elu(|W1|·Q + b1) + b2, all four from the state by small networks."""

    def network(module):
        weights = [p.detach().numpy() for p in module.parameters()]
        return weights[2] @ np.maximum(weights[0] @ state.numpy() + weights[1], 0) + weights[3]

    def linear(module):
        weights = [p.detach().numpy() for p in module.parameters()]
        return weights[0] @ state.numpy() + weights[1]

    first = np.abs(network(mixer.first)).reshape(len(values), -1)
    hidden = np.array(values) @ first + linear(mixer.first_bias)
    hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
    return float(hidden @ np.abs(network(mixer.last)) + network(mixer.last_bias)[0])


def expected(built, batch):
    """(Q of what was done, target, whether it is known) [L, S, N], or for a team [L, S, 1]: rewards up to the end of the episode or of
    the sequence, and there the best value of what follows; nothing follows a termination."""
    length, count = batch["first"].shape
    agents = agents_of(built)
    width = 1 if built.team else len(agents)
    q, target, known = np.zeros((3, length, count, width))

    def flag(name, t, s, group, i):
        return bool(batch[f"{group.name}/{name}"][t, s, i])

    for t, s in product(range(length), range(count)):
        active = [flag("active", t, s, *agent) for agent in agents]
        chosen = [
            taken_value(g, q_of(built.policies[g.name], batch[f"{g.name}/observation"][t, s, i], i), batch[f"{g.name}/action"][t, s, i])
            for g, i in agents
        ]  # fmt: skip
        units = [(None, None)] if built.team else agents
        for n, (group, i) in enumerate(units):
            own = agents if built.team else [(group, i)]
            known[t, s, n] = any(active) if built.team else active[n]
            q[t, s, n] = mixed(built, built.mixer, np.array(chosen) * active, batch["state"][t, s]) if built.team else chosen[n]
            total, discount = 0.0, 1.0
            for later in range(t, length):
                g0, i0 = own[0]
                total += discount * float(batch[f"{g0.name}/reward"][later, s, i0])
                discount *= built.config.gamma
                goes_on = [flag("next_active", later, s, *agent) for agent in own]
                cut = [flag("truncated", later, s, *agent) for agent in own]
                if any(goes_on) and later < length - 1:
                    continue
                if any(goes_on) or any(cut):
                    follow = [
                        next_best(built, batch, later, s, *agent) if there or truncated else 0.0
                        for agent, there, truncated in zip(own, goes_on, cut, strict=True)
                    ]
                    state = batch["next_state"][later, s] if built.team else None
                    total += discount * (mixed(built, built.target_mixer, follow, state) if built.team else follow[0])
                break
            target[t, s, n] = total
    return q, target, known.astype(bool)


@pytest.mark.parametrize("n_step", [1, 2, 4])
@pytest.mark.parametrize("double", [True, False])
@kinds
def test_loss_is_the_definitions_over_episodes_that_end_or_are_cut(kind, double, n_step):
    built = build(kind, n_step=n_step, double=double)
    batch = sequences(built, built.replay(built.config, built.interface).length)
    assert len(batch["first"]) == n_step
    q, target, known = expected(built, batch)
    error = np.where(known, q - target, 0)
    loss, sums = built.loss(batch)
    assert known.sum() > 30 * n_step
    assert loss.item() == pytest.approx((batch["weight"].numpy()[..., None] * error**2).sum(), rel=1e-9)
    assert float(sums["count"]) == known.sum()
    assert float(sums["value"]) == pytest.approx((error**2).sum(), rel=1e-9)
    assert float(sums["q"]) == pytest.approx(q[known].sum(), rel=1e-9)


@pytest.mark.parametrize("kind", ["vdn", "qmix"])
def test_a_team_has_a_future_where_one_member_is_cut_off_and_another_terminates(kind):
    built = build(kind)
    batch = sequences(built, 1)
    cut = batch["a/truncated"].all(-1)
    assert cut.sum() > 3
    batch["a/truncated"][..., 0] &= ~cut
    batch["a/terminated"][..., 0] |= cut
    q, target, known = expected(built, batch)
    loss, _ = built.loss(batch)
    error = np.where(known, q - target, 0)
    assert loss.item() == pytest.approx((batch["weight"].numpy()[..., None] * error**2).sum(), rel=1e-9)


@kinds
def test_prioritized_sequences_get_the_mixture_of_their_largest_and_mean_error(kind):
    """Kapturowski et al. 2019, section 3: p = η max δ + (1 - η) mean δ with η = 0.9, over what is known."""
    built = build(kind, n_step=3, priority_exponent=0.6)
    batch = sequences(built, 3)
    q, target, known = expected(built, batch)
    error = np.abs(np.where(known, q - target, 0)).transpose(1, 0, 2).reshape(40, -1)
    count = known.transpose(1, 0, 2).reshape(40, -1).sum(1)
    units = {name: x.unsqueeze(1) for name, x in batch.items()}
    for minibatch in built.minibatches(units, torch.arange(0), 0, 0, 0):
        built.loss(minibatch)
    assert built.priorities.shape == (1, 40)
    np.testing.assert_allclose(
        built.priorities[0].numpy(), 0.9 * error.max(1) + 0.1 * error.sum(1) / np.maximum(count, 1), rtol=1e-9
    )
    plain = build(kind, n_step=3)
    for minibatch in plain.minibatches(units, torch.arange(0), 0, 0, 0):
        plain.loss(minibatch)
    assert plain.priorities is None


@kinds
def test_values_of_scaled_rewards_are_learned(kind):
    plain, scaled = build(kind), build(kind, reward_scale=3.0)
    batch = sequences(plain, 1)
    rewards = {name: 3 * x if name.endswith("/reward") else x for name, x in batch.items()}
    assert scaled.loss(batch)[0].item() == pytest.approx(plain.loss(rewards)[0].item(), rel=1e-12)
    assert scaled.loss(batch)[0].item() != pytest.approx(plain.loss(batch)[0].item(), rel=1e-9)


@kinds
def test_standardized_rewards_have_mean_0_and_deviation_1_over_what_was_drawn(kind):
    built = build(kind, standardize_rewards=True)
    batch = {name: x.unsqueeze(1) for name, x in sequences(built, 3).items()}
    (given,) = built.minibatches(batch, torch.arange(0), 0, 0, 0)
    names = [name for name in batch if name.endswith("/reward")]
    before, after = (torch.cat([x[name].flatten() for name in names]) for x in (batch, given))
    torch.testing.assert_close(after, (before - before.mean()) / (before.std(correction=0) + 1e-8))
    assert all(torch.equal(x.squeeze(1), given[name]) for name, x in batch.items() if name not in names)


def constant(policy, values):
    """Q-values that don't depend on what is seen."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        list(policy.parameters())[-1].copy_(torch.tensor(values))


@pytest.mark.parametrize(("double", "best"), [(True, 30.0), (False, 40.0)])
def test_an_illegal_action_of_the_highest_value_is_in_no_target(double, best):
    """Online the best is action 1, which is illegal, then 2; the target network's values are [10, 99, 30, 40]."""
    built = build("dqn", double=double, gamma=0.5)
    constant(built.policies["a"], [1.0, 9.0, 5.0, 3.0])
    constant(built.target_policies["a"], [10.0, 99.0, 30.0, 40.0])
    batch = sequences(built, 1, 6, ends=0.0)
    batch["a/next_action_mask"][:] = torch.tensor([True, False, True, True])
    batch["a/action_mask"][:] = True
    taken = torch.tensor([1.0, 9.0, 5.0, 3.0], dtype=torch.float64)[batch["a/action"]]
    _, sums = built.loss(batch)
    error = batch["a/reward"] + 0.5 * best - taken
    assert float(sums["value"]) == pytest.approx(float((error**2).sum()), rel=1e-9)


@pytest.mark.parametrize("space", [CHOICE, SEVERAL])
def test_the_best_choice_is_legal_in_every_part(space):
    generator = torch.Generator().manual_seed(0)
    q, mask = torch.randn(500, space.size, generator=generator) - 5, torch.rand(500, space.size, generator=generator) < 0.5
    starts = np.cumsum([0, *space.choices[:-1]])
    mask[:, starts] = True
    best = best_of(Categorical(space), q, mask).reshape(500, -1)
    for row, legal, chosen in zip(q.tolist(), mask.tolist(), best.tolist(), strict=True):
        for start, n, action in zip(starts.tolist(), space.choices, chosen, strict=True):
            assert legal[start + action]
            assert row[start + action] == max(
                x for x, ok in zip(row[start : start + n], legal[start : start + n], strict=True) if ok
            )


@pytest.mark.parametrize("kind", ["vdn", "qmix"])
def test_the_dead_count_for_nothing_in_the_teams_value(kind):
    built = build(kind, n_step=2)
    batch = sequences(built, 2, 60)
    noisy = {name: x.clone() for name, x in batch.items()}
    for group in built.interface.groups:
        dead = ~batch[f"{group.name}/active"]
        gone = ~(batch[f"{group.name}/next_active"] | batch[f"{group.name}/truncated"])
        assert dead.any()
        noisy[f"{group.name}/observation"][dead] = 50.0
        noisy[f"{group.name}/next_observation"][gone] = -50.0
        noisy[f"{group.name}/action"][dead] = 1
    results = []
    for one in (batch, noisy):
        built.parameters.message.zero_()
        loss, _ = built.loss(one)
        loss.backward()
        results.append((loss.item(), built.parameters.values.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)
    alive = {name: x.clone() for name, x in batch.items()}
    alive["a/active"][:] = True
    assert built.loss(alive)[0].item() != pytest.approx(results[0][0], rel=1e-6)


def test_vdn_adds_values_up():
    values = torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed_values = build("vdn").mix(torch.nn.Identity(), values, None)
    assert mixed_values.shape == (4, 7, 1)
    np.testing.assert_allclose(mixed_values[..., 0].numpy(), sum(values[..., n].numpy() for n in range(3)), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_teams_value_grows_with_each_agents_value_in_every_state(seed):
    """Rashid et al. 2018, eq. 5, for random weights, states and values; the state itself may push either way."""
    generator = torch.Generator().manual_seed(seed)
    mixer = Mixer(3, S, QMIXConfig(embedding=6, hypernetwork=5), seed).double()
    shaken([mixer], seed, 2.0)
    values = (3 * torch.randn(50, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    state = (3 * torch.randn(50, S, dtype=torch.float64, generator=generator)).requires_grad_()
    total = mixer(values, state)
    assert total.shape == (50, 1)
    total.sum().backward()
    assert (values.grad >= 0).all()
    assert (values.grad > 0).float().mean() > 0.9
    assert (state.grad < 0).any()
    assert (state.grad > 0).any()
    for n in range(3):
        more = values.detach().clone()
        more[:, n] += 5.0
        assert (mixer(more, state) >= total).all()
    for row in range(5):
        assert by_hand(mixer, values[row].tolist(), state[row].detach()) == pytest.approx(total[row].item(), rel=1e-9)


@pytest.mark.parametrize("team_reward", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["vdn", "qmix"])
def test_teams_learn_the_mean_or_the_sum_of_all_agents_rewards_the_dead_included(kind, team_reward):
    algorithm, config, interface = KINDS[kind]
    agent = TeamAgent(
        algorithm, config(hidden=[8], n_step=2, lr=1e-9), replace(interface, team_reward=team_reward), Alone(),
        device=torch.device("cpu"), dtype=torch.float64, seed=0,
    )  # fmt: skip
    batch = sequences(agent.algorithm, 2)
    together = [batch["a/reward"][..., 0], batch["a/reward"][..., 1], batch["b/reward"][..., 0]]
    reward = sum(together) / (3 if team_reward == "mean" else 1)
    by_hand_too = {**batch, "a/reward": torch.stack([reward, reward], -1), "b/reward": reward.unsqueeze(-1)}
    q, target, known = expected(agent.algorithm, by_hand_too)
    metrics = agent.learn({name: x.unsqueeze(1) for name, x in batch.items()}, torch.arange(0), total=0, seed=0, env_steps=0)
    assert metrics["loss/value"] == pytest.approx(((q - target)[known] ** 2).mean(), rel=1e-6)


def agent_of(kind, **options):
    algorithm, config, interface = KINDS[kind]
    team = TeamAgent if algorithm.team else IndependentAgent
    device = torch.device("cpu")
    return team(algorithm, config(hidden=[8], lr=0.05, **options), interface, Alone(), device=device, dtype=torch.float64, seed=0)


@pytest.mark.parametrize(("tau", "every"), [(1.0, 3), (0.25, 1), (0.5, 2)])
@kinds
def test_targets_follow_by_a_share_at_every_so_many_gradient_steps(kind, tau, every):
    agent = agent_of(kind, target_tau=tau, target_every=every)
    batch = sequences(agent.algorithm, 1)
    expected_target = agent.parameters.values.detach().clone()
    assert torch.equal(agent.algorithm.target.state(), expected_target)  # mixers too
    for step in range(1, 8):
        agent.gradient_step(batch)
        if step % every == 0:
            expected_target = (1 - tau) * expected_target + tau * agent.parameters.values.detach()
        torch.testing.assert_close(agent.algorithm.target.state(), expected_target, rtol=1e-12, atol=1e-12)
    assert (agent.parameters.values - expected_target).abs().max() > 1e-3


@kinds
def test_state_of_a_learner_goes_on_with_its_targets(kind):
    one, other = agent_of(kind, target_tau=0.3, target_every=2), agent_of(kind, target_tau=0.3, target_every=2)
    batches = [sequences(one.algorithm, 1, seed=seed) for seed in range(6)]
    for batch in batches[:3]:
        one.gradient_step(batch)
    other.load_state(one.state_copy())
    for batch in batches[3:]:
        one.gradient_step(batch)
        other.gradient_step(batch)
    assert torch.equal(one.parameters.values, other.parameters.values)
    assert torch.equal(one.algorithm.target.state(), other.algorithm.target.state())


def test_dueling_values_are_a_value_and_advantages_around_their_mean():
    """Wang et al. 2016, eq. 9."""
    built = build("dqn", dueling=True)
    batch = sequences(built, 1, 5)
    policy = built.policies["a"]
    fields = {name.removeprefix("a/"): x for name, x in batch.items() if name.startswith("a/")}
    q, _ = policy.unroll(fields, torch.zeros(0), batch["first"])
    assert q.shape == (1, 5, 2, 4)
    for s, i in product(range(5), range(2)):
        value, *advantages = q_of(policy, batch["a/observation"][0, s, i], i)
        assert len(advantages) == 4
        np.testing.assert_allclose(q[0, s, i].detach().numpy(), value + np.array(advantages) - np.mean(advantages), rtol=1e-9)
        np.testing.assert_allclose(q[0, s, i].mean().item(), value, rtol=1e-9)


# with a memory


def recurrent(kind="dqn", burn_in=3, chunk=4):
    built = build(kind, gru=5, burn_in=burn_in, chunk=chunk)
    batch = sequences(built, burn_in + chunk, 20)
    generator = torch.Generator().manual_seed(4)
    for name, policy in built.policies.items():
        batch[f"{name}/memory"] = torch.randn(20, *policy.memory_shape, dtype=torch.float64, generator=generator)
    return built, batch


def q_step_by_step(policy, batch, name):
    """(Q [L, S, N, A] of each step, Q of what it led to), agent by agent and step by step from the stored memory."""
    length, count = batch["first"].shape
    q, q_next = (torch.zeros(length, count, len(policy.group.agents), policy.distributions[name].outputs) for _ in range(2))
    q, q_next = q.double(), q_next.double()
    with torch.no_grad():
        for s in range(count):
            memory = batch[f"{name}/memory"][s]
            for t in range(length):
                if batch["first"][t, s]:
                    memory = torch.zeros_like(memory)
                _, after = policy.network.step(batch[f"{name}/observation"][t, s], memory)
                memory = torch.where(batch[f"{name}/active"][t, s].unsqueeze(-1), after, memory)
                q[t, s] = policy.network.head(memory)
                q_next[t, s] = policy.network.step(batch[f"{name}/next_observation"][t, s], memory)[0]
    return q.numpy(), q_next.numpy()


def test_recurrent_loss_is_of_the_steps_after_the_burn_in_from_the_stored_memory():
    built, batch = recurrent()
    online, online_next = q_step_by_step(built.policies["a"], batch, "a")
    _, target_next = q_step_by_step(built.target_policies["a"], batch, "a")
    total, count = 0.0, 0
    for t, s, i in product(range(3, 7), range(20), range(2)):
        at = (t, s, i)
        if not batch["a/active"][at]:
            continue
        follow = best_value(A, online_next[at], target_next[at], batch["a/next_action_mask"][at])
        target = float(batch["a/reward"][at]) + 0.9 * follow * (not batch["a/terminated"][at])
        total += float(batch["weight"][0, s]) * (online[at][batch["a/action"][at]] - target) ** 2
        count += 1
    loss, sums = built.loss(batch)
    assert float(sums["count"]) == count
    assert loss.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("kind", ["dqn", "vdn", "qmix"])
def test_burn_in_steps_are_remembered_but_not_learned_from(kind):
    built, batch = recurrent(kind)
    loss = built.loss(batch)[0].item()

    def changed(name, part):
        other = {**batch, name: batch[name].clone()}
        other[name][part] += 1.0
        return built.loss(other)[0].item() != pytest.approx(loss, rel=1e-12)

    batch["first"][:] = False
    loss = built.loss(batch)[0].item()
    assert not changed("a/reward", slice(0, 3))
    assert not changed("a/next_observation", slice(0, 3))
    assert changed("a/reward", slice(3, 7))
    assert changed("a/observation", slice(0, 3))
    assert changed("a/memory", slice(None))
    batch["first"][2] = True  # an episode that starts in the burn-in forgets what was stored
    loss = built.loss(batch)[0].item()
    assert not changed("a/memory", slice(None))
    assert not changed("a/observation", slice(0, 2))
    assert changed("a/observation", slice(2, 3))


def test_no_gradient_flows_back_into_the_burn_in():
    built, batch = recurrent()
    batch["first"][:] = False
    batch["a/observation"].requires_grad_()
    built.loss(batch)[0].backward()
    per_step = batch["a/observation"].grad.abs().flatten(1).sum(1)
    assert (per_step[:3] == 0).all()
    assert (per_step[3:] > 0).all()


def test_sequences_with_a_memory_start_where_one_is_stored():
    config = DQNConfig(gru=5, burn_in=4, chunk=4)
    table = DQN.replay(config, ALONE)
    assert (table.length, table.stride) == (8, 4)
    assert (DQN.replay(DQNConfig(n_step=3), ALONE).length, DQN.replay(DQNConfig(n_step=3), ALONE).stride) == (3, 1)
