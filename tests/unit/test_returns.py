"""Advantages and value statistics against definitions written out."""

import numpy as np
import pytest
import torch

from marl_hpc.returns import ValueNormalizer, gae


def brute_force(rewards, values, next_values, terminated, done, gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l}, the sum ending with the step at which the episode does."""
    advantages = np.zeros_like(rewards)
    for t, b, n in np.ndindex(rewards.shape):
        for later in range(t, len(rewards)):
            bootstrap = 0.0 if terminated[later, b, n] else next_values[later, b, n]
            if not done[later, b, n] and later + 1 < len(rewards):
                bootstrap = values[later + 1, b, n]
            delta = rewards[later, b, n] + gamma * bootstrap - values[later, b, n]
            advantages[t, b, n] += (gamma * lam) ** (later - t) * delta
            if done[later, b, n]:
                break
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_gae_is_the_discounted_sum_of_temporal_differences(gamma, lam):
    random = np.random.default_rng(0)
    rewards, values, next_values = random.normal(size=(3, 12, 4, 3))
    terminated = random.random((12, 4, 3)) < 0.15
    done = terminated | (random.random((12, 4, 3)) < 0.15)
    expected = brute_force(rewards, values, next_values, terminated, done, gamma, lam)
    result = gae(*(torch.from_numpy(x) for x in (rewards, values, next_values, terminated, done)), gamma=gamma, lam=lam)[0]
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1)


def test_truncated_step_bootstraps_and_terminated_step_does_not():
    reward, value, following, yes, no = column(1.0), column(3.0), column(10.0), column(1.0) > 0, column(0.0) > 0
    assert gae(reward, value, following, no, yes, gamma=0.5, lam=0.9)[0].item() == 1 + 0.5 * 10 - 3
    assert gae(reward, value, following, yes, yes, gamma=0.5, lam=0.9)[0].item() == 1 - 3


def test_last_step_of_a_fragment_bootstraps():
    no = column(0.0) > 0
    assert gae(column(1.0), column(3.0), column(10.0), no, no, gamma=0.5, lam=0.9)[0].item() == 3.0


@pytest.mark.parametrize("terminates", [True, False])
def test_nothing_leaks_across_a_reset_inside_a_fragment(terminates):
    """The episode ends with step 1; steps 2 and 3 are another episode with huge numbers."""
    done = column(0.0, 1.0, 0.0, 0.0) > 0
    result = gae(
        column(1.0, 2.0, 1e6, 1e6), column(4.0, 8.0, 1e6, -1e6), column(8.0, 16.0, -1e6, 1e6), done & terminates, done,
        gamma=0.5, lam=0.5,
    )[0]  # fmt: skip
    last = 2 - 8 + (0 if terminates else 0.5 * 16)
    first = (1 + 0.5 * 8 - 4) + 0.25 * last
    assert result.flatten()[:2].tolist() == [first, last]
    assert (result.flatten()[2:].abs() > 1e5).all()


def test_gae_names_the_shapes_that_differ():
    x = torch.zeros(3, 2, 1)
    with pytest.raises(ValueError, match=r"next_values.*\(2, 2, 1\)"):
        gae(x, x, x[:2], x, x, gamma=0.9, lam=0.9)


def moments(x):
    x = np.asarray(x, np.float64)
    return torch.tensor([x.size, x.sum(), (x * x).sum()], dtype=torch.float64)


def test_first_batch_alone_decides_the_statistics():
    x = np.random.default_rng(1).normal(-50, 7, 1000)
    normalizer = ValueNormalizer()
    normalizer.update(moments(x))
    np.testing.assert_allclose(normalizer.mean_std, [x.mean(), x.std()], rtol=1e-10)


def test_statistics_are_the_bias_corrected_moving_average_of_batches():
    random = np.random.default_rng(2)
    batches = [random.normal(i, 1 + i, 50 + 10 * i) for i in range(6)]
    normalizer = ValueNormalizer(decay=0.9)
    for batch in batches:
        normalizer.update(moments(batch))
    weights = 0.9 ** np.arange(len(batches))[::-1]
    mean = np.average([batch.mean() for batch in batches], weights=weights)
    squares = np.average([(batch**2).mean() for batch in batches], weights=weights)
    np.testing.assert_allclose(normalizer.mean_std, [mean, np.sqrt(squares - mean**2)], rtol=1e-10)
    values = torch.from_numpy(random.normal(3, 4, 20))
    np.testing.assert_allclose(
        normalizer.normalize(values).numpy(), (values.numpy() - mean) / np.sqrt(squares - mean**2), rtol=1e-10
    )


def test_denormalize_undoes_normalize():
    normalizer = ValueNormalizer()
    x = torch.linspace(-100, 100, 41, dtype=torch.float64)
    assert torch.equal(normalizer.denormalize(normalizer.normalize(x)), x)
    normalizer.update(moments([1.0, 5.0, -40.0]))
    assert not torch.allclose(normalizer.normalize(x), x)
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(x)), x, rtol=0, atol=1e-11)


def test_sums_of_two_replicas_give_the_statistics_of_one():
    x = np.random.default_rng(3).normal(2, 3, 300)
    together, apart = ValueNormalizer(), ValueNormalizer()
    together.update(moments(x))
    apart.update(moments(x[:100]) + moments(x[100:]))
    np.testing.assert_allclose(apart.mean_std, together.mean_std, rtol=1e-12)


def test_empty_batch_changes_nothing():
    normalizer = ValueNormalizer()
    normalizer.update(moments([1.0, 2.0]))
    before = normalizer.mean_std
    normalizer.update(moments([]))
    assert normalizer.mean_std == before


def test_constant_targets_are_normalized_to_finite_numbers():
    normalizer = ValueNormalizer()
    normalizer.update(moments([5.0, 5.0, 5.0]))
    assert normalizer.normalize(torch.tensor([5.0], dtype=torch.float64)).abs().item() < 1e-6
