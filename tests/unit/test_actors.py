"""Policies as networks: what they give is what the distributions make of it."""

import numpy as np
import pytest
import torch

from marl_hpc.actors import Actor
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
