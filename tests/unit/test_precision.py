"""Cells are simulated until what a solution rests on is known well enough, and no longer."""

from statistics import NormalDist

import numpy as np
import pytest

from marl_hpc import meta_solvers
from marl_hpc.populations import PayoffTable, Sampling, episode_seeds
from marl_hpc.populations.precision import loose_cells
from marl_hpc.populations.schemes import LEARNS, Meeting

ROCK = np.array([[0.0, -1.0, 1.0, -2.0], [1.0, 0.0, -1.0, -2.0], [-1.0, 1.0, 0.0, -2.0], [2.0, 2.0, 2.0, 0.0]])  # the last one wins
UNBOUNDED = Sampling(half_width=np.inf, min_episodes=40, max_episodes=4000, batch=20)


def fill(table, order=0):
    """Two workers, of whom now one reports first, now the other; returns of player 0 have a standard deviation of 1."""
    random = np.random.default_rng(order)
    while len(table.missing()):
        leases = [lease for owner in ("rollout/0", "rollout/1") for lease in table.lease(owner, now_s=0.0)]
        for lease in random.permutation(len(leases)).tolist():
            cell, batch, *_ = leases[lease]
            noise = [np.random.default_rng(seed).normal() for seed in episode_seeds(0, cell, leases[lease].numbers)]
            own = ROCK[cell] + np.array(noise)
            table.report(cell, batch, np.stack([own, -own], 1))


def meetings_of(table):
    found = meta_solvers.resolve("nash")(table.payoffs())
    meetings = []
    for player in (0, 1):
        others = np.flatnonzero(found.mixtures[1 - player] > 1e-9)
        profiles = np.full((len(others), 2), LEARNS)
        profiles[:, 1 - player] = others
        meetings.append(Meeting(profiles, found.mixtures[1 - player][others]))
    return meetings


def refined(size, half_width, order=0):
    table = PayoffTable((0, 1), UNBOUNDED)
    table.grow((size, size))
    fill(table, order)
    while table.refine(loose_cells(table.populations, enumerate(meetings_of(table)), table.errors(), half_width)):
        fill(table, order)
    return table


@pytest.mark.parametrize("size", [3, 4])
def test_what_each_policy_returns_against_the_solution_is_known_as_well_as_asked(size):
    table = refined(size, 0.1)
    errors, quantile = table.errors(), NormalDist().inv_cdf(0.975)
    for player, (profiles, weights) in enumerate(meetings_of(table)):
        for policy in range(size):
            at = profiles.copy()
            at[:, player] = policy
            assert quantile * np.sqrt((weights**2 * errors[player, *at.T]).sum()) <= 0.1


def test_cells_that_nobody_meets_stay_as_they_are():
    table = refined(4, 0.05)
    episodes = np.array([[table.entry((i, j)).episodes for j in range(4)] for i in range(4)])
    assert (episodes[:3, :3] == 40).all()
    assert (episodes[3] > 1000).all()  # (1.96 / 0.05)², 1537
    assert (episodes[:, 3] > 1000).all()


def test_the_order_of_reports_changes_nothing():
    first, second = (refined(3, 0.2, order).state() for order in (0, 1))
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_a_table_that_is_refined_goes_on_where_it_was_saved():
    whole, half = PayoffTable((0, 1), UNBOUNDED), PayoffTable((0, 1), UNBOUNDED)
    whole.grow((2, 2))
    fill(whole)
    assert whole.refine([(0, 1), (1, 1)]) == 2
    half.load_state(whole.state())
    assert half.missing().tolist() == [[0, 1], [1, 1]]
    fill(whole)
    fill(half)
    assert [half.entry(cell).episodes for cell in ((0, 0), (0, 1), (1, 1))] == [40, 80, 80]
    for key, x in whole.state().items():
        np.testing.assert_array_equal(half.state()[key], x, err_msg=key)


def test_at_the_most_episodes_and_where_cells_are_exact_nothing_is_refined():
    table = PayoffTable((0, 1), Sampling(half_width=np.inf, min_episodes=20, max_episodes=60, batch=20))
    table.grow((1, 2))
    table.fill([(0, 1)], [(0.5, -0.5)])
    fill(table)
    assert [table.refine([(0, 0), (0, 1)]) for _ in range(3) if fill(table) is None] == [1, 1, 0]
    assert table.entry((0, 0)).episodes == 60
    assert (table.errors()[:, 0, 1] == 0).all()


def test_errors_of_players_who_share_a_population_follow_their_seats():
    table = PayoffTable((0, 0), Sampling(half_width=np.inf, min_episodes=20, max_episodes=60, batch=20))
    table.grow((2, 2))
    fill(table)
    errors = table.errors()
    np.testing.assert_array_equal(errors[0], errors[1].T)
    loose = loose_cells((0, 0), [(0, Meeting(np.array([[LEARNS, 0]]), np.ones(1)))], errors, 0.01)
    assert loose == [(0, 1)]  # against itself it returns nothing on average, whatever the noise
