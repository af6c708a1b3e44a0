"""Networks and flat buffers against counting and definitions written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from marl_hpc.actors import Actor
from marl_hpc.networks import AgentNetwork, FlatParameters, load_flat, to_env
from marl_hpc.types import ActionSpace, GroupSpec

DISCRETE = ActionSpace(kind="discrete", n=5)
BOX = ActionSpace(kind="box", shape=(3,))
NETWORK = {"hidden": [16, 16], "activation": "tanh", "agent_id": True}


def group_of(space=DISCRETE, agents=2, shape=(4,)):
    return GroupSpec(
        name="g", agents=tuple(f"a{i}" for i in range(agents)), observation_shape=shape, action_space=space, action_mask=False
    )


def network_of(agents=2, agent_id=True, shape=(4,), seed=0):
    return AgentNetwork(group_of(agents=agents, shape=shape), 5, {**NETWORK, "agent_id": agent_id}, 1.0, seed).double()


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_writing_the_flat_buffer_changes_the_module():
    first, second = nn.Linear(3, 2), nn.Linear(2, 1)
    flat = FlatParameters([first, second], device="cpu", dtype=torch.float64)
    assert flat.sizes == [8, 3]
    with torch.no_grad():
        flat.values.copy_(torch.arange(11.0))
    assert first.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.bias.tolist() == [6, 7]
    assert second.weight.tolist() == [[8, 9]]
    assert first(torch.ones(3, dtype=torch.float64)).tolist() == [0 + 1 + 2 + 6, 3 + 4 + 5 + 7]


def test_flat_buffer_keeps_the_modules_initial_values():
    module = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    flat = FlatParameters([module], device="cpu", dtype=torch.float32)
    assert torch.equal(flat.values, torch.cat([x.flatten() for x in before]))


def test_backward_fills_the_flat_gradient_and_leaves_the_slots():
    torch.manual_seed(0)
    module, plain = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
    )
    plain.load_state_dict(module.state_dict())
    plain.double()
    flat = FlatParameters([module], device="cpu", dtype=torch.float64, slots=2)
    flat.sums.fill_(7.0)
    x = numbers(5, 3)
    module(x).sum().backward()
    plain(x).sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    torch.testing.assert_close(flat.values.grad, expected, rtol=0, atol=1e-14)
    assert torch.equal(flat.message, torch.cat([flat.values.grad, torch.full((2,), 7.0, dtype=torch.float64)]))
    module(x).sum().backward()  # a second one adds up in the same memory
    torch.testing.assert_close(flat.message[:-2], 2 * expected, rtol=0, atol=1e-14)


def test_load_flat_restores_another_modules_outputs():
    source, target = (Actor(group_of(BOX), NETWORK, seed).double() for seed in (0, 1))
    with torch.no_grad():
        source.log_std["g"] += 0.5
    flat = torch.cat([parameter.detach().flatten() for parameter in source.parameters()])
    x = numbers(6, 2, 4)
    assert not torch.allclose(target.network(x), source.network(x))
    load_flat(target, flat)
    assert torch.equal(target.network(x), source.network(x))
    assert torch.equal(target.log_std["g"], source.log_std["g"])


@pytest.mark.parametrize("difference", [-1, 1])
def test_load_flat_refuses_a_buffer_of_another_size(difference):
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=rf"flat buffer of {8 + difference} numbers for a module of 8"):
        load_flat(module, torch.zeros(8 + difference))


def test_same_seed_gives_same_weights():
    x = numbers(3, 2, 4)
    assert torch.equal(network_of(seed=3)(x), network_of(seed=3)(x))
    assert not torch.allclose(network_of(seed=3)(x), network_of(seed=4)(x))


def test_hidden_layers_start_orthogonal_with_gain_root_two():
    network = AgentNetwork(group_of(agents=1), 3, {**NETWORK, "activation": "relu"}, 0.01, 0)
    weights = [layer.weight for layer in network.body if isinstance(layer, nn.Linear)]
    torch.testing.assert_close(weights[1] @ weights[1].T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[2] @ weights[2].T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)
    assert all((layer.bias == 0).all() for layer in network.body if isinstance(layer, nn.Linear))


def test_agent_id_makes_agents_differ():
    x = numbers(1, 1, 4).expand(5, 3, 4)
    with_id, without = network_of(agents=3)(x), network_of(agents=3, agent_id=False)(x)
    torch.testing.assert_close(without[:, 0], without[:, 1], rtol=1e-12, atol=0)  # rows of one product may differ in the last bit
    assert not torch.allclose(with_id[:, 0], with_id[:, 1])
    assert not torch.allclose(with_id[:, 1], with_id[:, 2])
    torch.testing.assert_close(with_id[0], with_id[4], rtol=1e-12, atol=0)


def test_agent_alone_gets_no_id():
    assert next(network_of(agents=1).parameters()).shape == (16, 4)
    assert next(network_of(agents=2).parameters()).shape == (16, 6)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_observations_of_any_shape_are_flattened_for_each_agent(shape):
    network = network_of(shape=shape)
    x = numbers(7, 3, 2, *shape)
    assert network(x).shape == (7, 3, 2, 5)
    torch.testing.assert_close(network(x)[2, 1], network(x[2, 1]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(8, 6, 3), (7, 5, 1)])
def test_images_go_through_the_same_convolutions_channels_first_or_last(shape):
    last, first = (
        AgentNetwork(replace(group_of(shape=s), image=True), 5, NETWORK, 1.0, 0).double() for s in (shape, (shape[2], *shape[:2]))
    )
    pixels = torch.randint(0, 256, (4, 2, *shape), generator=torch.Generator().manual_seed(0)).double()
    outputs = last(pixels)
    assert outputs.shape == (4, 2, 5)
    torch.testing.assert_close(outputs, first(pixels.movedim(-1, -3)), rtol=0, atol=1e-12)
    # each image by itself, whatever lies beside it
    torch.testing.assert_close(outputs[2, 1], last(pixels[2:3])[0, 1], rtol=0, atol=1e-12)
    assert isinstance(last.image.layers[0], nn.Conv2d)


def test_to_env_stretches_to_the_limits_and_clips():
    space = ActionSpace(kind="box", shape=(2,), low=(-3.0, 0.0), high=(1.0, 10.0))
    action = np.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [-9.0, 9.0]])
    result = to_env(space, action)
    assert result.dtype == np.float32
    assert result.tolist() == [[-3, 0], [1, 10], [-1, 7.5], [-3, 10]]


def test_to_env_passes_unbounded_boxes_and_restores_their_shape():
    space = ActionSpace(kind="box", shape=(2, 3))
    action = np.linspace(-9, 9, 12).reshape(2, 6)
    result = to_env(space, action)
    assert result.shape == (2, 2, 3)
    np.testing.assert_allclose(result.reshape(2, 6), action, rtol=1e-6)
    half = ActionSpace(kind="box", shape=(2,), low=(0.0, -np.inf), high=(np.inf, 1.0))
    assert to_env(half, np.array([-3.0, -3.0])).tolist() == [0, -3]
    assert to_env(half, np.array([3.0, 3.0])).tolist() == [3, 1]
    choice = np.array([[1, 4]])
    assert to_env(DISCRETE, choice) is choice
