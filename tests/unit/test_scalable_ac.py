"""Scalable actor-critic against what the paper's formulas say, agent by agent, and against brute force where critics see everybody."""

import itertools

import numpy as np
import pytest
import torch
from rigs.batches import batch_of
from rigs.inline import train
from scipy.sparse.csgraph import shortest_path

from marl_hpc import paradigms, topology
from marl_hpc.algorithms.scalable_ac import ScalableAC, ScalableACConfig
from marl_hpc.building import make_env
from marl_hpc.comm.collectives import Alone
from marl_hpc.compose import compose
from marl_hpc.config import ConfigError
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

RUN = ("env=networked/wireless", "paradigm=networked", "topology.mix=none", "algorithm=scalable_ac")


def interface_of(graph, actions=2, mask=False):
    group = GroupSpec(
        name="g", agents=tuple(f"g{i}" for i in range(graph.agents)), observation_shape=(3,),
        action_space=ActionSpace(kind="discrete", n=actions), action_mask=mask,
    )  # fmt: skip
    pairs = tuple(map(tuple, graph.edges.tolist()))
    return InterfaceSpec(name="g", paradigm="networked", groups=(group,), stacked=True, neighbors=pairs)


def algorithm_of(graph, actions=2, mask=False, **options):
    given = {"hidden": [6], "normalize_advantages": False, "normalize_values": False, "entropy": 0.0, **options}
    interface = interface_of(graph, actions, mask)
    algorithm = ScalableAC(ScalableACConfig(**given), interface, Alone(), device="cpu", dtype=torch.float64, seed=0)
    with torch.no_grad():  # agents apart from each other
        for module in (algorithm.policies["g"], algorithm.critic):
            for rows in module.parameters():
                rows += 0.7 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=rows.dtype)
    return algorithm


TREE = topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 4), (1, 5)])
ONE_WAY = topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 5), (5, 4), (0, 4)], directed=True)


@pytest.mark.parametrize("kappa", [1, 2, 5])
@pytest.mark.parametrize("graph", [TREE, ONE_WAY], ids=["tree", "one way"])
def test_critics_see_those_within_kappa_hops_and_policies_answer_for_the_critics_that_see_them(graph, kappa):
    algorithm, n, actions = algorithm_of(graph, 3, True, kappa=kappa), 6, 3
    batch = batch_of(algorithm.interface, 6, 2, ends=0.3)
    active = batch["g/active"].numpy()
    assert (active.any(-1) & ~active.all(-1)).any()  # somebody is no longer there
    near = shortest_path(graph.adjacency) <= kappa
    most, worth = near.sum(1).max() - 1, np.zeros((6, 2, n))
    layers = [layer.detach().numpy() for layer in algorithm.critic.network.layers()]
    x = torch.cat([batch["g/observation"], torch.nn.functional.one_hot(batch["g/action"], actions)], -1)
    x = x.numpy() * active[..., None]
    for i in range(n):
        others = [j for j in np.flatnonzero(near[i]) if j != i]
        seen = np.concatenate([x[..., j, :] for j in [i, *others]] + [np.zeros((6, 2, 3 + actions))] * (most - len(others)), -1)
        hidden = np.tanh(seen @ layers[0][i] + layers[1][i, 0])
        worth[..., i] = (hidden @ layers[2][i] + layers[3][i, 0])[..., 0]
    found = algorithm.with_advantages(algorithm.with_next_actions(batch, 0))
    np.testing.assert_allclose(found["old_value"].numpy(), worth, atol=1e-12)
    np.testing.assert_allclose(found["advantage"].numpy(), (worth * active) @ near / n, atol=1e-12)


def test_targets_are_sarsas():
    """A reward and, unless the episode terminated, the value of what is seen and done next: in the fragment's next step where there is one."""
    graph = topology.ring(3)
    algorithm = algorithm_of(graph, kappa=1, gamma=0.9)
    batch = batch_of(algorithm.interface, 6, 2, ends=0.0)
    batch = algorithm.with_next_actions(batch, 0)
    found = algorithm.with_advantages(batch)
    worth = found["old_value"]
    with torch.no_grad():
        last = algorithm.critic.after({name: x[-1] for name, x in batch.items()}, torch.zeros(0))
    following = torch.cat([worth[1:], last[None]])
    torch.testing.assert_close(found["target"], batch["g/reward"] + 0.9 * following)


