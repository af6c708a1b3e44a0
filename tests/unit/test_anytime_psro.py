"""Anytime PSRO: exploitability that never rises, and restricted mixtures against a linear program."""

import itertools

import numpy as np
import pyspiel
import pytest

from marl_hpc.games import compile_game, matrix_game, realization_plan, to_openspiel
from marl_hpc.meta_solvers.zero_sum import minimax
from marl_hpc.populations import MemoryValues, PolicyPopulation, anytime_psro, least_exploitable, psro

KUHN, LEDUC = compile_game("kuhn_poker"), compile_game("leduc_poker")
ROUNDING = 1e-12


def curve(iterations):
    return [record.nash_conv for record in iterations]


@pytest.mark.parametrize(("game", "iterations", "ends"), [(KUHN, 20, 0.03), (LEDUC, 20, 3.0)], ids=["kuhn_poker", "leduc_poker"])
def test_nash_conv_never_rises(game, iterations, ends):
    values = curve(anytime_psro(game, iterations=iterations, regret_steps=60, start="random", seed=3))
    assert (np.diff(values) <= ROUNDING).all()
    assert values[-1] < ends


def test_a_double_oracle_rises_where_the_anytime_curve_does_not():
    assert (np.diff(curve(psro(KUHN))) > 0.1).any()
    assert (np.diff(curve(anytime_psro(KUHN, iterations=8))) <= ROUNDING).all()


@pytest.mark.parametrize("player", [0, 1])
def test_a_restricted_mixture_is_that_of_the_linear_program(player):
    payoffs = np.random.default_rng(player).normal(size=(5, 6))
    game = matrix_game([payoffs, 2 - payoffs])  # constant sum
    own = np.delete(np.eye(payoffs.shape[player]), [1, 3], 0)  # some of the player's pure strategies are missing
    plans = realization_plan(game, player, np.pad(own, ((0, 0), (0, game.actions - own.shape[1])))[:, None])
    mine = payoffs[[0, 2, 4]] if player == 0 else 2 - payoffs.T[[0, 2, 4, 5]]
    best, _, value = minimax(mine)
    found = least_exploitable(game, player, plans, np.eye(len(plans))[0], steps=5000)
    assert found.value == pytest.approx(2 - value, abs=0.01)
    assert found.bound <= 2 - value + 1e-9 <= found.value + 2e-9
    np.testing.assert_allclose(found.mixture, best, atol=0.03)


def test_a_mixture_is_never_given_up_for_a_worse_one():
    game = matrix_game(np.array([[[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], [[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]]]))
    plans = realization_plan(game, 0, np.eye(3)[:, None])
    found = least_exploitable(game, 0, plans, np.full(3, 1 / 3), steps=3)
    assert found.value == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(found.mixture, 1 / 3)


def test_records_agree_with_open_spiel():
    for record in anytime_psro(KUHN, iterations=6, regret_steps=30):
        theirs = pyspiel.nash_conv(pyspiel.load_game("kuhn_poker"), pyspiel.TabularPolicy(to_openspiel(KUHN, record.policies)))
        assert record.nash_conv == pytest.approx(theirs, abs=1e-9)
        assert record.gains.sum() == pytest.approx(theirs, abs=1e-9)
        assert record.gap >= -ROUNDING


def test_a_loop_goes_on_from_population_and_mixtures():
    values = MemoryValues()
    expected = list(anytime_psro(KUHN, iterations=8))
    population = PolicyPopulation((0, 1), values)
    first = list(itertools.islice(anytime_psro(KUHN, iterations=8, population=population), 3))
    resumed = PolicyPopulation((0, 1), values)
    resumed.load_state(population.state())
    rest = list(anytime_psro(KUHN, iterations=8, population=resumed, mixtures=first[-1].meta.mixtures))
    assert [(record.number, record.nash_conv) for record in first + rest] == [
        (record.number, record.nash_conv) for record in expected
    ]


@pytest.mark.parametrize(
    ("game", "options", "message"),
    [
        (matrix_game(np.ones((2, 2, 2)) * np.arange(2.0)), {}, "isn't a two-player zero-sum game"),
        (compile_game("kuhn_poker(players=3)"), {}, "isn't a two-player zero-sum game"),
        (KUHN, {"regret_steps": 0}, "1 or more of each"),
        (KUHN, {"mixtures": [np.ones(2) / 2, np.ones(1)]}, "mixture of player 0 has shape"),
        (KUHN, {"start": "greedy"}, "not a choice"),
    ],
)
def test_what_cannot_be_is_refused_at_once(game, options, message):
    with pytest.raises(ValueError, match=message):
        anytime_psro(game, **options)
