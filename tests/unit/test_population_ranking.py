"""What a run's ranking says, and why it leaves something out."""

import json

import numpy as np
import pytest

from marl_hpc.games import matrix_game, realization_plan
from marl_hpc.populations import PayoffTable, PolicyId, Sampling, alpha_rank_ranking, cross_play, elo_ratings, exact_cells, ranking

RPS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def played(populations, size=3):
    """The table of pure strategies of rock, paper, scissors, by number modulo 3."""
    game = matrix_game([RPS, -RPS])
    plans = [realization_plan(game, i, np.eye(3)[np.arange(size) % 3][:, None]) for i in range(2)]
    table = PayoffTable(populations)
    table.grow((size, size))
    table.fill(*exact_cells(game, plans, table.missing(), populations))
    return table


@pytest.mark.parametrize("populations", [(0, 0), (0, 1)])
def test_ratings_stand_in_the_order_of_names_and_say_how_they_were_computed(populations):
    table = played(populations)
    table.grow((4, 4))
    some = table.missing()
    won = np.zeros((len(some), 2, 2))
    won[:, 1, 0] = 1.0
    table.fill(some, np.tile([-1.0, 1.0], (len(some), 1)) * (some[:, :1] != some[:, 1:]), won)
    record = json.loads(json.dumps(ranking(table)))
    assert record["names"] == [str(name) for name in cross_play(table).names]
    for part, key, expected, digits in (
        ("elo", "ratings", elo_ratings(cross_play(table), prior_draws=record["elo"]["prior_draws"]), 2),
        ("alpha_rank", "masses", alpha_rank_ranking(table, alpha=100.0, population_size=50), 6),
    ):
        given = dict(zip(record["names"], record[part][key], strict=True))
        assert given == {str(one.name): round(one.score, digits) for one in expected}
    assert (record["alpha_rank"]["alpha"], record["alpha_rank"]["population_size"]) == (100.0, 50)


def test_win_rates_are_null_where_two_never_met_and_draws_are_half():
    assert ranking(played((0, 0)))["win_rates"] == [[None, 0.0, 1.0], [1.0, None, 0.0], [0.0, 1.0, None]]
    apart = ranking(played((0, 1)))["win_rates"]
    assert [row[:3] for row in apart[:3]] == [[None] * 3] * 3
    assert [row[3:] for row in apart[:3]] == [[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]


def test_cells_without_wins_are_ranked_by_alpha_rank_only():
    table = PayoffTable((0, 1))
    table.grow((1, 2))
    table.fill([[0, 0], [0, 1]], [[1.0, -1.0], [0.0, 0.0]])
    record = ranking(table)
    assert "without `beats`" in record["elo"]["left_out"]
    assert "win_rates" not in record
    assert record["alpha_rank"]["masses"] == [1.0, 0.0, 1.0]


def test_alpha_rank_isnt_defined_for_three_who_share_and_says_so():
    table = PayoffTable((0, 0, 1), Sampling(half_width=1.0, min_episodes=2, max_episodes=2, batch=2))
    table.grow((1, 1, 1))
    (lease,) = table.lease("rollout/0", now_s=0.0)
    table.report(lease.cell, 0, np.zeros((2, 3)))
    record = ranking(table)
    assert "of two players" in record["alpha_rank"]["left_out"]
    assert record["elo"]["ratings"] == [0.0, 0.0]


def test_a_large_product_of_populations_has_ratings_and_no_alpha_rank():
    table = played((0, 1), 33)
    record = ranking(table)
    assert record["alpha_rank"]["left_out"].startswith("1,089 states")
    assert len(record["elo"]["ratings"]) == 66
    assert len(ranking(played((0, 0), 33))["alpha_rank"]["masses"]) == 33  # a single population's states are its policies


def test_missing_cells_are_said():
    table = played((0, 1))
    table.grow((4, 3))
    record = ranking(table)
    assert "aren't done" in record["alpha_rank"]["left_out"]
    assert record["win_rates"][record["names"].index(str(PolicyId(0, 3)))] == [None] * 7
