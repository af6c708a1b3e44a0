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


# turns


def episodes(random, steps, copies, agents, simultaneous):
    """Turns as environments make them: agents are born late, act by turns (or several at once), die by their own or others' moves, and
    what is left of an episode ends together. Rewards come at any step, also for the dead. All arrays [T, B, N], `continues` [B, N]."""
    shape = (steps, copies, agents)
    active, terminated, truncated = (np.zeros(shape, bool) for _ in range(3))
    continues = np.zeros((copies, agents), bool)
    for b in range(copies):
        alive, unborn = set(), set()
        for t in range(steps + 1):
            if not alive and not unborn:  # another episode
                order = list(random.permutation(agents))
                cut = random.integers(1, agents + 1)
                alive, unborn = set(order[:cut]), set(order[cut:])
            candidates = sorted(alive)
            number = random.integers(0, len(candidates) + 1) if simultaneous else min(1, len(candidates))
            moves = random.choice(candidates, number, replace=False) if candidates else []
            if t == steps:
                continues[b, list(moves)] = True
                break
            active[t, b, list(moves)] = True
            for n in list(alive):
                if random.random() < 0.05:
                    (terminated if random.random() < 0.5 else truncated)[t, b, n] = True
                    alive.discard(n)
            if random.random() < 0.05:  # over: those who are left, too
                for n in alive:
                    (terminated if random.random() < 0.5 else truncated)[t, b, n] = True
                alive, unborn = set(), set()
            if unborn and random.random() < 0.3:
                alive.add(unborn.pop())
        continues[b] &= ~(terminated | truncated)[-1, b]
    return active, terminated, truncated, continues


def transitions_of(rewards, values, next_values, active, terminated, truncated, continues, gamma):
    """One agent's own transitions [(turn, reward, bootstrap, ended)], and its turn that is still open or None; arrays [T]."""
    found, turn, reward = [], None, 0.0
    for t in range(len(rewards)):
        if active[t]:
            if turn is not None:
                found.append((turn, reward, values[t], False))
            turn, reward = t, 0.0
        reward += rewards[t]
        if terminated[t] or truncated[t]:
            if turn is not None:
                found.append((turn, reward, 0.0 if terminated[t] else next_values[t], True))
            turn = None
    if turn is not None and continues:
        found.append((turn, reward, next_values[-1], True))
        turn = None
    return found, turn


def advantages_of(transitions, values, gamma, lam):
    """{turn: Σ_l (γλ)^l δ_{turn+l}}, the sum ending with the agent's episode or with what is known."""
    deltas = [reward + gamma * bootstrap - values[turn] for turn, reward, bootstrap, _ in transitions]
    result = {}
    for i, (turn, *_) in enumerate(transitions):
        total = 0.0
        for j in range(i, len(transitions)):
            total += (gamma * lam) ** (j - i) * deltas[j]
            if transitions[j][3]:
                break
        result[turn] = total
    return result


@pytest.mark.parametrize("simultaneous", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.3, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_gae_over_turns_is_gae_over_each_agents_own_transitions(seed, gamma, lam, simultaneous):
    random = np.random.default_rng(seed)
    shape = (30, 16, 3)
    active, terminated, truncated, continues = episodes(random, *shape, simultaneous)
    rewards, values, next_values = random.normal(size=(3, *shape))
    result, known = gae(
        *(torch.from_numpy(x) for x in (rewards, values, next_values, terminated, terminated | truncated)), gamma=gamma, lam=lam,
        active=torch.from_numpy(active), continues=torch.from_numpy(continues),
    )  # fmt: skip
    still_open = 0
    for b, n in np.ndindex(shape[1:]):
        own = (x[:, b, n] for x in (rewards, values, next_values, active, terminated, truncated))
        found, turn = transitions_of(*own, continues[b, n], gamma)
        expected = advantages_of(found, values[:, b, n], gamma, lam)
        assert sorted(expected) == np.flatnonzero(known[:, b, n].numpy()).tolist()
        assert turn is None or (active[turn, b, n] and not known[turn, b, n])
        still_open += turn is not None
        for t, advantage in expected.items():
            assert result[t, b, n].item() == pytest.approx(advantage, abs=1e-12)
    assert (result.numpy()[~known.numpy()] == 0).all()
    assert still_open > 0
    assert continues.any()


def turns(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).T.unsqueeze(1)  # one row an agent to [T, 1, N]


def test_two_players_by_hand():
    """Players move by turns. The second one's last move ends the game and gives the first, who waits, a loss of 1. γ = 0.5, λ = 1."""
    acts = turns([1, 0, 1, 0], [0, 1, 0, 1]) > 0
    rewards = turns([0, 0.25, 0, -1], [0, 0, 0.5, 1])
    values = turns([2, 9, 4, 9], [9, 1, 9, 3])
    over = turns([0, 0, 0, 1], [0, 0, 0, 1]) > 0
    estimates, known = gae(
        rewards, values, torch.full_like(values, 100.0), over, over, gamma=0.5, lam=1.0, active=acts,
        continues=torch.zeros(1, 2, dtype=torch.bool),
    )  # fmt: skip
    first_last, second_last = -1 - 4, 1 - 3
    assert torch.equal(known, acts)
    assert estimates[:, 0, 0].tolist() == [0.25 + 0.5 * 4 - 2 + 0.5 * first_last, 0, first_last, 0]
    assert estimates[:, 0, 1].tolist() == [0, 0.5 + 0.5 * 3 - 1 + 0.5 * second_last, 0, second_last]


def test_a_turn_that_is_still_open_is_not_known_and_earlier_ones_bootstrap_from_its_value():
    no = turns([0, 0, 0]) > 0
    acts = turns([1, 1, 0]) > 0
    for continues, rest in ((True, 7 + 0.5 * 100 - 3), (False, None)):
        estimates, known = gae(
            turns([1, 5, 2]), turns([2, 3, 50]), turns([100, 100, 100]), no, no, gamma=0.5, lam=0.5, active=acts,
            continues=torch.tensor([[continues]]),
        )  # fmt: skip
        first = 1 + 0.5 * 3 - 2
        assert known.flatten().tolist() == [True, continues, False]
        assert estimates.flatten().tolist() == ([first + 0.25 * rest, rest, 0] if continues else [first, 0, 0])


def test_rewards_of_the_dead_and_of_who_has_not_acted_yet_belong_to_no_turn():
    over = turns([0, 1, 0, 0, 0, 0]) > 0
    acts = turns([1, 0, 0, 0, 1, 1]) > 0
    arguments = turns([0, 3, 4, 5, 6, 0]), over, over, acts
    results = []
    for between in (0.0, 1e6):
        rewards = turns([1, 2, between, between, 1, 1])
        values, terminated, done, active = arguments
        results.append(gae(rewards, values, values, terminated, done, gamma=0.9, lam=0.9, active=active)[0])
    assert torch.equal(results[0], results[1])
    assert results[0][0].item() == 3 - 0
