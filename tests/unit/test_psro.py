"""PSRO with exact oracles: known numbers of known games, OpenSpiel's NashConv as the judge, and going on after a kill."""

import functools
import itertools

import numpy as np
import pyspiel
import pytest
import scipy.optimize  # noqa: F401 - imported before CPU seconds are counted

from marl_hpc.games import compile_game, matrix_game, nash_conv, to_openspiel
from marl_hpc.meta_solvers import cce_gap, nash_gap, resolve
from marl_hpc.populations import (
    MemoryValues,
    PayoffTable,
    PolicyId,
    PolicyPopulation,
    fictitious_self_play,
    latest,
    psro,
    self_play,
    start_policy,
)

KUHN, LEDUC = compile_game("kuhn_poker"), compile_game("leduc_poker")
RPS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
ROCK_PAPER_SCISSORS = matrix_game([RPS, -RPS])


def last(iterations):
    *_, final = iterations
    return final


def judged(name, game, policies):
    """OpenSpiel's NashConv of exported policies."""
    return pyspiel.nash_conv(pyspiel.load_game(name), pyspiel.TabularPolicy(to_openspiel(game, policies)))


@pytest.mark.parametrize("start", ["pure", "uniform", "random"])
def test_kuhn_poker_is_solved_within_12_iterations_and_says_so(start):
    records = list(psro(KUHN, start=start, iterations=12, seed=1))
    assert records[-1].converged
    assert [record.converged for record in records[:-1]] == [False] * (len(records) - 1)
    assert records[-1].nash_conv <= 1e-6
    assert judged("kuhn_poker", KUHN, records[-1].policies) <= 1e-6
    assert sum(record.cpu_s for record in records) < 1.0


def test_leduc_poker_comes_below_half_and_then_below_a_fifth():
    spent, half = 0.0, None
    for record in psro(LEDUC, iterations=200):
        spent += record.cpu_s
        if half is None and record.nash_conv < 0.5:
            half = record.number, spent
        if record.nash_conv < 0.2:
            break
    assert half is not None
    assert half[0] < 100
    assert half[1] < 20.0
    assert record.nash_conv < 0.2
    assert spent < 60.0
    assert judged("leduc_poker", LEDUC, record.policies) == pytest.approx(record.nash_conv, abs=1e-9)


def test_psro_finds_all_of_rock_paper_scissors_from_pure_rock():
    records = list(psro(ROCK_PAPER_SCISSORS))
    assert len(records) <= 4
    assert records[0].policies[0].tolist() == [[1, 0, 0]]
    assert records[-1].sizes == (3, 3)
    assert records[-1].converged
    assert nash_gap([RPS, -RPS], [policy[0] for policy in records[-1].policies]) < 1e-6


def test_self_play_cycles_through_rock_paper_scissors_for_ever():
    played = [record.policies[0][0].argmax() for record in self_play(ROCK_PAPER_SCISSORS, iterations=9)]
    assert played == [0, 1, 2] * 3
    assert all(record.nash_conv == 2 and not record.converged for record in self_play(ROCK_PAPER_SCISSORS, iterations=9))


def test_fictitious_self_play_is_browns_recursion():
    counts, expected = [np.eye(3)[0], np.eye(3)[0]], []
    for _ in range(30):
        expected.append([count / count.sum() for count in counts])
        counts = [
            count + np.eye(3)[(other @ RPS.T).round(12).argmax()]
            for count, other in zip(counts, reversed(expected[-1]), strict=True)
        ]
    records = list(fictitious_self_play(ROCK_PAPER_SCISSORS, iterations=30))
    for record, mixtures in zip(records, expected, strict=True):
        np.testing.assert_allclose([policy[0] for policy in record.policies], mixtures, atol=1e-12)


def test_fictitious_self_play_approaches_equilibrium_in_kuhn_poker():
    assert last(fictitious_self_play(KUHN, iterations=150)).nash_conv < 0.1


@pytest.mark.parametrize("solver", ["nash", "rectified_nash", "regret_matching", "projected_replicator_dynamics"])
def test_records_say_what_they_mean(solver):
    population, table = PolicyPopulation((0, 1)), PayoffTable((0, 1))
    solver = resolve(solver) if "nash" in solver else functools.partial(resolve(solver), iterations=500)
    for record in psro(KUHN, meta_solver=solver, iterations=5, population=population, table=table):
        sizes = record.sizes
        restricted = table.payoffs()[:, : sizes[0], : sizes[1]]
        assert record.nash_conv == pytest.approx(judged("kuhn_poker", KUHN, record.policies), abs=1e-9)
        assert record.nash_conv == pytest.approx(nash_conv(KUHN, record.policies), abs=1e-12)
        assert record.gap == pytest.approx(cce_gap(restricted, record.meta.joint), abs=1e-12)
        assert record.gains.sum() >= record.gap - 1e-9
        assert population.sizes == tuple(size + sum(name.population == i for name in record.added) for i, size in enumerate(sizes))
        assert all(population.member(name).iteration == record.number + 1 for name in record.added)


