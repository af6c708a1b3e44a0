"""Policies as networks: what they give is what the distributions make of it."""

import itertools

import numpy as np
import pytest
import torch

from marl_hpc.actors import Actor, build_policy
from marl_hpc.distributions import draw_noise
from marl_hpc.types import ActionSpace, GroupSpec

DISCRETE = ActionSpace(kind="discrete", n=5)
BOX = ActionSpace(kind="box", shape=(3,))
NETWORK = {"hidden": [16, 16], "activation": "tanh", "agent_id": True}


def group_of(space=DISCRETE, agents=2, shape=(4,), name="g"):
    return GroupSpec(
        name=name, agents=tuple(f"{name}{i}" for i in range(agents)), observation_shape=shape, action_space=space, action_mask=False
    )


def actor_of(space=DISCRETE, agents=2, shape=(4,), seed=0, **network):
    actor = Actor(group_of(space, agents, shape), {**NETWORK, **network}, seed).double()
    with torch.no_grad():  # the initial policy is nearly uniform; one that prefers something shows more
        for parameter in actor.parameters():
            parameter *= 6
    return actor


def parameters_of(actor, x, mask=None):
    """Distribution parameters for observations [..., N, D]."""
    return actor.settle(actor.group, actor.network(x), mask)


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_sampled_frequencies_are_the_softmax():
    actor = actor_of()
    parameters = parameters_of(actor, numbers(1, 2, 4))[0].detach()
    noise = torch.from_numpy(draw_noise(DISCRETE, np.random.default_rng(0), (40_000, 2)))
    drawn = actor.distributions["g"].sample(parameters.expand(40_000, 2, 5), noise)
    for agent in range(2):
        counts = np.bincount(drawn[:, agent], minlength=5)
        assert chi_square(counts, parameters[agent].exp().numpy()) < 18.5  # 0.999 quantile with 4 degrees of freedom
        assert chi_square(counts, np.full(5, 0.2)) > 18.5  # it would show


def test_discrete_distribution_is_torchs_categorical():
    actor = actor_of()
    parameters = parameters_of(actor, numbers(6, 2, 4)).detach()
    reference = torch.distributions.Categorical(logits=parameters)
    action = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        actor.distributions["g"].log_prob(parameters, action), reference.log_prob(action), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(actor.distributions["g"].entropy(parameters), reference.entropy(), rtol=0, atol=1e-12)
    assert torch.equal(actor.distributions["g"].mode(parameters), reference.probs.argmax(-1))


def test_box_distribution_is_torchs_normal():
    actor = actor_of(BOX)
    with torch.no_grad():
        actor.log_std["g"].copy_(torch.tensor([-1.0, 0.2, 0.7]))
    parameters = parameters_of(actor, numbers(6, 2, 4)).detach()
    mean = parameters[..., :3]
    reference = torch.distributions.Normal(mean, actor.log_std["g"].exp())
    noise = numbers(6, 2, 3, seed=2)
    action = actor.distributions["g"].sample(parameters, noise)
    torch.testing.assert_close(action, mean + noise * actor.log_std["g"].exp())
    torch.testing.assert_close(
        actor.distributions["g"].log_prob(parameters, action), reference.log_prob(action).sum(-1), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(actor.distributions["g"].entropy(parameters), reference.entropy().sum(-1), rtol=0, atol=1e-12)
    assert torch.equal(actor.distributions["g"].mode(parameters), mean)


def test_box_samples_have_the_mean_and_deviation_of_the_policy():
    actor = actor_of(BOX)
    parameters = parameters_of(actor, numbers(1, 2, 4))[0].detach()
    noise = torch.from_numpy(draw_noise(BOX, np.random.default_rng(0), (40_000, 2)))
    drawn = actor.distributions["g"].sample(parameters, noise).detach()
    deviation = actor.log_std["g"].exp().detach()
    assert ((drawn.mean(0) - parameters[..., :3]).abs() < 4 * deviation / 200).all()
    torch.testing.assert_close(drawn.std(0), deviation.expand(2, 3), rtol=0.02, atol=0)


def test_masked_actions_are_never_drawn_and_the_rest_is_renormalized():
    actor = actor_of()
    x = numbers(1, 2, 4)
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    parameters = parameters_of(actor, x, mask[None])[0].detach()
    logits = actor.network(x)[0].detach().numpy()
    weights = np.exp(logits) * mask.numpy()
    np.testing.assert_allclose(parameters.exp().numpy(), weights / weights.sum(-1, keepdims=True), atol=1e-12)
    noise = torch.from_numpy(draw_noise(DISCRETE, np.random.default_rng(0), (20_000, 2)))
    drawn = actor.distributions["g"].sample(parameters.expand(20_000, 2, 5), noise)
    assert set(drawn[:, 0].tolist()) == {0, 2, 3}
    assert set(drawn[:, 1].tolist()) == {2}
    assert mask.gather(1, actor.distributions["g"].mode(parameters)[:, None]).all()
    entropy = actor.distributions["g"].entropy(parameters)
    assert entropy[1].item() == pytest.approx(0, abs=1e-12)
    legal = weights[0][mask[0]] / weights[0].sum()
    assert entropy[0].item() == pytest.approx(-(legal * np.log(legal)).sum(), abs=1e-12)


class LargestUniform:
    """What a generator may give: the largest number below one that it can draw."""

    def random(self, shape):
        return np.full(shape, 1 - 2**-53)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_actions_are_not_drawn_even_by_the_most_extreme_noise(dtype):
    actor = actor_of(agents=1).to(dtype)
    mask = torch.tensor([[[False, True, True, True, True]]])
    parameters = parameters_of(actor, torch.zeros(1, 1, 4, dtype=dtype), mask).detach()
    extreme = draw_noise(DISCRETE, LargestUniform(), (1, 1))
    noise = torch.full((1, 1, 5), 0.5, dtype=torch.float64)
    noise[..., 0] = torch.from_numpy(extreme)[..., 0]
    drawn = actor.distributions["g"].sample(parameters, noise.to(dtype))
    assert drawn.item() != 0


def test_gradients_with_masks_are_finite():
    actor = actor_of().float()
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    parameters = parameters_of(actor, numbers(3, 2, 4).float(), mask.expand(3, 2, 5))
    (
        actor.distributions["g"].entropy(parameters).sum()
        + actor.distributions["g"].log_prob(parameters, torch.full((3, 2), 2)).sum()
    ).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in actor.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in actor.parameters())