def test_the_next_step_is_judged_by_who_acts_in_it():
    """In a fragment's last step, and where an agent is cut off: then it sees those who go on or are cut off with it, as if it had gone on
    too. Whoever terminates isn't seen, and who is cut off is no longer seen by those who go on."""
    graph = topology.from_edges([(0, 1), (1, 2), (2, 3)])
    algorithm, n = algorithm_of(graph, kappa=1, gamma=0.9), 4
    batch = batch_of(algorithm.interface, 5, 40, ends=0.3)
    alone = batch["g/terminated"] & (torch.rand(5, 40, n, generator=torch.Generator().manual_seed(0)) < 0.5)
    batch["g/truncated"] |= alone  # cut off though others go on
    batch["g/terminated"] &= ~alone
    batch = algorithm.with_next_actions(batch, 0)
    found = algorithm.with_advantages(batch)
    layers = [layer.detach().numpy() for layer in algorithm.critic.network.layers()]
    features = {}
    for prefix in ("", "next_"):
        chosen = torch.nn.functional.one_hot(batch[f"g/{prefix}action"], 2)
        features[prefix] = torch.cat([batch[f"g/{prefix}observation"], chosen], -1).numpy()
    own = {name.removeprefix("g/"): x.numpy() for name, x in batch.items()}
    compared = {"last": 0, "cut off": 0, "someone else isn't seen": 0}
    for t, b, i in np.argwhere(own["active"]):
        going_on, cut = own["next_active"][t, b], own["truncated"][t, b]
        if t < 4 and going_on[i]:
            rows, there = features[""][t + 1, b], own["active"][t + 1, b]
        else:
            rows, there = features["next_"][t, b], going_on | (cut & cut[i])
            hidden = any(own["active"][t, b, j] and not there[j] for j in (i - 1, i + 1) if 0 <= j < n)
            compared["last"] += going_on[i]
            compared["cut off"] += cut[i]
            compared["someone else isn't seen"] += hidden and not own["terminated"][t, b, i]
        seen = [rows[j] * there[j] for j in (i, i - 1, i + 1) if 0 <= j < n]
        x = np.concatenate([*seen, np.zeros(5 * (3 - len(seen)))])
        following = np.tanh(x @ layers[0][i] + layers[1][i, 0]) @ layers[2][i] + layers[3][i, 0]
        expected = own["reward"][t, b, i] + 0.9 * following[0] * (not own["terminated"][t, b, i])
        np.testing.assert_allclose(found["target"][t, b, i].numpy(), expected, atol=1e-12)
    assert min(compared.values()) > 10


def expected_gradient(algorithm, rewards, observation):
    """Of (1/N) Σ_j E r_j, by the sum over all joint actions."""
    policy, n = algorithm.policies["g"], len(rewards.shape) - 1
    fields = {"observation": observation[None, None], "active": torch.ones(1, 1, n, dtype=torch.bool)}
    log_probs = policy.parameters_of({"g": fields}, torch.zeros(0), torch.ones(1, 1, dtype=torch.bool))["g"][0, 0]
    value = 0.0
    for joint in itertools.product(range(2), repeat=n):
        chance = torch.stack([log_probs[i, a] for i, a in enumerate(joint)]).sum().exp()
        value = value + chance * float(rewards[joint].mean())
    (gradient,) = torch.autograd.grad(value, list(policy.parameters()))
    return gradient