def test_rectified_psro_solves_rock_paper_scissors():
    assert last(psro(ROCK_PAPER_SCISSORS, meta_solver="rectified_nash")).converged


def test_a_policy_that_plays_as_another_is_not_added_again():
    population = PolicyPopulation((0, 1))
    list(psro(KUHN, population=population))
    for player in range(2):
        policies = [population.values(member.id).tobytes() for member in population.members(player)]
        assert len(set(policies)) == len(policies)


def test_a_loop_that_adds_nothing_ends_without_calling_it_converged():
    records = list(psro(ROCK_PAPER_SCISSORS, meta_solver=latest))
    assert records[-1].number == 2
    assert records[-1].added == ()
    assert not records[-1].converged


@pytest.mark.parametrize("solver", ["coarse_correlated_equilibrium", "correlated_equilibrium"])
def test_general_sums_and_three_players_converge_to_correlated_equilibria_of_the_whole_game(solver):
    payoffs = np.random.default_rng(3).normal(size=(3, 3, 4, 2))
    game = matrix_game(payoffs)
    record = last(psro(game, meta_solver=solver, iterations=30))
    assert record.converged
    # the joint distribution over populations as one over actions
    population = PolicyPopulation((0, 1, 2))
    record = last(psro(game, meta_solver=solver, iterations=30, population=population))
    joint = np.zeros((3, 4, 2))
    for cell in itertools.product(*map(range, record.sizes)):
        actions = tuple(int(population.values(PolicyId(i, number))[0].argmax()) for i, number in enumerate(cell))
        joint[actions] += record.meta.joint[cell]
    assert cce_gap(payoffs, joint) < 1e-5


def test_three_player_kuhn_poker_converges_by_coarse_correlation():
    solver = functools.partial(resolve("regret_matching"), iterations=1000)
    first, *_, final = psro(compile_game("kuhn_poker(players=3)"), meta_solver=solver, iterations=10)
    assert final.gains.sum() < 0.3 * first.gains.sum()


def test_the_linear_program_refuses_three_players_and_says_what_works():
    with pytest.raises(ValueError, match=r"3 players; use coarse_correlated_equilibrium"):
        list(psro(compile_game("kuhn_poker(players=3)")))


def test_killed_and_resumed_from_its_state_everything_is_the_same():
    values, uninterrupted = MemoryValues(), (PolicyPopulation((0, 1)), PayoffTable((0, 1)))
    expected = list(psro(KUHN, population=uninterrupted[0], table=uninterrupted[1]))
    population, table = PolicyPopulation((0, 1), values), PayoffTable((0, 1))
    first = list(itertools.islice(psro(KUHN, population=population, table=table), 3))
    resumed, refilled = PolicyPopulation((0, 1), values), PayoffTable((0, 1))
    resumed.load_state(population.state())
    refilled.load_state(table.state())
    rest = list(psro(KUHN, population=resumed, table=refilled))
    assert [record.number for record in first + rest] == [record.number for record in expected]
    assert [record.nash_conv for record in first + rest] == [record.nash_conv for record in expected]
    assert list(resumed) == list(uninterrupted[0])
    np.testing.assert_array_equal(refilled.payoffs(), uninterrupted[1].payoffs())


def test_random_starts_are_pure_and_follow_the_seed():
    policies = [start_policy(LEDUC, 0, "random", seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(policies[0], policies[1])
    assert (policies[0] != policies[2]).any()
    assert set(np.unique(policies[0])) == {0, 1}
    assert not policies[0][~LEDUC.legal[0]].any()


def test_how_a_population_started_is_in_its_lineage():
    population = PolicyPopulation((0, 1))
    list(psro(KUHN, start="uniform", iterations=2, population=population))
    assert [member.made_by for member in population.members(1)] == ["start: uniform", *["exact best response"] * 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "unifrom"}, "start='unifrom' is not a choice"),
        ({"iterations": 0}, "1 or more iterations"),
        ({"population": PolicyPopulation((0, 0))}, r"need one a player, \(0, 1\)"),
        ({"table": PayoffTable((0, 0))}, r"the table is of populations \(0, 0\)"),
        ({"meta_solver": "nsah"}, "did you mean 'nash'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(options, message):
    with pytest.raises(ValueError, match=message):
        psro(KUHN, **options)
