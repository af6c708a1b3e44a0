"""Advantages and value statistics against definitions written out."""

from itertools import product

import numpy as np
import pytest
import torch

from marl_hpc.returns import ValueNormalizer, gae, vtrace


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


# off-policy


def vtrace_of(transitions, values, ratios, gamma, lam, rho_bar, c_bar):
    """{turn: (vs, advantage)} of one agent by the sum of products in Espeholt et al. 2018, eq. 1, and their section 4.2."""
    rho = {turn: min(rho_bar, ratios[turn]) for turn, *_ in transitions}
    c = {turn: lam * min(c_bar, ratios[turn]) for turn, *_ in transitions}

    def target(s):
        total = values[transitions[s][0]]
        for t in range(s, len(transitions)):
            turn, reward, bootstrap, ended = transitions[t]
            traces = np.prod([c[transitions[i][0]] for i in range(s, t)])
            total += gamma ** (t - s) * traces * rho[turn] * (reward + gamma * bootstrap - values[turn])
            if ended:
                break
        return total

    result = {}
    for s, (turn, reward, bootstrap, ended) in enumerate(transitions):
        following = bootstrap if ended or s + 1 == len(transitions) else target(s + 1)
        result[turn] = (target(s), reward + gamma * (lam * following + (1 - lam) * bootstrap) - values[turn])
    return result


def off_policy_data(seed, simultaneous, shape=(30, 16, 3)):
    """Everything that `vtrace` takes, arrays, with `active`, `terminated`, `truncated` and `continues`."""
    random = np.random.default_rng(seed)
    active, terminated, truncated, continues = episodes(random, *shape, simultaneous)
    rewards, values, next_values = random.normal(size=(3, *shape))
    ratios = np.exp(0.7 * random.normal(size=shape))
    return rewards, values, next_values, ratios, active, terminated, truncated, continues


def tensors(*arrays):
    return tuple(torch.from_numpy(x) for x in arrays)


@pytest.mark.parametrize("simultaneous", [False, True])
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (1.5, 0.6), (np.inf, np.inf)])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_vtrace_is_the_papers_sum_over_each_agents_own_transitions(gamma, lam, rho_bar, c_bar, simultaneous):
    rewards, values, next_values, ratios, active, terminated, truncated, continues = off_policy_data(4, simultaneous)
    targets, advantages, known = vtrace(
        *tensors(rewards, values, next_values, terminated, terminated | truncated, ratios), gamma=gamma, lam=lam, rho_bar=rho_bar,
        c_bar=c_bar, active=torch.from_numpy(active), continues=torch.from_numpy(continues),
    )  # fmt: skip
    turns, still_open = 0, 0
    for b, n in np.ndindex(active.shape[1:]):
        own = (x[:, b, n] for x in (rewards, values, next_values, active, terminated, truncated))
        found, turn = transitions_of(*own, continues[b, n], gamma)
        expected = vtrace_of(found, values[:, b, n], ratios[:, b, n], gamma, lam, rho_bar, c_bar)
        assert sorted(expected) == np.flatnonzero(known[:, b, n].numpy()).tolist()
        turns, still_open = turns + len(expected), still_open + (turn is not None)
        for t, (target, advantage) in expected.items():
            assert targets[t, b, n].item() == pytest.approx(target, rel=1e-12, abs=1e-12)
            assert advantages[t, b, n].item() == pytest.approx(advantage, rel=1e-12, abs=1e-12)
    unknown = ~known.numpy()
    np.testing.assert_array_equal(targets.numpy()[unknown], values[unknown])
    assert (advantages.numpy()[unknown] == 0).all()
    assert turns > 200
    assert still_open > 0
    assert truncated.any()
    assert terminated.any()


