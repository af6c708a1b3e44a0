"""Cross-play, ratings and exports: closed forms, optimizers of others, and OpenSpiel's NashConv."""

import json
import math

import numpy as np
import pyspiel
import pytest
from scipy.optimize import minimize

from marl_hpc.games import compile_game, matrix_game, realization_plan, uniform_policy
from marl_hpc.meta_solvers.alpha_rank import alpha_rank
from marl_hpc.populations import (
    CrossPlay,
    PayoffTable,
    PolicyId,
    PolicyPopulation,
    Sampling,
    alpha_rank_ranking,
    cross_play,
    elo_ratings,
    exact_cells,
    export_mixture,
    profiles,
    psro,
)

RPS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def counted(wins, draws=None):
    """Cross-play of one population in which row has beaten column so often."""
    wins = np.array(wins, float)
    draws = np.zeros_like(wins) if draws is None else np.array(draws, float)
    return CrossPlay(tuple(PolicyId(0, i) for i in range(len(wins))), wins + wins.T + draws, wins, draws)


def in_order(rated):
    return np.array([one.score for one in sorted(rated, key=lambda one: one.name)])


def simulated(populations, sizes, outcome, episodes=40):
    """A table whose episodes return outcome(numbers by player, episode)."""
    table = PayoffTable(populations, Sampling(half_width=1e-9, min_episodes=episodes, max_episodes=episodes, batch=episodes))
    table.grow(sizes)
    while len(table.missing()):
        (lease,) = table.lease("rollout/0", now_s=0.0)
        played = profiles(populations, lease.cell, lease.numbers)
        table.report(lease.cell, 0, [outcome(row, number) for row, number in zip(played.tolist(), lease.numbers, strict=True)])
    return table


def test_cross_play_counts_wins_and_draws_whoever_sits_where():
    def outcome(numbers, episode):  # the higher number wins 3 of 4 episodes, whatever its seat; the others are draws
        winner = int(numbers[1] > numbers[0])
        return [0.0, 0.0] if episode // 2 % 4 == 3 else [1.0 - winner, float(winner)]

    played = cross_play(simulated((0, 0), (3, 3), outcome))
    assert played.names == (PolicyId(0, 0), PolicyId(0, 1), PolicyId(0, 2))
    assert played.games.tolist() == [[0, 40, 40], [40, 0, 40], [40, 40, 0]]
    assert played.wins.tolist() == [[0, 0, 0], [30, 0, 0], [30, 30, 0]]
    assert played.draws.tolist() == [[0, 10, 10], [10, 0, 10], [10, 10, 0]]


def test_cross_play_of_three_players_counts_every_pair():
    played = cross_play(simulated((0, 1, 2), (1, 1, 2), lambda numbers, episode: [1.0, 2.0, 2.0 + numbers[2]], episodes=10))
    assert [str(name) for name in played.names] == ["0/0", "1/0", "2/0", "2/1"]
    assert played.games.tolist() == [[0, 20, 10, 10], [20, 0, 10, 10], [10, 10, 0, 0], [10, 10, 0, 0]]
    assert played.wins.tolist() == [[0, 0, 0, 0], [20, 0, 0, 0], [10, 0, 0, 0], [10, 10, 0, 0]]


def test_cross_play_of_exact_cells_counts_probabilities():
    game = matrix_game([RPS, -RPS])
    plans = [realization_plan(game, i, np.eye(3)[:, None]) for i in range(2)]
    table = PayoffTable((0, 0))
    table.grow((3, 3))
    table.fill(*exact_cells(game, plans, table.missing(), (0, 0)))
    played = cross_play(table)
    assert played.wins.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert (played.draws == 0).all()
    assert [one.score for one in elo_ratings(played)] == pytest.approx([0, 0, 0], abs=1e-6)
    bare = PayoffTable((0, 1))
    bare.grow((1, 1))
    bare.fill([[0, 0]], [[1.0, -1.0]])
    with pytest.raises(ValueError, match="without `beats`"):
        cross_play(bare)


def test_two_policies_are_rated_by_the_odds():
    ratings = in_order(elo_ratings(counted([[0, 30], [10, 0]]), mean=1500, prior_draws=0))
    assert ratings[0] - ratings[1] == pytest.approx(400 * math.log10(3), abs=1e-6)
    assert ratings.mean() == pytest.approx(1500)
    with_draws = in_order(elo_ratings(counted([[0, 20], [0, 0]], [[0, 20], [20, 0]]), prior_draws=0))
    assert with_draws[0] - with_draws[1] == pytest.approx(400 * math.log10(3), abs=1e-6)