# a team's one policy

COIN, DIE = ActionSpace(kind="discrete", n=2), ActionSpace(kind="discrete", n=3)


def joint_of(groups, autoregressive, seed=0, **network):
    options = {**NETWORK, "hidden": [32], "joint": True, "autoregressive": autoregressive, **network}
    return build_policy(groups, options, seed).double()


def all_actions(groups):
    """[every joint action, N], in the order of the groups."""
    sizes = [g.action_space.n for g in groups for _ in g.agents]
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def joint_log_prob(policy, groups, observed=0.0):
    """Log-probability of each joint action, all agents acting."""
    actions = all_actions(groups)
    inputs, start = {}, 0
    for g in groups:
        lead = (1, len(actions), len(g.agents))
        inputs[g.name] = {
            "observation": torch.full((*lead, *g.observation_shape), observed, dtype=torch.float64),
            "active": torch.ones(lead, dtype=torch.bool),
            "action": actions[None, :, start : start + len(g.agents)],
        }
        start += len(g.agents)
    memory = torch.zeros(len(actions), *policy.memory_shape, dtype=torch.float64)
    parameters = policy.parameters_of(inputs, memory, torch.zeros(1, len(actions), dtype=torch.bool))
    parts = [policy.distributions[g.name].log_prob(parameters[g.name], inputs[g.name]["action"]) for g in groups]
    return torch.cat(parts, -1)[0].sum(-1)