def estimated_gradient(algorithm, rewards, observation):
    """What the algorithm ascends on average, when each joint action comes as often as it is played and critics are exact."""
    n, joints = len(rewards.shape) - 1, list(itertools.product(range(2), repeat=len(rewards.shape) - 1))
    batch = batch_of(algorithm.interface, 1, len(joints), ends=0.0)
    batch["g/terminated"][:] = True
    batch["g/observation"] = observation.expand(1, len(joints), n, 3).clone()
    batch["g/action"] = torch.tensor([joints])
    batch["g/reward"] = torch.tensor(np.array([[rewards[joint] for joint in joints]]))
    exact = torch.tensor(np.array([[rewards[joint] for joint in joints]]))
    algorithm.critic.unroll = lambda batch, memory: (exact.clone().requires_grad_(), exact.new_zeros(*exact.shape, 0))
    with torch.no_grad():
        batch["g/log_prob"] = algorithm.act(batch)[0]
    batch = algorithm.with_advantages(algorithm.with_next_actions(batch, 0))
    batch["advantage"] = batch["advantage"] * batch["log_prob"].sum(-1, keepdim=True).exp()
    algorithm.parameters.message.zero_()
    algorithm.loss(batch)[0].backward()
    (rows,) = algorithm.policies["g"].parameters()
    return -rows.grad.clone()


def test_where_critics_see_everybody_the_gradient_is_that_of_the_mean_reward():
    """On a line of three, in which every reward depends on all three actions; fewer hops than it is long leave something out."""
    graph = topology.from_edges([(0, 1), (1, 2)])
    random = np.random.default_rng(0)
    rewards, observation = random.normal(size=(2, 2, 2, 3)), torch.from_numpy(random.normal(size=(3, 3)))
    whole, cut = algorithm_of(graph, kappa=2), algorithm_of(graph, kappa=1)
    expected = expected_gradient(whole, rewards, observation)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(estimated_gradient(whole, rewards, observation), expected)
    truncated = estimated_gradient(cut, rewards, observation)
    torch.testing.assert_close(truncated[1], expected[1])  # who is in the middle reaches all
    assert (truncated[[0, 2]] - expected[[0, 2]]).abs().max() > 1e-2


def test_rewards_that_depend_on_neighbors_alone_need_no_more_than_one_hop():
    graph = topology.from_edges([(0, 1), (1, 2)])
    random = np.random.default_rng(1)
    rewards, observation = np.zeros((2, 2, 2, 3)), torch.from_numpy(random.normal(size=(3, 3)))
    rewards[..., 0], rewards[..., 2] = random.normal(size=(2, 2, 1)), random.normal(size=(1, 2, 2))
    rewards[..., 1] = random.normal(size=(2, 2, 2))
    near = algorithm_of(graph, kappa=1)
    torch.testing.assert_close(estimated_gradient(near, rewards, observation), expected_gradient(near, rewards, observation))


def test_who_is_seen_one_way_answers_for_those_who_see_it():
    """On a cycle where each reward depends on the agent itself and on whom it sees: one hop is enough, and no other three terms are."""
    graph = topology.from_edges([(0, 1), (1, 2), (2, 0)], directed=True)
    random = np.random.default_rng(2)
    rewards, observation = np.zeros((2, 2, 2, 3)), torch.from_numpy(random.normal(size=(3, 3)))
    rewards[..., 0] = random.normal(size=(2, 2, 1))
    rewards[..., 1] = random.normal(size=(1, 2, 2))
    rewards[..., 2] = random.normal(size=(2, 1, 2))
    near = algorithm_of(graph, kappa=1)
    torch.testing.assert_close(estimated_gradient(near, rewards, observation), expected_gradient(near, rewards, observation))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.kappa=0", "1 hop or more"),
        ("topology.mix=critic", "set topology.mix=none"),
        ("algorithm.gru=4", "set gru=0"),
        ("algorithm.messages=dial", "leave messages out"),
        ("algorithm.correction=vtrace", "none or truncated"),
        ("algorithm.gae_lambda=2", "between 0 and 1"),
    ],
)
def test_what_it_cant_do_is_refused(override, said):
    config = compose([*RUN, override])
    with pytest.raises(ConfigError, match=said):
        paradigms.plan(config, make_env(config, 1).spec)


def test_agents_that_take_turns_are_refused():
    config = compose(["env=classic/tictactoe", "topology=ring", *RUN[1:]])
    with pytest.raises(ConfigError, match="agents act at once"):
        paradigms.plan(config, make_env(config, 1).spec)


def test_it_trains_from_a_configuration(tmp_path):
    lines = train(tmp_path / "run", *RUN, "algorithm.kappa=2", "env.episode_steps=15")
    assert np.isfinite([value for line in lines for value in line.values()]).all()