@pytest.mark.parametrize("prior_draws", [0.0, 1.0, 4.0])
def test_ratings_maximize_the_likelihood(prior_draws):
    random = np.random.default_rng(0)
    wins = random.integers(1, 50, (6, 6)) * (1 - np.eye(6))
    draws = random.integers(0, 9, (6, 6)) * (1 - np.eye(6))
    played = counted(wins, draws + draws.T)
    scores = played.wins + played.draws / 2

    def loss(ratings):
        fair = prior_draws / 2 * (np.logaddexp(0, -ratings) + np.logaddexp(0, ratings)).sum()
        return (scores * np.logaddexp(0, ratings[None] - ratings[:, None])).sum() + fair

    best = minimize(loss, np.zeros(6), tol=1e-12).x
    found = in_order(elo_ratings(played, prior_draws=prior_draws))
    expected = (best - best.mean() * (prior_draws == 0)) * 400 / math.log(10)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_true_ratings_are_recovered_from_expected_scores():
    true = np.array([-300.0, -20.0, 0.0, 120.0, 200.0])
    wins = 1000 / (1 + 10 ** ((true[None] - true[:, None]) / 400)) * (1 - np.eye(5))
    found = elo_ratings(counted(wins), mean=true.mean(), prior_draws=0)
    np.testing.assert_allclose(in_order(found), true, atol=1e-6)
    assert [one.name.number for one in found] == [4, 3, 2, 1, 0]


def test_who_won_everything_has_a_rating_by_the_prior_only():
    played = counted([[0, 10_000], [0, 0]])
    ratings = in_order(elo_ratings(played))
    assert 1000 < ratings[0] - ratings[1] < 4000
    assert ratings.mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="give prior_draws=1"):
        elo_ratings(played, prior_draws=0)
    with pytest.raises(ValueError, match="0 or more"):
        elo_ratings(played, prior_draws=-1)


def test_ranking_is_alpha_ranks():
    table = simulated((0, 1), (2, 2), lambda numbers, episode: [numbers[0] - 2.0 * numbers[1], 2.0 * numbers[1] - numbers[0]])
    ranked = alpha_rank_ranking(table)
    assert {one.name for one in ranked[:2]} == {PolicyId(0, 1), PolicyId(1, 1)}
    assert [one.score for one in ranked] == pytest.approx([1, 1, 0, 0], abs=1e-9)


def test_one_shared_population_is_ranked_as_one():
    table = simulated((0, 0), (3, 3), lambda numbers, episode: [RPS[numbers[0], numbers[1]], -RPS[numbers[0], numbers[1]]])
    ranked = alpha_rank_ranking(table, alpha=1.0)
    expected = alpha_rank([RPS, -RPS], alpha=1.0, symmetric=True).mixtures[0]
    assert in_order(ranked) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="of two players"):
        alpha_rank_ranking(PayoffTable((0, 0, 1)))


@pytest.mark.parametrize(("name", "expected"), [("kuhn_poker", 0.916667), ("leduc_poker", 4.747222)])
def test_the_exported_uniform_policy_has_the_known_nash_conv(name, expected):
    game = compile_game(name)
    exported = export_mixture(game, [uniform_policy(game, i)[None] for i in range(2)], [[1.0], [1.0]])
    assert pyspiel.nash_conv(pyspiel.load_game(name), pyspiel.TabularPolicy(json.loads(exported))) == pytest.approx(
        expected, abs=1e-6
    )


def test_an_exported_mixture_is_weighted_by_reach():
    game, population = compile_game("kuhn_poker"), PolicyPopulation((0, 1))
    *_, record = psro(game, population=population)
    policies = [np.stack([population.values(member.id) for member in population.members(i)]) for i in range(2)]

    def judged(text):
        return pyspiel.nash_conv(pyspiel.load_game("kuhn_poker"), pyspiel.TabularPolicy(json.loads(text)))

    assert judged(export_mixture(game, policies, record.meta.mixtures)) < 1e-6
    averages = [np.tensordot(record.meta.mixtures[i], policies[i], 1)[None] for i in range(2)]
    assert judged(export_mixture(game, averages, [[1.0], [1.0]])) > 0.01
    with pytest.raises(ValueError, match="has 2 players; got policies of 1"):
        export_mixture(game, policies[:1], record.meta.mixtures)