def fit(policy, groups, target):
    """The cross-entropy that training towards a joint distribution [joint actions] ends with."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = -(target * joint_log_prob(policy, groups)).sum()
        loss.backward()
        optimizer.step()
    return loss.item()


CORRELATED = {
    "two agents of a group": ([group_of(COIN)], [[0.5, 0.0], [0.0, 0.5]]),
    "two groups": ([group_of(COIN, 1, name="a"), group_of(DIE, 1, name="b")], [[0.3, 0.1, 0.0], [0.05, 0.05, 0.5]]),
}


@pytest.mark.parametrize(("groups", "table"), CORRELATED.values(), ids=CORRELATED)
def test_autoregressive_policy_plays_any_joint_distribution_and_a_factored_one_its_best_product(groups, table):
    table = torch.tensor(table, dtype=torch.float64)
    target = table.flatten()
    entropy = -(target * target.clamp_min(1e-300).log()).sum().item()
    marginals = [table.sum(1), table.sum(0)]
    best_product = -sum((p * p.log()).sum().item() for p in marginals)
    assert best_product > entropy + 0.1
    assert fit(joint_of(groups, True), groups, target) == pytest.approx(entropy, abs=0.01)
    factored = fit(joint_of(groups, False), groups, target)
    assert factored >= best_product - 1e-9
    assert factored == pytest.approx(best_product, abs=0.01)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_probabilities_of_joint_actions_sum_to_one_and_are_what_is_drawn(autoregressive):
    groups = [group_of(COIN, 2, name="a"), group_of(DIE, 1, name="b")]
    policy = joint_of(groups, autoregressive)
    with torch.no_grad():
        for parameter in policy.body.parameters():
            parameter *= 100
    probabilities = joint_log_prob(policy, groups, observed=0.7).exp().detach()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    rows, random = 20_000, np.random.default_rng(0)
    inputs, noise = {}, {}
    for g in groups:
        lead = (rows, len(g.agents))
        inputs[g.name] = {
            "observation": torch.full((*lead, *g.observation_shape), 0.7, dtype=torch.float64),
            "active": torch.ones(lead, dtype=torch.bool),
        }
        noise[g.name] = torch.from_numpy(draw_noise(g.action_space, random, lead))
    drawn = policy.act(inputs, torch.zeros(rows, *policy.memory_shape, dtype=torch.float64), noise)[0]
    together = torch.cat([drawn["a"], drawn["b"]], -1)
    counts = np.array([(together == action).all(-1).sum().item() for action in all_actions(groups)])
    assert chi_square(counts, probabilities.numpy()) < 31.3  # 0.999 quantile with 11 degrees of freedom
    assert chi_square(counts, np.full(12, 1 / 12)) > 31.3


def test_what_an_agent_does_depends_on_those_before_it_that_act():
    groups = [group_of(COIN, 1, name="a"), group_of(BOX, 1, name="b"), group_of(COIN, 1, name="c")]
    policy = joint_of(groups, True)
    inputs = {
        g.name: {
            "observation": numbers(1, 1, 1, 4),
            "active": torch.ones(1, 1, 1, dtype=torch.bool),
            "action": torch.zeros(1, 1, 1, dtype=torch.int64) if g.action_space is COIN else numbers(1, 1, 1, 3),
        }
        for g in groups
    }
    memory, first = torch.zeros(1, *policy.memory_shape, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool)

    def seen(**changes):
        changed = {name: {**fields, **changes.get(name, {})} for name, fields in inputs.items()}
        return policy.parameters_of(changed, memory, first)

    def differ(one, other):
        return [not torch.equal(one[name], other[name]) for name in ("a", "b", "c")]

    base = seen()
    assert differ(base, seen(a={"action": torch.ones(1, 1, 1, dtype=torch.int64)})) == [False, True, True]
    assert differ(base, seen(b={"action": numbers(1, 1, 1, 3, seed=4)})) == [False, False, True]
    assert differ(base, seen(c={"action": torch.ones(1, 1, 1, dtype=torch.int64)})) == [False, False, False]
    idle = {"active": torch.zeros(1, 1, 1, dtype=torch.bool)}
    assert differ(base, seen(a=idle)) == [False, True, True]
    assert differ(seen(a=idle), seen(a={**idle, "action": torch.ones(1, 1, 1, dtype=torch.int64)})) == [False, False, False]


@pytest.mark.parametrize("autoregressive", [False, True])
def test_every_member_acts_by_what_all_see(autoregressive):
    groups = [group_of(COIN, 2, name="a"), group_of(DIE, 1, name="b")]
    policy = joint_of(groups, autoregressive)
    one = joint_log_prob(policy, groups)
    actions = all_actions(groups)
    for changed in groups:
        inputs, start = {}, 0
        for g in groups:
            lead = (1, len(actions), len(g.agents))
            inputs[g.name] = {
                "observation": torch.full((*lead, 4), float(g is changed), dtype=torch.float64),
                "active": torch.ones(lead, dtype=torch.bool),
                "action": actions[None, :, start : start + len(g.agents)],
            }
            start += len(g.agents)
        parameters = policy.parameters_of(
            inputs, torch.zeros(len(actions), *policy.memory_shape), torch.zeros(1, len(actions), dtype=torch.bool)
        )
        other = sum(policy.distributions[g.name].log_prob(parameters[g.name], inputs[g.name]["action"]).sum(-1) for g in groups)[0]
        assert not torch.allclose(one, other, atol=1e-9, rtol=0)


# whom a policy may be


@pytest.mark.parametrize("name", ["values", "keys", "a.b", "critic", "0"])
def test_a_group_may_have_any_name(name):
    actor = Actor(group_of(BOX, name=name), NETWORK, 0).double()
    action, log_prob, _ = actor.act(
        {name: {"observation": numbers(3, 2, 4), "active": torch.ones(3, 2, dtype=torch.bool)}}, torch.zeros(3, 2, 0), None
    )
    assert action[name].shape == (3, 2, 3)
    assert torch.isfinite(log_prob[name]).all()


def test_groups_whose_names_differ_by_a_dot_have_each_their_own_deviation():
    groups = [group_of(BOX, 1, name=name) for name in ("a.b", "a_b")]
    policy = joint_of(groups, False)
    with torch.no_grad():
        policy.log_std["a.b"].fill_(1.0)
    assert policy.log_std["a_b"].tolist() == [-0.5] * 3
    assert sum(x is y for x in policy.parameters() for y in policy.log_std.values()) == 2
