"""Networks, distributions and flat buffers against torch.distributions and counting."""

import numpy as np
import pytest
import torch
from torch import nn

from marl_hpc.networks import Actor, AgentNetwork, FlatParameters, draw_noise, load_flat, to_env
from marl_hpc.types import ActionSpace, GroupSpec

DISCRETE = ActionSpace(kind="discrete", n=5)
BOX = ActionSpace(kind="box", shape=(3,))


def group_of(space=DISCRETE, agents=2, shape=(4,)):
    return GroupSpec(
        name="g", agents=tuple(f"a{i}" for i in range(agents)), observation_shape=shape, action_space=space, action_mask=False
    )


def actor_of(space=DISCRETE, agents=2, agent_id=True, shape=(4,), seed=0):
    actor = Actor(group_of(space, agents, shape), [16, 16], "tanh", agent_id, seed).double()
    with torch.no_grad():  # the initial policy is nearly uniform; one that prefers something shows more
        for parameter in actor.parameters():
            parameter *= 6
    return actor


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
    source, target = actor_of(BOX), actor_of(BOX, seed=1)
    flat = torch.cat([parameter.detach().flatten() for parameter in source.parameters()])
    x = numbers(6, 2, 4)
    assert not torch.allclose(target(x), source(x))
    load_flat(target, flat)
    assert torch.equal(target(x), source(x))
    assert torch.equal(target.log_std, source.log_std)


@pytest.mark.parametrize("difference", [-1, 1])
def test_load_flat_refuses_a_buffer_of_another_size(difference):
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=rf"flat buffer of {8 + difference} numbers for a module of 8"):
        load_flat(module, torch.zeros(8 + difference))


def test_same_seed_gives_same_weights():
    x = numbers(3, 2, 4)
    assert torch.equal(actor_of(seed=3)(x), actor_of(seed=3)(x))
    assert not torch.allclose(actor_of(seed=3)(x), actor_of(seed=4)(x))


def test_hidden_layers_start_orthogonal_with_gain_root_two():
    network = AgentNetwork(group_of(agents=1), 3, [16, 16], "relu", False, 0.01, 0)
    weights = [layer.weight for layer in network.body if isinstance(layer, nn.Linear)]
    torch.testing.assert_close(weights[1] @ weights[1].T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[2] @ weights[2].T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)
    assert all((layer.bias == 0).all() for layer in network.body if isinstance(layer, nn.Linear))


def test_agent_id_makes_agents_differ():
    x = numbers(1, 1, 4).expand(5, 3, 4)
    with_id, without = actor_of(agents=3)(x), actor_of(agents=3, agent_id=False)(x)
    assert torch.equal(without[:, 0], without[:, 1])
    assert not torch.allclose(with_id[:, 0], with_id[:, 1])
    assert not torch.allclose(with_id[:, 1], with_id[:, 2])
    assert torch.equal(with_id[0], with_id[4])


def test_agent_alone_gets_no_id():
    assert next(actor_of(agents=1).parameters()).shape == (16, 4)
    assert next(actor_of(agents=2).parameters()).shape == (16, 6)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_observations_of_any_shape_are_flattened_for_each_agent(shape):
    actor = actor_of(shape=shape)
    x = numbers(7, 3, 2, *shape)
    assert actor(x).shape == (7, 3, 2, 5)
    torch.testing.assert_close(actor(x)[2, 1], actor(x[2, 1]), rtol=0, atol=1e-13)


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_sampled_frequencies_are_the_softmax():
    actor = actor_of()
    parameters = actor(numbers(1, 2, 4))[0].detach()
    noise = torch.from_numpy(draw_noise(DISCRETE, np.random.default_rng(0), (40_000, 2)))
    drawn = actor.sample(parameters.expand(40_000, 2, 5), noise)
    for agent in range(2):
        counts = np.bincount(drawn[:, agent], minlength=5)
        assert chi_square(counts, parameters[agent].exp().numpy()) < 18.5  # 0.999 quantile with 4 degrees of freedom
        assert chi_square(counts, np.full(5, 0.2)) > 18.5  # it would show


def test_discrete_distribution_is_torchs_categorical():
    actor = actor_of()
    parameters = actor(numbers(6, 2, 4)).detach()
    reference = torch.distributions.Categorical(logits=parameters)
    action = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(actor.log_prob(parameters, action), reference.log_prob(action), rtol=0, atol=1e-12)
    torch.testing.assert_close(actor.entropy(parameters), reference.entropy(), rtol=0, atol=1e-12)
    assert torch.equal(actor.mode(parameters), reference.probs.argmax(-1))


def test_box_distribution_is_torchs_normal():
    actor = actor_of(BOX)
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-1.0, 0.2, 0.7]))
    parameters = actor(numbers(6, 2, 4)).detach()
    reference = torch.distributions.Normal(parameters, actor.log_std.exp())
    noise = numbers(6, 2, 3, seed=2)
    action = actor.sample(parameters, noise)
    torch.testing.assert_close(action, parameters + noise * actor.log_std.exp())
    torch.testing.assert_close(actor.log_prob(parameters, action), reference.log_prob(action).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(actor.entropy(parameters), reference.entropy().sum(-1), rtol=0, atol=1e-12)
    assert torch.equal(actor.mode(parameters), parameters)


def test_box_samples_have_the_mean_and_deviation_of_the_policy():
    actor = actor_of(BOX)
    parameters = actor(numbers(1, 2, 4))[0].detach()
    noise = torch.from_numpy(draw_noise(BOX, np.random.default_rng(0), (40_000, 2)))
    drawn = actor.sample(parameters, noise).detach()
    deviation = actor.log_std.exp().detach()
    assert ((drawn.mean(0) - parameters).abs() < 4 * deviation / 200).all()
    torch.testing.assert_close(drawn.std(0), deviation.expand(2, 3), rtol=0.02, atol=0)


def test_masked_actions_are_never_drawn_and_the_rest_is_renormalized():
    actor = actor_of()
    x = numbers(1, 2, 4)
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    parameters = actor(x, mask[None])[0].detach()
    logits = actor.network(x)[0].detach().numpy()
    weights = np.exp(logits) * mask.numpy()
    np.testing.assert_allclose(parameters.exp().numpy(), weights / weights.sum(-1, keepdims=True), atol=1e-12)
    noise = torch.from_numpy(draw_noise(DISCRETE, np.random.default_rng(0), (20_000, 2)))
    drawn = actor.sample(parameters.expand(20_000, 2, 5), noise)
    assert set(drawn[:, 0].tolist()) == {0, 2, 3}
    assert set(drawn[:, 1].tolist()) == {2}
    assert mask.gather(1, actor.mode(parameters)[:, None]).all()
    entropy = actor.entropy(parameters)
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
    parameters = actor(torch.zeros(1, 1, 4, dtype=dtype), mask).detach()
    extreme = draw_noise(DISCRETE, LargestUniform(), (1, 1))
    noise = torch.full((1, 1, 5), 0.5, dtype=torch.float64)
    noise[..., 0] = torch.from_numpy(extreme)[..., 0]
    drawn = actor.sample(parameters, noise.to(dtype))
    assert drawn.item() != 0


def test_gradients_with_masks_are_finite():
    actor = actor_of().float()
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    parameters = actor(numbers(3, 2, 4).float(), mask.expand(3, 2, 5))
    (actor.entropy(parameters).sum() + actor.log_prob(parameters, torch.full((3, 2), 2)).sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in actor.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in actor.parameters())


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
