"""Agents on a graph: what each learns by itself is what it would learn alone, and what they share goes by W."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rigs.batches import batch_of

from marl_hpc import algorithms, mixing, topology
from marl_hpc.agents import IndependentAgent, NetworkedAgent
from marl_hpc.agents.networked import decoded, encoded
from marl_hpc.comm.collectives import Alone
from marl_hpc.comm.exchange_plan import ExchangePlan
from marl_hpc.comm.graphs import GraphExchange, discounted
from marl_hpc.comm.transports import Nobody
from marl_hpc.config import Topology
from marl_hpc.neighborhoods import Neighborhoods
from marl_hpc.types import ActionSpace, EnvSpec, GroupSpec, InterfaceSpec

N, T, B = 5, 12, 4
SPACES = {
    "discrete": ActionSpace(kind="discrete", n=3),
    "several": ActionSpace(kind="multi_discrete", nvec=(2, 3)),
    "box": ActionSpace(kind="box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
}


def interface_of(space="discrete", mix="none", agents=N):
    names = tuple(f"agent_{i}" for i in range(agents))
    group = GroupSpec(name="all", agents=names, observation_shape=(4,), action_space=SPACES[space])
    return InterfaceSpec(name="all", paradigm="networked", groups=(group,), stacked=True, mix=mix)


def networked(interface, algorithm="ppo", graph=None, rounds=1, rewards=None, **options):
    kind, config = algorithms.configure({"name": algorithm, "hidden": [8], **options})
    n = len(interface.agents)
    weights = mixing.metropolis_hastings(graph or topology.ring(n))
    owners = np.zeros(n, int)
    plan = None if rewards is None else ExchangePlan(rewards, owners, 0)
    exchange = GraphExchange(np.arange(n), [ExchangePlan(weights, owners, 0)], plan, Nobody(), rounds)
    agent = NetworkedAgent(kind, config, interface, exchange, device=torch.device("cpu"), dtype=torch.float64, seed=1)
    return agent, weights.toarray()


def learn(agent, batch, iterations=2):
    for k in range(iterations):
        metrics = agent.learn(batch, torch.arange(B), total=B, seed=k, env_steps=0)
    return metrics


def of_agent(batch, i):
    """The batch of one agent that never knew of others, in which only its own episodes count."""
    return {name: x[:, :, i : i + 1] if name.startswith("all/") else x for name, x in batch.items()}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("algorithm", "gru"), [("ppo", 0), ("a2c", 0), ("ppo", 4)])
def test_each_agent_learns_what_an_independent_learner_alone_learns_from_its_data(space, algorithm, gru):
    options = {"gru": gru, "chunk": 4, "max_grad_norm": 0.05} | ({"epochs": 2, "minibatches": 2} if algorithm == "ppo" else {})
    interface = interface_of(space)
    agent, _ = networked(interface, algorithm, **options)
    batch = batch_of(interface, T, B)
    if gru:
        batch["all/memory"] = torch.zeros(T // 4, B, N, gru, dtype=torch.float64)
    learn(agent, batch)
    seen = torch.randn(7, N, 4, dtype=torch.float64)
    fields = {"observation": seen, "active": torch.ones(7, N, dtype=torch.bool)}
    together = agent.algorithm.policies["all"].act({"all": fields}, torch.zeros(7, N, gru, dtype=torch.float64), None)
    for i in (0, 3):
        group = replace(interface.groups[0], agents=(f"agent_{i}",))
        single = replace(interface, paradigm="independent", groups=(group,), stacked=False)
        kind, config = algorithms.configure({"name": algorithm, "hidden": [8], **options})
        alone = IndependentAgent(kind, config, single, Alone(), device=torch.device("cpu"), dtype=torch.float64, seed=1)
        own = of_agent(batch, i)
        if gru:
            own["all/memory"] = batch["all/memory"][:, :, i : i + 1]
        learn(alone, own)
        fields = {"observation": seen[:, i : i + 1], "active": torch.ones(7, 1, dtype=torch.bool)}
        memory = torch.zeros(7, 1, gru, dtype=torch.float64)
        actions, log_probs, _ = alone.algorithm.policies["all"].act({"all": fields}, memory, None)
        torch.testing.assert_close(together[0]["all"][:, i], actions["all"][:, 0])
        torch.testing.assert_close(together[1]["all"][:, i], log_probs["all"][:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mix", "mixed"), [("critic", (False, True)), ("all", (True, True)), ("none", (False, False))])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_step_of_mixing_multiplies_what_is_shared_by_w(mix, mixed, rounds):
    agent, weights = networked(interface_of(mix=mix), graph=topology.star(N), rounds=rounds)
    generator = torch.Generator().manual_seed(0)
    for block in agent.blocks:
        block.copy_(torch.randn(block.shape, generator=generator, dtype=torch.float64))
    before = [block.clone() for block in agent.blocks]
    agent.parameters.message.zero_()  # so that Adam stands still
    agent.update()
    times = torch.from_numpy(np.linalg.matrix_power(weights, rounds))
    for block, old, shared in zip(agent.blocks, before, mixed, strict=True):
        torch.testing.assert_close(block, times @ old if shared else old)
        torch.testing.assert_close(block.mean(0), old.mean(0))


@pytest.mark.parametrize(
    ("algorithm", "options", "steps"), [("a2c", {}, 1), ("ppo", {"epochs": 2, "minibatches": 3, "max_grad_norm": 1e-9}, 6)]
)
@pytest.mark.parametrize("rounds", [1, 2])
def test_statistics_of_critics_that_are_averaged_are_averaged_as_often(algorithm, options, steps, rounds):
    agent, weights = networked(interface_of(mix="critic"), algorithm, rounds=rounds, **options)
    batch = batch_of(agent.interface, T, B)
    batch["all/reward"] = batch["all/reward"] + 10.0 * torch.arange(N)
    alone, _ = networked(interface_of(mix="none"), algorithm, **options)
    learn(agent, batch, 1)
    learn(alone, batch, 1)
    times = torch.from_numpy(np.linalg.matrix_power(weights, steps * rounds))
    torch.testing.assert_close(agent.algorithm.values.moments, alone.algorithm.values.moments @ times.T)
    assert alone.algorithm.values.mean_std[0].diff().min() > 1  # each by its own rewards, where nothing is shared


def test_statistics_are_averaged_over_the_graphs_that_critics_will_be():
    kind, config = algorithms.configure({"name": "ppo", "hidden": [8], "epochs": 1, "minibatches": 4, "lr": 1e-12})
    dense = [mixing.uniform(graph).toarray() for graph in topology.one_peer_exponential(8)]
    plans = [ExchangePlan(mixing.uniform(graph), np.zeros(8, int), 0) for graph in topology.one_peer_exponential(8)]
    exchange = GraphExchange(np.arange(8), plans, None, Nobody())
    interface = interface_of(mix="all", agents=8)
    agent = NetworkedAgent(kind, config, interface, exchange, device=torch.device("cpu"), dtype=torch.float64, seed=1)
    agent.updates = 2  # in the middle of a turn
    for block in agent.blocks:
        block.copy_(torch.randn(block.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    before, own = [block.clone() for block in agent.blocks], torch.rand(3, 8, dtype=torch.float64)
    moments = agent.mix_moments(own)
    learn(agent, batch_of(interface, T, B), 1)
    product = torch.from_numpy(np.linalg.multi_dot([dense[step % 3] for step in (6, 5, 4, 3)]))
    for block, old in zip(agent.blocks, before, strict=True):
        torch.testing.assert_close(block, product @ old, rtol=0, atol=1e-9)
    torch.testing.assert_close(moments, own @ product.T)


def test_critics_of_agents_with_unlike_rewards_agree_in_units_of_reward():
    n, copies = 8, 8
    options = {"gamma": 0.0, "epochs": 4, "minibatches": 4, "lr": 1e-2, "lr_steps": 35}  # falls, so that what is left is mixing
    agent, _ = networked(interface_of(mix="critic", agents=n), "ppo", graph=topology.grid(1, n), **options)
    for k in range(50):
        batch = batch_of(agent.interface, 4, copies, seed=k)
        batch["all/reward"] = batch["all/reward"] * torch.linspace(0.1, 2, n) + torch.linspace(0, 10, n)
        agent.learn(batch, torch.arange(copies), total=copies, seed=k, env_steps=k)
    seen = torch.randn(7, 1, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(7, 1, n, 4)
    batch = {
        "all/observation": seen,
        "all/active": torch.ones(7, 1, n, dtype=torch.bool),
        "first": torch.ones(7, 1, dtype=torch.bool),
    }
    with torch.no_grad():
        values = agent.algorithm.values.denormalize(agent.algorithm.critic.unroll(batch, None)[0])
    assert (values.amax(-1) - values.amin(-1)).max() < 0.6  # of the same observation, where rewards are up to 10 apart
    assert float(values.mean()) == pytest.approx(5, abs=0.6)


def test_what_mixing_moved_is_said_of_all_that_is_mixed():
    agent, weights = networked(interface_of(mix="all"))
    for k, block in enumerate(agent.blocks):
        block.copy_(10.0**k * torch.randn(block.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64))
    before = torch.cat(agent.blocks, 1).numpy().copy()
    agent.parameters.message.zero_()  # so that Adam stands still
    agent.update()
    found = agent.consensus(agent.moved)
    assert found["consensus/distance"] == pytest.approx(np.linalg.norm(weights @ before - before) / np.linalg.norm(before))
    after = weights @ before
    apart = np.sqrt(((after - after.mean(0)) ** 2).sum(1).mean()) / np.linalg.norm(after.mean(0))
    assert found["consensus/error"] == pytest.approx(apart)


def test_agents_that_care_for_neighbors_are_rewarded_for_them():
    graph = topology.ring(6)
    weights = discounted(graph.adjacency, 0.5, 2)
    agent, _ = networked(interface_of(agents=6), graph=graph, rewards=weights)
    reward = torch.randn(3, 2, 6, dtype=torch.float64)
    given = agent.rewarded({"all/reward": reward})["all/reward"]
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    distance = np.minimum(distance, 6 - distance)
    expected = np.einsum("ij,tbj->tbi", np.where(distance <= 2, 0.5**distance, 0.0), reward.numpy())
    np.testing.assert_allclose(given, expected)


def test_a_gradient_that_is_not_finite_names_its_agents():
    agent, _ = networked(interface_of())
    batch = batch_of(agent.interface, T, B)
    batch["all/reward"][..., 3] = 1e200
    with pytest.raises(FloatingPointError, match="gradient of agent_3 isn't finite"):
        learn(agent, batch)


def test_state_follows_agents_wherever_they_go():
    whole, _ = networked(interface_of(mix="critic"), epochs=1, minibatches=1)
    batch = batch_of(whole.interface, T, B)
    learn(whole, batch)
    state = whole.state()
    parts = []
    for own in ([0, 2], [1, 3, 4]):
        group = replace(whole.interface.groups[0], agents=tuple(f"agent_{i}" for i in own))
        part, _ = networked(replace(whole.interface, groups=(group,)), epochs=1, minibatches=1)
        part.load_parts([state])
        for mine, all_ in zip(part.blocks, whole.blocks, strict=True):
            assert torch.equal(mine, all_[own])
        parts.append(part.state())
    again, _ = networked(interface_of(mix="critic"), epochs=1, minibatches=1)
    again.load_parts(parts)
    assert all(torch.equal(again.state()[name], x) for name, x in state.items())
    with pytest.raises(ValueError, match="nothing of agent_1"):
        again.load_parts(parts[:1])
    assert decoded(encoded(["a", "ü_1"])) == ["a", "ü_1"]


@pytest.mark.parametrize("name", ["shared", "separate"])
def test_only_one_groups_own_edges_make_its_graph(name):
    groups = [
        GroupSpec(name=g, agents=tuple(f"{g}_{i}" for i in range(3)), observation_shape=(1,), action_space=SPACES["discrete"])
        for g in "ab"
    ]
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 5], [4, 5]])
    spec = EnvSpec(name="e", version="1", groups=tuple(groups), state_shape=(6,), state_from="observations", edges=edges)
    spec = EnvSpec.from_json(spec.to_json())
    around = Neighborhoods(Topology(), spec, spec.groups[1], 1)
    assert around.graphs[0].edges.tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]


def test_a_falling_learning_rate_reaches_nothing_where_it_should():
    agent, _ = networked(interface_of(), "a2c", lr_steps=1000)
    batch = batch_of(agent.interface, T, B)
    moved = []
    for env_steps in (0, 500, 1000, 2000):
        before = agent.parameters.values.detach().clone()
        agent.learn(batch, torch.arange(B), total=B, seed=0, env_steps=env_steps)
        moved.append(float((agent.parameters.values.detach() - before).abs().max()))
    assert moved[0] == pytest.approx(7e-4, rel=0.05)  # Adam's first step is the learning rate
    assert moved[2:] == [0, 0]
    assert 0 < moved[1] < moved[0]


def test_a_topology_that_changes_goes_on_where_it_was_after_a_restart():
    kind, config = algorithms.configure({"name": "a2c", "hidden": [8]})

    def build():
        graphs = topology.one_peer_exponential(4)
        plans = [ExchangePlan(mixing.uniform(graph), np.zeros(4, int), 0) for graph in graphs]
        exchange = GraphExchange(np.arange(4), plans, None, Nobody())
        interface = interface_of(mix="all", agents=4)
        return NetworkedAgent(kind, config, interface, exchange, device=torch.device("cpu"), dtype=torch.float64, seed=1)

    agent = build()
    batch = batch_of(agent.interface, T, B)
    learn(agent, batch, 3)
    again = build()
    again.load_state(agent.state())
    for each in (agent, again):
        learn(each, batch, 2)
    assert torch.equal(agent.parameters.values, again.parameters.values)
    moved = (agent.blocks[0] - agent.blocks[0].mean(0)).abs().max()
    assert moved > 0