@pytest.mark.parametrize("simultaneous", [False, True])
def test_ratios_of_steps_that_are_not_known_count_nowhere(simultaneous):
    rewards, values, next_values, ratios, active, terminated, truncated, continues = off_policy_data(5, simultaneous)
    arguments, rest = tensors(rewards, values, next_values, terminated, terminated | truncated), tensors(active, continues)

    def estimate(ratios):
        return vtrace(*arguments, torch.from_numpy(ratios), gamma=0.9, lam=0.9, active=rest[0], continues=rest[1])

    expected = estimate(ratios)
    assert (expected[2] != rest[0]).any()
    for wrong in (np.nan, np.inf, 1e30):
        for x, other in zip(expected, estimate(np.where(expected[2].numpy(), ratios, wrong)), strict=True):
            assert torch.equal(x, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_vtrace_of_data_of_the_same_policy_is_gae_to_the_last_bit(lam, dtype):
    rewards, values, next_values, _, active, terminated, truncated, continues = tensors(*off_policy_data(6, True))
    arguments = (*(x.to(dtype) for x in (rewards, values, next_values)), terminated, terminated | truncated)
    options = {"gamma": 0.97, "lam": lam, "active": active, "continues": continues}
    expected, expected_known = gae(*arguments, **options)
    targets, advantages, known = vtrace(*arguments, torch.ones_like(arguments[0]), **options)
    assert torch.equal(advantages, expected)
    assert torch.equal(targets, expected + arguments[1])
    assert torch.equal(known, expected_known)


def test_vtrace_of_data_of_the_same_policy_with_lambda_1_is_the_n_step_return():
    rewards, values = column(1.0, 2.0, 3.0), column(7.0, 8.0, 9.0)
    no = torch.zeros(3, 1, 1, dtype=torch.bool)
    targets, _, _ = vtrace(rewards, values, column(0.0, 0.0, 16.0), no, no, torch.ones_like(rewards), gamma=0.5, lam=1.0)
    assert targets.flatten().tolist() == [1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 16, 2 + 0.5 * 3 + 0.25 * 16, 3 + 0.5 * 16]


def test_ratios_are_truncated_each_by_its_bound():
    """By hand: γ = 0.5, λ = 1, the critic says 1 everywhere, ratios 4 and 0.5. δ are 1 + 0.5 - 1 and 2 + 0.5 - 1."""
    ratios, one = column(4.0, 0.5), column(1.0, 1.0)
    no = torch.zeros(2, 1, 1, dtype=torch.bool)
    targets, advantages, _ = vtrace(column(1.0, 2.0), one, one, no, no, ratios, gamma=0.5, lam=1.0, rho_bar=3.0, c_bar=2.0)
    last = 1 + 0.5 * 1.5
    assert targets.flatten().tolist() == [1 + 3 * 0.5 + 0.5 * 2 * (0.5 * 1.5), last]
    assert advantages.flatten().tolist() == [1 + 0.5 * last - 1, 1.5]


def test_vtrace_names_the_shapes_that_differ():
    x = torch.zeros(3, 2, 4)
    with pytest.raises(ValueError, match=r"vtrace.*ratios.*\(3, 2, 1\)"):
        vtrace(x, x, x, x, x, x[..., :1], gamma=0.9, lam=0.9)


# a problem of two states and two actions: chances [state, action, next state], rewards [state, action], and two policies of it
CHANCES = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.1, 0.9]]])
REWARDS = np.array([[1.0, -2.0], [0.5, 3.0]])
ACTED, LEARNED = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.6, 0.4]])
GAMMA = 0.8


def value_of(policy):
    """The solution of V = r_π + γ P_π V."""
    moves = np.einsum("sa,san->sn", policy, CHANCES)
    return np.linalg.solve(np.eye(2) - GAMMA * moves, (policy * REWARDS).sum(-1))


@pytest.mark.parametrize("lam", [0.5, 1.0])
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (1.0, 0.5), (2.0, 1.0), (np.inf, 1.0), (np.inf, np.inf)])
def test_vtrace_is_at_rest_at_the_value_of_the_papers_policy(rho_bar, c_bar, lam):
    """The exact expectation of the targets over all ways that three steps can go under the policy that acted, taken as the next values
    again and again, settles at the value of Espeholt et al. 2018, eq. 3; with an infinite bound that is the learned policy's."""
    steps = 3
    ways = np.array(list(product(range(2), repeat=2 * steps + 1)))  # state, action, state, …
    states, actions = ways[:, ::2].T, ways[:, 1::2].T
    chance = np.prod([ACTED[s, a] * CHANCES[s, a, n] for s, a, n in zip(states, actions, states[1:], strict=False)], 0)
    here, rewards = states[:-1], REWARDS[states[:-1], actions]
    ratios = LEARNED[here, actions] / ACTED[here, actions]
    assert (ratios > 2).any()
    no = torch.zeros(steps, len(ways), 1, dtype=torch.bool)
    values = np.zeros(2)
    for _ in range(300):
        targets, _, _ = vtrace(
            *(torch.from_numpy(x)[..., None] for x in (rewards, values[here], values[states[1:]])), no, no,
            torch.from_numpy(ratios)[..., None], gamma=GAMMA, lam=lam, rho_bar=rho_bar, c_bar=c_bar,
        )  # fmt: skip
        first = chance * targets[0, :, 0].numpy()
        values = np.array([first[states[0] == s].sum() for s in range(2)])
    between = np.minimum(rho_bar * ACTED, LEARNED)
    between /= between.sum(-1, keepdims=True)
    np.testing.assert_allclose(values, value_of(between), rtol=0, atol=1e-9)
    assert (np.abs(value_of(between) - value_of(LEARNED)).max() > 0.05) == (rho_bar != np.inf)
    assert np.abs(value_of(between) - value_of(ACTED)).max() > 0.05
