"""Exact cells and best responses to joint distributions, against returns of one profile at a time."""

import itertools

import numpy as np
import pytest

from marl_hpc.games import best_response, compile_game, expected_returns, matrix_game, mixture_policy, realization_plan
from marl_hpc.populations import PayoffTable, best_response_to_joint, exact_cells
from marl_hpc.populations.cells import canonical

GAMES = {name: compile_game(name) for name in ("kuhn_poker", "kuhn_poker(players=3)", "tiny_hanabi")}


def random_policies(game, player, count):
    random = np.random.default_rng([player, count])
    weights = random.exponential(size=(count, *game.legal[player].shape)) * game.legal[player]
    return weights / weights.sum(-1, keepdims=True)


def populations_of(game, sizes):
    policies = [random_policies(game, player, size) for player, size in enumerate(sizes)]
    return policies, [realization_plan(game, player, own) for player, own in enumerate(policies)]


@pytest.mark.parametrize(("name", "sizes"), [("kuhn_poker", (3, 5)), ("kuhn_poker(players=3)", (2, 3, 4)), ("tiny_hanabi", (1, 2))])
def test_cells_are_the_returns_of_their_profiles(name, sizes):
    game = GAMES[name]
    policies, plans = populations_of(game, sizes)
    table = PayoffTable(range(game.players))
    for size in (tuple(1 for _ in sizes), sizes):  # the second time only what is new
        table.grow(size)
        found = exact_cells(game, plans, table.missing(), table.populations)
        table.fill(*found)
    payoffs = table.payoffs()
    for cell in itertools.product(*map(range, sizes)):
        expected = expected_returns(game, [policies[i][number] for i, number in enumerate(cell)])
        np.testing.assert_allclose(payoffs[:, *cell], expected, atol=1e-14)


def test_probabilities_to_return_more_are_those_of_a_game_of_wins():
    # in Kuhn poker somebody always wins, so that "more" is all there is; in rock-paper-scissors draws are neither
    _, plans = populations_of(GAMES["kuhn_poker"], (2, 2))
    found = exact_cells(GAMES["kuhn_poker"], plans, [(0, 1), (1, 1)], (0, 1))
    np.testing.assert_allclose(found.beats[:, 0, 1] + found.beats[:, 1, 0], 1)
    rock = matrix_game(np.array([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]], [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]]))
    uniform = realization_plan(rock, 0, np.full((1, 1, 3), 1 / 3))
    beats = exact_cells(rock, [uniform, uniform], [(0, 0)], (0, 1)).beats[0]
    np.testing.assert_allclose(beats, [[0, 1 / 3], [1 / 3, 0]], atol=1e-15)


def test_shared_cells_average_over_seats():
    game = GAMES["kuhn_poker"]
    policies, plans = populations_of(game, (3, 3))
    table = PayoffTable((0, 0))
    table.grow((3, 3))
    table.fill(*exact_cells(game, plans, table.missing(), (0, 0)))
    payoffs = table.payoffs()
    for a, b in itertools.product(range(3), range(3)):
        first, second = (expected_returns(game, [policies[0][x], policies[1][y]]) for x, y in ((a, b), (b, a)))
        np.testing.assert_allclose(payoffs[:, a, b], [(first[0] + second[1]) / 2, (first[1] + second[0]) / 2], atol=1e-14)
    for a in range(3):
        assert payoffs[0, a, a] == payoffs[1, a, a]


def test_two_of_three_players_share_their_seats():
    game = GAMES["kuhn_poker(players=3)"]
    policies, plans = populations_of(game, (2, 2, 2))
    cells = [cell for cell in itertools.product(range(2), repeat=3) if canonical((0, 1, 0), cell) == cell]
    found = exact_cells(game, plans, cells, (0, 1, 0))
    for cell, mean in zip(cells, found.means, strict=True):
        a, b, c = cell
        one = expected_returns(game, [policies[0][a], policies[1][b], policies[2][c]])
        two = expected_returns(game, [policies[0][c], policies[1][b], policies[2][a]])
        np.testing.assert_allclose(mean, [(one[0] + two[2]) / 2, (one[1] + two[1]) / 2, (one[2] + two[0]) / 2], atol=1e-14)


def test_a_best_response_to_a_mixture_is_one_to_its_behavior_policy():
    game = GAMES["kuhn_poker"]
    policies, plans = populations_of(game, (1, 4))
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    found = best_response_to_joint(game, 0, plans, weights)
    expected = best_response(game, 0, [policies[0][0], mixture_policy(game, 1, policies[1], weights)])
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    np.testing.assert_array_equal(found.policy, expected.policy)


@pytest.mark.parametrize("player", range(3))
def test_a_best_response_to_correlated_opponents_is_the_best_of_all_pure_strategies(player):
    random = np.random.default_rng(player)
    payoffs = random.normal(size=(3, 3, 4, 2))
    game = matrix_game(payoffs)
    sizes = (2, 3, 3)
    policies, plans = populations_of(game, sizes)
    others = random.dirichlet(np.ones(np.prod(np.delete(sizes, player)))).reshape(np.delete(sizes, player))
    actions = payoffs.shape[1 + player]
    values = np.zeros(actions)
    for action in range(actions):
        for choice in np.ndindex(*others.shape):
            numbers = list(choice)
            numbers.insert(player, 0)
            played = [policies[i][number] for i, number in enumerate(numbers)]
            played[player] = np.eye(game.actions)[None, action]
            values[action] += others[choice] * expected_returns(game, played)[player]
    found = best_response_to_joint(game, player, plans, others)
    assert found.value == pytest.approx(values.max(), abs=1e-12)
    assert found.policy[0].argmax() == values.argmax()


def test_cells_of_policies_that_do_not_exist_are_refused():
    _, plans = populations_of(GAMES["kuhn_poker"], (2, 2))
    with pytest.raises(ValueError, match=r"plans of \(2, 2\) policies for cells up to \[0 2\]"):
        exact_cells(GAMES["kuhn_poker"], plans, [(0, 2)], (0, 1))
