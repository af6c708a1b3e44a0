"""The payoff table: what is counted, once, in an order that no worker decides."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from marl_hpc.populations import Lease, PayoffTable, Sampling, episode_seeds, profiles

LOOSE = Sampling(half_width=100.0, min_episodes=4, max_episodes=40, batch=4, lease_s=10.0)
STRENGTH = np.array([0.0, 0.4, 1.0])


def simulate(populations, lease, seed=0):
    """Returns of a game of noise and strengths in which the first seat is worth something."""
    rows = []
    seeds = episode_seeds(seed, lease.cell, lease.numbers)
    for own_seed, profile in zip(seeds, profiles(populations, lease.cell, lease.numbers), strict=True):
        noise = np.random.default_rng(own_seed).normal(size=len(profile))
        rows.append(STRENGTH[profile] + noise + 0.5 * (np.arange(len(profile)) == 0))
    return np.array(rows)


def fill_with(table, workers, order=None, dead=(), per_lease=1):
    """Let so many workers simulate everything; `order` decides who reports next, `dead` workers never do."""
    random = np.random.default_rng(order)
    now_s, held = 0.0, {}
    for worker in dead:
        table.lease(f"rollout/{worker}", now_s=now_s, count=per_lease)
    alive = [worker for worker in range(workers) if worker not in dead]
    while len(table.missing()):
        for worker in alive:
            if not held.get(worker):
                held[worker] = table.lease(f"rollout/{worker}", now_s=now_s, count=per_lease)
        worker = alive[int(random.integers(len(alive)))] if order is not None else alive[0]
        now_s += 1.0
        for lease in held.pop(worker):
            table.report(lease.cell, lease.batch, simulate(table.populations, lease))


def same_state(one, other):
    one, other = one.state(), other.state()
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def alone(populations=(0, 1), sizes=(2, 3), sampling=LOOSE):
    table = PayoffTable(populations, sampling)
    table.grow(sizes)
    fill_with(table, 1)
    return table


@pytest.mark.parametrize(("populations", "sizes"), [((0, 1), (2, 3)), ((0, 0), (3, 3)), ((0, 1, 0), (2, 3, 2))])
def test_one_worker_and_four_give_the_same_bits(populations, sizes):
    sampling = Sampling(half_width=0.4, min_episodes=8, max_episodes=80, batch=4, lease_s=5.0)
    expected = alone(populations, sizes, sampling)
    for order, dead, per_lease in ((0, (), 1), (1, (), 3), (2, (0, 2), 2)):
        table = PayoffTable(populations, sampling)
        table.grow(sizes)
        fill_with(table, 4, order, dead, per_lease)
        same_state(table, expected)


def test_moments_are_those_of_all_episodes_at_once():
    table = alone(sampling=Sampling(half_width=1e-9, min_episodes=12, max_episodes=12, batch=4))
    for cell in itertools.product(range(2), range(3)):
        returns = np.array(
            [STRENGTH[list(cell)] + [0.5, 0] + np.random.default_rng(s).normal(size=2) for s in episode_seeds(0, cell, range(12))]
        )
        entry = table.entry(cell)
        assert entry.done
        assert entry.episodes == 12
        np.testing.assert_allclose(entry.mean, returns.mean(0), rtol=1e-12)
        np.testing.assert_allclose(entry.variance, returns.var(0, ddof=1), rtol=1e-12)
        np.testing.assert_allclose(entry.half_width, NormalDist().inv_cdf(0.975) * returns.std(0, ddof=1) / 12**0.5, rtol=1e-12)
        np.testing.assert_array_equal(table.payoffs()[:, *cell], entry.mean)


def test_a_cell_is_done_when_its_interval_is_tight_enough_and_not_before():
    sampling = Sampling(half_width=0.3, confidence=0.9, min_episodes=10, max_episodes=1000, batch=5)
    table = alone(sizes=(1, 1), sampling=sampling)
    episodes = table.entry((0, 0)).episodes
    assert 10 < episodes < 1000  # 1.645 / 0.3, squared, is 30
    assert table.entry((0, 0)).half_width.max() <= 0.3
    returns = simulate((0, 1), Lease((0, 0), 0, episodes, 0.0))
    for count in range(10, episodes, 5):
        assert 1.6449 * (returns[:count].std(0, ddof=1) / count**0.5).max() > 0.3


def test_a_cell_without_variance_takes_no_more_than_the_least():
    table = PayoffTable((0, 1), Sampling(half_width=1e-12, min_episodes=4, max_episodes=400, batch=2))
    table.grow((1, 1))
    while len(table.missing()):
        (lease,) = table.lease("rollout/0", now_s=0.0)
        table.report(lease.cell, lease.batch, [[1.0, -1.0]] * 2)
    assert table.entry((0, 0)).episodes == 4


def test_shared_cells_are_kept_once_and_average_over_seats():
    table = alone((0, 0), (3, 3), Sampling(half_width=1e-9, min_episodes=8, max_episodes=8, batch=4))
    payoffs = table.payoffs()
    np.testing.assert_array_equal(payoffs[0], payoffs[1].T)
    returns = simulate((0, 0), table_lease(table, (0, 2)))
    first = np.concatenate([returns[0::2, 0], returns[1::2, 1]])  # policy 0 sits first in even episodes
    np.testing.assert_allclose(payoffs[0, 0, 2], first.mean(), rtol=1e-12)
    assert payoffs[0, 1, 1] == payoffs[1, 1, 1]


def table_lease(table, cell):
    """All the episodes of a cell as one lease."""
    return Lease(cell, 0, table.entry(cell).episodes, 0.0)


def test_three_players_of_whom_two_share_keep_sorted_cells():
    table = PayoffTable((0, 1, 0), LOOSE)
    table.grow((3, 2, 3))
    assert len(table.missing()) == 2 * 6
    cells = table.missing()
    random = np.random.default_rng(0)
    means = random.normal(size=cells.shape)
    means[cells[:, 0] == cells[:, 2], 0] = means[cells[:, 0] == cells[:, 2], 2]
    table.fill(cells, means)
    payoffs, known = table.payoffs(), dict(zip(map(tuple, cells.tolist()), means, strict=True))
    for a, b, c in itertools.product(range(3), range(2), range(3)):
        low, middle, high = known[min(a, c), b, max(a, c)]
        assert payoffs[:, a, b, c].tolist() == ([low, middle, high] if a <= c else [high, middle, low])


def test_a_batch_counts_once_however_often_it_is_reported():
    table, expected = PayoffTable((0, 1), LOOSE), alone()
    table.grow((2, 3))
    counted = []
    while len(table.missing()):
        (lease,) = table.lease("rollout/0", now_s=0.0)
        returns = simulate((0, 1), lease)
        counted.append(table.report(lease.cell, lease.batch, returns))
        assert not table.report(lease.cell, lease.batch, returns)
    assert counted == [True] * 6
    same_state(table, expected)


def test_an_owner_that_asks_again_gets_the_same_batches_and_others_get_others():
    table = PayoffTable((0, 1), LOOSE)
    table.grow((2, 2))
    first = table.lease("rollout/0", now_s=0.0, count=2)
    assert table.lease("rollout/0", now_s=9.0, count=2) == first
    others = table.lease("rollout/1", now_s=9.0, count=2)
    assert len({lease.cell for lease in first + others}) == 4
    more = table.lease("rollout/2", now_s=9.0)  # only what may not be needed is left
    assert more[0].batch == 1


def test_what_a_dead_worker_held_is_leased_again_and_its_late_result_counts_once():
    table = PayoffTable((0, 1), LOOSE)
    table.grow((1, 1))
    (lost,) = table.lease("rollout/0", now_s=0.0)
    assert table.lease("rollout/1", now_s=9.9)[0].batch == 1
    (again,) = table.lease("rollout/2", now_s=10.0)
    assert (again.cell, again.batch) == (lost.cell, lost.batch)
    assert table.report(lost.cell, lost.batch, simulate((0, 1), lost))
    assert not table.report(again.cell, again.batch, simulate((0, 1), again))
    assert table.entry((0, 0)).episodes == 4


def test_a_lease_that_is_renewed_lasts_and_others_dont():
    table = PayoffTable((0, 1), LOOSE)
    table.grow((1, 2))
    table.lease("rollout/0", now_s=0.0)
    table.lease("rollout/1", now_s=0.0)
    table.renew("rollout/0", now_s=8.0)
    assert table.owners(now_s=9.0) == ["rollout/0", "rollout/1"]
    assert table.owners(now_s=11.0) == ["rollout/0"]
    assert table.lease("rollout/2", now_s=11.0)[0].cell == (0, 1)  # what rollout/1 had
    assert table.lease("rollout/3", now_s=19.0)[0].cell == (0, 0)


def test_growing_keeps_what_is_done_and_asks_only_for_new_cells():
    table = alone(sizes=(2, 2))
    before = table.payoffs()
    table.grow((2, 2))
    assert not len(table.missing())
    table.grow((3, 2))
    assert table.missing().tolist() == [[2, 0], [2, 1]]
    with pytest.raises(ValueError, match=r"2 cells .* aren't done, such as \(2, 0\)"):
        table.payoffs()
    fill_with(table, 1)
    np.testing.assert_array_equal(table.payoffs()[:, :2], before)


def test_killed_and_resumed_from_its_state_the_table_is_the_same():
    sampling = Sampling(half_width=0.4, min_episodes=8, max_episodes=80, batch=4)
    table, expected = PayoffTable((0, 0), sampling), alone((0, 0), (3, 3), sampling)
    table.grow((3, 3))
    leases = table.lease("rollout/0", now_s=0.0, count=20)
    for lease in leases:
        if lease.batch != 1:  # those after it wait
            table.report(lease.cell, lease.batch, simulate((0, 0), lease))
    assert len(table.state()["waiting"]) >= 6
    resumed = PayoffTable((0, 0), sampling)
    resumed.load_state(table.state())
    same_state(resumed, table)
    fill_with(resumed, 2, order=0)
    same_state(resumed, expected)


def test_a_state_of_another_table_is_refused():
    with pytest.raises(ValueError, match="must agree"):
        PayoffTable((0, 1), LOOSE, seed=1).load_state(alone().state())


def test_exact_cells_are_done_at_once_and_stay():
    table = PayoffTable((0, 1))
    table.grow((1, 2))
    table.fill([[0, 0], [0, 1]], [[1.0, -1.0], [0.5, -0.5]])
    table.fill([[0, 0]], [[9.0, 9.0]])
    assert table.payoffs().tolist() == [[[1.0, 0.5]], [[-1.0, -0.5]]]
    entry = table.entry((0, 1))
    assert (entry.done, entry.exact, entry.half_width.tolist()) == (True, True, [0.0, 0.0])


def test_seeds_differ_between_cells_and_episodes():
    seeds = [seed for cell in itertools.product(range(5), range(5)) for seed in episode_seeds(3, cell, range(20))]
    assert len(set(seeds)) == len(seeds)
    assert set(seeds).isdisjoint(episode_seeds(4, (0, 0), range(20)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: table.report((0, 3), 0, np.zeros((4, 2))), r"no cell \(0, 3\)"),
        (lambda table: table.report((0, 0), 10, np.zeros((4, 2))), "batches 0 … 9; got 10"),
        (lambda table: table.report((0, 0), 0, np.zeros((4, 3))), r"expected \(4, 2\)"),
        (lambda table: table.report((0, 0), 0, np.full((4, 2), np.nan)), "finite"),
        (lambda table: table.grow((1, 3)), "never shrink"),
        (lambda table: table.grow((2,)), "one for each player"),
        (lambda table: table.fill([[0, 0]], [[1.0]]), r"expected \[M, 2\]"),
        (lambda table: PayoffTable((0, 0), Sampling(half_width=1.0, batch=5)), "multiple of 2"),
        (lambda table: PayoffTable((0, 0)).grow((1, 2)), "the same where they share one"),
        (lambda table: PayoffTable((0, 1)).lease("rollout/0", now_s=0.0), "give it a Sampling"),
        (lambda table: PayoffTable((0, 1)).payoffs(), "simulate or fill"),
        (lambda table: Sampling(half_width=0.0), "half_width"),
        (lambda table: Sampling(half_width=1.0, min_episodes=1), "2 ≤ min_episodes"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    table = PayoffTable((0, 1), LOOSE)
    table.grow((2, 3))
    with pytest.raises(ValueError, match=message):
        call(table)


def test_a_cell_in_another_order_is_refused_where_players_share():
    table = PayoffTable((0, 0), LOOSE)
    table.grow((2, 2))
    with pytest.raises(ValueError, match=r"kept as \(0, 1\)"):
        table.report((1, 0), 0, np.zeros((4, 2)))
