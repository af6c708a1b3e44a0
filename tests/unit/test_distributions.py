"""Distributions against torch.distributions, quadrature and probabilities written out."""

import itertools
import math

import numpy as np
import pytest
import torch

from marl_hpc.actors import explore, greedy
from marl_hpc.distributions import LOG_STD, Categorical, distribution_of, draw_noise
from marl_hpc.types import ActionSpace

DISCRETE = ActionSpace(kind="discrete", n=5)
SEVERAL = ActionSpace(kind="multi_discrete", nvec=(3, 2, 4))
BOX = ActionSpace(kind="box", shape=(3,))
LINE = ActionSpace(kind="box", shape=(1,))


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def drawn(distribution, space, parameters, count=40_000, seed=0):
    noise = torch.from_numpy(draw_noise(space, np.random.default_rng(seed), (count,)))
    return distribution.sample(parameters.expand(count, -1), noise)


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


# several choices at once


def test_multi_discrete_is_a_product_of_torchs_categoricals():
    distribution, outputs = distribution_of(SEVERAL, "stochastic"), 2 * numbers(6, 2, 9)
    assert distribution.outputs == distribution.noise == 9
    parts = [torch.distributions.Categorical(logits=x) for x in outputs.split(SEVERAL.nvec, -1)]
    parameters = distribution.parameters(outputs, None)
    action = torch.stack([part.sample() for part in parts], -1)
    expected = sum(part.log_prob(action[..., i]) for i, part in enumerate(parts))
    torch.testing.assert_close(distribution.log_prob(parameters, action), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(distribution.entropy(parameters), sum(part.entropy() for part in parts), rtol=0, atol=1e-12)
    assert torch.equal(distribution.mode(parameters), torch.stack([part.probs.argmax(-1) for part in parts], -1))
    assert distribution.mode(parameters).shape == (6, 2, *SEVERAL.action_shape)


@pytest.mark.parametrize("space", [DISCRETE, SEVERAL])
def test_probabilities_of_all_actions_sum_to_one(space):
    distribution = distribution_of(space, "stochastic")
    parameters = distribution.parameters(2 * numbers(space.size), None)
    actions = torch.tensor(list(itertools.product(*map(range, space.choices))))
    actions = actions.squeeze(-1) if space.kind == "discrete" else actions
    log_prob = distribution.log_prob(parameters.expand(len(actions), -1), actions)
    assert len(actions) == math.prod(space.choices)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert -(log_prob.exp() * log_prob).sum().item() == pytest.approx(distribution.entropy(parameters).item(), abs=1e-12)


def test_multi_discrete_draws_have_the_joint_frequencies():
    distribution = distribution_of(SEVERAL, "stochastic")
    parameters = distribution.parameters(numbers(9), None)
    actions = drawn(distribution, SEVERAL, parameters)
    counts = np.zeros(SEVERAL.nvec)
    np.add.at(counts, tuple(actions.numpy().T), 1)
    one, two, three = (x.exp().numpy() for x in parameters.split(SEVERAL.nvec))
    assert chi_square(counts, one[:, None, None] * two[:, None] * three) < 49.7  # 0.999 quantile with 23 degrees of freedom
    assert chi_square(counts, np.full(SEVERAL.nvec, 1 / 24)) > 49.7  # it would show


@pytest.mark.parametrize("space", [DISCRETE, SEVERAL])
def test_one_hot_stands_at_the_choices_of_each_part(space):
    distribution = distribution_of(space, "stochastic")
    encoded = distribution.one_hot(torch.tensor(3) if space is DISCRETE else torch.tensor([2, 0, 1]), torch.float64)
    assert encoded.tolist() == ([0, 0, 0, 1, 0] if space is DISCRETE else [0, 0, 1, 1, 0, 0, 1, 0, 0])


# boxes


def gaussians():
    """(distribution, its parameters, mean and deviation before any squashing) of each head."""
    outputs, log_std = numbers(7, 3), torch.tensor([-1.0, 0.2, 0.4], dtype=torch.float64)
    for head in ("stochastic", "bounded"):
        distribution = distribution_of(BOX, head)
        mean = outputs if head == "stochastic" else outputs.tanh()
        yield head, distribution, distribution.parameters(outputs, None, log_std), mean, log_std.exp().expand(7, 3)
    distribution, free = distribution_of(BOX, "squashed"), numbers(7, 3, seed=1)
    low, high = LOG_STD
    deviation = (low + (high - low) / 2 * (free.tanh() + 1)).exp()
    yield "squashed", distribution, distribution.parameters(torch.cat([outputs, free], -1), None), outputs, deviation


def test_box_log_probabilities_are_torchs():
    for head, distribution, parameters, mean, deviation in gaussians():
        noise = 0.5 * numbers(7, 3, seed=3)
        action = distribution.sample(parameters, noise)
        reference = torch.distributions.Normal(mean, deviation)
        if head == "squashed":
            action = action.clamp(-0.999, 0.999)
            reference = torch.distributions.TransformedDistribution(reference, torch.distributions.transforms.TanhTransform())
        expected = reference.log_prob(action).sum(-1)
        torch.testing.assert_close(distribution.log_prob(parameters, action), expected, rtol=1e-9, atol=1e-9)


def test_box_draws_are_the_noise_scaled_moved_and_kept_inside():
    seen = set()
    for head, distribution, parameters, mean, deviation in gaussians():
        noise = 3 * numbers(7, 3, seed=2)
        free = mean + noise * deviation
        inside = {"stochastic": free, "bounded": free.clamp(-1, 1), "squashed": free.tanh()}[head]
        torch.testing.assert_close(distribution.sample(parameters, noise), inside, rtol=0, atol=1e-12)
        middle = {"stochastic": mean, "bounded": mean, "squashed": mean.tanh()}[head]
        torch.testing.assert_close(distribution.mode(parameters), middle, rtol=0, atol=1e-12)
        seen.add(head)
    assert seen == {"stochastic", "bounded", "squashed"}


@pytest.mark.parametrize("free", [-0.5, 0.0, 0.35])
@pytest.mark.parametrize("mean", [-0.7, 0.0, 1.2])
def test_squashed_density_integrates_to_one(mean, free):
    distribution = distribution_of(LINE, "squashed")
    parameters = distribution.parameters(torch.tensor([mean, free], dtype=torch.float64), None)
    # by the midpoint rule over u = atanh(a), da = (1 - a²) du
    u = torch.linspace(-7, 7, 40_001, dtype=torch.float64).unsqueeze(-1)
    action = u.tanh()
    density = distribution.log_prob(parameters.expand(len(u), -1), action).exp() * (1 - action.squeeze(-1) ** 2)
    assert (density.sum() * 14 / 40_000).item() == pytest.approx(1, abs=1e-4)


def test_squashed_draws_have_the_distribution_function_of_the_density():
    distribution = distribution_of(LINE, "squashed")
    parameters = distribution.parameters(torch.tensor([0.4, 0.3], dtype=torch.float64), None)
    actions = drawn(distribution, LINE, parameters).flatten().sort().values
    density = distribution.log_prob(parameters.expand(20_001, -1), torch.linspace(-0.9999, 0.9999, 20_001).double()[:, None]).exp()
    mass = torch.cumulative_trapezoid(density, dx=0.9999 * 2 / 20_000)
    at = torch.searchsorted(torch.linspace(-0.9999, 0.9999, 20_001).double()[1:], actions).clamp_max(19_999)
    empirical = torch.arange(1, 40_001).double() / 40_000
    assert (mass[at] - empirical).abs().max() < 1.95 / 200  # Kolmogorov-Smirnov, 0.999


def test_squashed_log_probability_keeps_its_digits_in_float32_and_is_finite_at_the_edge():
    distribution = distribution_of(LINE, "squashed")
    parameters = distribution.parameters(torch.tensor([0.3, 0.1], dtype=torch.float64), None).float()
    for action in (-1.0, -0.99, 0.0, 0.5, 0.999, 1.0):
        low = distribution.log_prob(parameters, torch.tensor([action]))
        high = distribution.log_prob(parameters.double(), torch.tensor([action], dtype=torch.float64))
        assert torch.isfinite(low)
        if abs(action) < 1:
            assert low.item() == pytest.approx(high.item(), rel=1e-4)


def test_squashed_gradients_are_finite_however_far_the_network_goes():
    distribution = distribution_of(BOX, "squashed")
    outputs = torch.tensor([[50.0, -50.0, 3.0, 80.0, -80.0, 0.0]], requires_grad=True)
    parameters = distribution.parameters(outputs, None)
    action = distribution.sample(parameters, torch.tensor([[1.0, -1.0, 0.5]]))
    (distribution.log_prob(parameters, action) + distribution.entropy(parameters)).sum().backward()
    assert torch.isfinite(outputs.grad).all()
    assert (action.abs() <= 1).all()


# values, exploration and masks


def masks_of(space, rows, seed=0):
    """Random masks with a legal choice in each part, among them ones with a single one."""
    random = np.random.default_rng(seed)
    parts = []
    for n in space.choices:
        part = random.random((rows, n)) < random.choice([0.0, 0.3, 0.8], size=(rows, 1))
        part[np.arange(rows), random.integers(0, n, rows)] = True
        parts.append(part)
    return torch.from_numpy(np.concatenate(parts, 1))


def settle(head, space, outputs, mask, epsilon):
    """As `actors` makes parameters of outputs."""
    distribution = Categorical(space)
    if head == "values":
        return explore(distribution, greedy(distribution, outputs, mask), mask, epsilon)
    return explore(distribution, distribution.parameters(outputs, mask), mask, epsilon)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("head", ["stochastic", "values"])
@pytest.mark.parametrize("space", [DISCRETE, SEVERAL])
def test_exploration_mixes_the_policy_with_the_legal_choices(space, head, epsilon, dtype):
    outputs, mask = 2 * numbers(50, space.size, dtype=dtype), masks_of(space, 50)
    for given in (mask, None):
        result = settle(head, space, outputs, given, epsilon).exp().double().numpy()
        legal = np.ones((50, space.size), bool) if given is None else given.numpy()
        start = 0
        for n in space.choices:
            part = slice(start, start + n)
            for row in range(50):
                x, ok = outputs[row, part].double().numpy(), legal[row, part]
                if head == "values":
                    chosen = np.zeros(n)
                    chosen[np.argmax(np.where(ok, x, -np.inf))] = 1
                else:
                    chosen = np.exp(x - x.max()) * ok
                    chosen /= chosen.sum()
                expected = (1 - epsilon) * chosen + epsilon * ok / ok.sum()
                np.testing.assert_allclose(result[row, part], expected, rtol=0, atol=1e-12 if dtype is torch.float64 else 1e-6)
            start += n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("head", ["stochastic", "values"])
@pytest.mark.parametrize("space", [DISCRETE, SEVERAL])
def test_illegal_choices_are_never_taken(space, head, epsilon, dtype):
    """Not by the most extreme noise, and not where the network likes them best."""
    distribution, rows = Categorical(space), 200
    mask = masks_of(space, rows)
    random = np.random.default_rng(1)
    smallest, largest = (draw_noise(space, Extreme(x), (1,))[0, 0] for x in (0.0, 1 - 2**-53))
    for scale in (1.0, 1e3, 1e30):
        outputs = scale * numbers(rows, space.size, dtype=dtype) + torch.where(mask, -scale, scale)
        parameters = settle(head, space, outputs, mask, epsilon)
        noises = [draw_noise(space, random, (rows,)) for _ in range(20)]
        noises += [np.where(mask.numpy(), smallest, largest), np.where(mask.numpy(), largest, smallest)]
        choices = [distribution.mode(parameters)]
        choices += [distribution.sample(parameters, torch.from_numpy(noise).to(dtype)) for noise in noises]
        for action in choices:
            taken = distribution.one_hot(action, torch.float64) > 0
            assert (taken & ~mask).sum() == 0
            assert torch.isfinite(distribution.log_prob(parameters, action)).all()
        assert torch.isfinite(distribution.entropy(parameters)).all()


class Extreme:
    """A generator that gives one number."""

    def __init__(self, number):
        self.number = number

    def random(self, shape):
        return np.full(shape, self.number)


@pytest.mark.parametrize("head", ["stochastic", "values"])
def test_explored_frequencies_are_the_mixture(head):
    outputs, mask = numbers(5), torch.tensor([True, True, False, True, True])
    parameters = settle(head, DISCRETE, outputs, mask, 0.4)
    counts = np.bincount(drawn(Categorical(DISCRETE), DISCRETE, parameters), minlength=5)
    ok = mask.numpy()
    chosen = np.exp(outputs.numpy()) * ok / (np.exp(outputs.numpy()) * ok).sum()
    if head == "values":
        chosen = np.eye(5)[np.argmax(np.where(ok, outputs.numpy(), -np.inf))]
    expected = 0.6 * chosen + 0.4 * ok / 4
    assert counts[2] == 0
    assert chi_square(counts[ok], expected[ok]) < 16.3  # 0.999 quantile with 3 degrees of freedom


def test_noise_of_choices_stays_inside_zero_and_one_in_float32():
    for number in (0.0, 2**-60, 1 - 2**-53):
        noise = torch.from_numpy(draw_noise(DISCRETE, Extreme(number), (4,))).float()
        assert ((noise > 0) & (noise < 1)).all()
        assert torch.isfinite(torch.log(-torch.log(noise))).all()
    assert draw_noise(SEVERAL, np.random.default_rng(0), (4, 2)).shape == (4, 2, 9)
    assert draw_noise(BOX, np.random.default_rng(0), (4, 2)).shape == (4, 2, 3)
