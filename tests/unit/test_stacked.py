"""Networks of agents' own, stacked: each agent's row is a network that nobody else has a part in."""

import copy

import pytest
import torch
from torch import nn

from marl_hpc.actors import Actor
from marl_hpc.networks import StackedNetwork
from marl_hpc.types import ActionSpace, GroupSpec

N, D, A = 5, 3, 4
NETWORK = {"hidden": [8, 6], "activation": "tanh", "agent_id": True, "stacked": True}


def group(space=None, shape=(D,)):
    space = space or ActionSpace(kind="discrete", n=A)
    return GroupSpec(name="all", agents=tuple(f"a{i}" for i in range(N)), observation_shape=shape, action_space=space)


def different(network):
    """Agents' rows apart from each other, as learning leaves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.rows += 0.3 * torch.randn(network.rows.shape, generator=generator, dtype=network.rows.dtype)
    return network


def layers_of(network, agent):
    return [layer[agent] for layer in network.layers()]


def feed_forward(network, agent, x):
    """Agent's network with torch's own layers."""
    w1, b1, w2, b2, w3, b3 = layers_of(network, agent)
    x = torch.tanh(nn.functional.linear(x, w1.T, b1[0]))
    x = torch.tanh(nn.functional.linear(x, w2.T, b2[0]))
    return nn.functional.linear(x, w3.T, b3[0])


@pytest.mark.parametrize("lead", [(), (7,), (2, 7)])
@pytest.mark.parametrize("extra", [0, 2])
def test_each_agent_computes_with_its_own_row_as_a_network_alone(lead, extra):
    network = different(StackedNetwork(group(), A, NETWORK, 1.0, 0, extra=extra).double())
    x = torch.randn(*lead, N, D, dtype=torch.float64)
    beside = torch.randn(*lead, extra, dtype=torch.float64) if extra else None
    out = network(x, beside)
    for agent in range(N):
        own = x[..., agent, :] if beside is None else torch.cat([x[..., agent, :], beside], -1)
        torch.testing.assert_close(out[..., agent, :], feed_forward(network, agent, own))


def test_agents_start_equal_and_one_agents_loss_moves_only_its_own_row():
    network = StackedNetwork(group(), A, NETWORK, 1.0, 0)
    assert (network.rows == network.rows[0]).all()
    network(torch.randn(7, N, D))[:, 2].sum().backward()
    moved = network.rows.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, False, False]


def test_a_memory_is_torchs_gru_with_each_agents_own_weights():
    network = different(StackedNetwork(group(), A, {**NETWORK, "gru": 4}, 1.0, 0).double())
    steps, copies = 6, 3
    x = torch.randn(steps, copies, N, D, dtype=torch.float64)
    first = torch.zeros(steps, copies, dtype=torch.bool)
    first[3, 1] = True
    active = torch.ones(steps, copies, N, dtype=torch.bool)
    active[2, 0, 4] = False
    start = torch.randn(copies, N, 4, dtype=torch.float64)
    out, memory = network.unroll(x, start, first, active)
    for agent in range(N):
        w1, b1, w2, b2, wi, bi, wh, bh, w3, b3 = layers_of(network, agent)
        cell = nn.GRUCell(6, 4, dtype=torch.float64)
        cell.load_state_dict({"weight_ih": wi.T, "bias_ih": bi[0], "weight_hh": wh.T, "bias_hh": bh[0]})
        h = start[:, agent]
        for t in range(steps):
            h = h * ~first[t, :, None]
            features = torch.tanh(torch.tanh(x[t, :, agent] @ w1 + b1) @ w2 + b2)
            h = torch.where(active[t, :, agent, None], cell(features, h), h)
            torch.testing.assert_close(memory[t, :, agent], h)
            torch.testing.assert_close(out[t, :, agent], h @ w3 + b3)
    one, after = network.step(x[0], start)
    torch.testing.assert_close(one, out[0])
    torch.testing.assert_close(after, memory[0])


def test_each_agent_has_a_deviation_of_its_own_for_continuous_actions():
    box = ActionSpace(kind="box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0))
    actor = Actor(group(box), {**NETWORK, "log_std": -0.7}, 0)
    with torch.no_grad():
        actor.network.rows[3, -2:] += 0.5
    fields = {"observation": torch.zeros(1, N, D), "active": torch.ones(1, N, dtype=torch.bool)}
    parameters = actor.settle(actor.group, actor.network(fields["observation"]), None)
    assert parameters[0, :, 2:].allclose(torch.tensor([[-0.7]] * 3 + [[-0.2]] + [[-0.7]]))
    assert [name for name, _ in actor.named_parameters()] == ["network.rows"]


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_observations_of_any_shape_are_flattened(shape):
    flat = copy.deepcopy(network := different(StackedNetwork(group(shape=shape), A, NETWORK, 1.0, 0)))
    flat.dimensions = 1
    x = torch.randn(4, N, *shape)
    torch.testing.assert_close(network(x), flat(x.reshape(4, N, -1)))
