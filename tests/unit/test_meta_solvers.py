"""Meta-solvers against closed forms, brute force, SciPy's general optimizers and OpenSpiel."""

import importlib
import itertools
import subprocess
import sys
import types
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.optimize import minimize

from marl_hpc.config import ConfigError
from marl_hpc.meta_solvers import META_SOLVERS, cce_gap, ce_gap, expected_payoffs, nash_gap, resolve
from marl_hpc.meta_solvers.alpha_rank import alpha_rank
from marl_hpc.meta_solvers.correlated import coarse_correlated_equilibrium, correlated_equilibrium
from marl_hpc.meta_solvers.dynamics import fictitious_play, project, projected_replicator_dynamics, regret_matching, uniform
from marl_hpc.meta_solvers.normal_form import correlated, independent, product
from marl_hpc.meta_solvers.zero_sum import minimax, nash, rectified_nash
from marl_hpc.testing import ContractError, meta_solver_contract

RPS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
CHICKEN = np.array([[[0, 7], [2, 6]], [[0, 2], [7, 6]]], float)  # dare, chicken
SEXES = np.array([[[3, 0], [0, 2]], [[2, 0], [0, 3]]], float)
MAJORITY = np.zeros((3, 2, 2, 2))  # who is in the majority gets 1
for choice in np.ndindex(2, 2, 2):
    MAJORITY[(slice(None), *choice)] = [vote == (sum(choice) >= 2) for vote in choice]
GAMES = {"chicken": CHICKEN, "battle of the sexes": SEXES, "majority": MAJORITY}
# what each solver's docstring says of random zero-sum games with payoffs of 0 … 1
GAPS = {
    "nash": (nash, 1e-6),
    "rectified_nash": (rectified_nash, 1e-6),
    "fictitious_play": (fictitious_play, 0.03),
    "regret_matching": (regret_matching, 0.003),
    "regret_matching, plain": (lambda payoffs: regret_matching(payoffs, plus=False), 0.01),
    "projected_replicator_dynamics": (projected_replicator_dynamics, 0.03),
    "coarse_correlated_equilibrium": (coarse_correlated_equilibrium, 1e-6),
    "coarse_correlated_equilibrium, welfare": (lambda payoffs: coarse_correlated_equilibrium(payoffs, selection="welfare"), 1e-6),
}


def zero_sum(matrix):
    return np.stack([matrix, -matrix])


def random_game(*shape, seed=0):
    return np.random.default_rng(seed).random((len(shape), *shape))


@pytest.mark.parametrize("name", GAPS)
def test_gap_on_random_zero_sum_games_is_what_the_docstring_says(name):
    solver, gap = GAPS[name]
    for size, seed in ((50, 0), (50, 1), (3, 2), (10, 3)):
        matrix = np.random.default_rng(seed).random((size, size))
        found = solver(zero_sum(matrix))
        *_, value = minimax(matrix)
        assert nash_gap(zero_sum(matrix), found.mixtures) <= gap
        assert expected_payoffs(zero_sum(matrix), product(found.mixtures))[0] == pytest.approx(value, abs=gap)


@pytest.mark.parametrize("selection", ["entropy", "welfare"])
def test_correlated_equilibria_of_zero_sum_games_are_nash_equilibria(selection):
    matrix = np.random.default_rng(1).random((12, 12))
    found = correlated_equilibrium(zero_sum(matrix), selection=selection)
    assert ce_gap(zero_sum(matrix), found.joint) <= 1e-6
    assert nash_gap(zero_sum(matrix), found.mixtures) <= 1e-5


def test_minimax_of_a_two_by_two_game_is_the_closed_form():
    a, b, c, d = 3.0, -1.0, -2.0, 4.0
    row, column, value = minimax(np.array([[a, b], [c, d]]))
    total = a + d - b - c
    np.testing.assert_allclose(row, [(d - c) / total, (a - b) / total], atol=1e-9)
    np.testing.assert_allclose(column, [(d - b) / total, (a - c) / total], atol=1e-9)
    assert value == pytest.approx((a * d - b * c) / total)


@pytest.mark.parametrize("name", META_SOLVERS)
def test_every_solver_mixes_rock_paper_and_scissors_alike(name):
    found = resolve(name)(zero_sum(RPS))
    for mixture in found.mixtures:
        np.testing.assert_allclose(mixture, [1 / 3] * 3, atol=1e-3)


def test_nash_takes_constant_sums_and_refuses_what_it_cannot_solve():
    shifted = zero_sum(RPS) + np.array([2.0, 5.0])[:, None, None]
    np.testing.assert_allclose(nash(shifted).mixtures[0], [1 / 3] * 3, atol=1e-9)
    for solver in (nash, rectified_nash):
        with pytest.raises(ValueError, match=r"payoffs sum to 0 … 12; use coarse_correlated_equilibrium, .*alpha_rank"):
            solver(CHICKEN)
        with pytest.raises(ValueError, match="this one has 3 players; use coarse_correlated_equilibrium"):
            solver(MAJORITY)


def test_nash_solves_games_without_anything_to_gain_or_with_one_strategy():
    assert nash_gap(np.zeros((2, 3, 4)), nash(np.zeros((2, 3, 4))).mixtures) == 0
    found = nash(zero_sum(np.array([[3.0, -7.0, 2.0]])))
    assert [mixture.tolist() for mixture in found.mixtures] == [[1.0], [0.0, 1.0, 0.0]]


def test_rectified_nash_trains_each_strategy_against_those_it_beats_or_ties():
    found = rectified_nash(zero_sum(RPS))
    np.testing.assert_allclose(found.opponents[0], [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]], atol=1e-9)
    np.testing.assert_allclose(found.opponents[1], found.opponents[0], atol=1e-9)
    matrix = np.random.default_rng(3).random((8, 8))
    skew = zero_sum(matrix - matrix.T)
    found = rectified_nash(skew)
    played = np.flatnonzero(found.mixtures[0])
    assert len(found.opponents[0]) == len(played) < 8
    for own, target in zip(played, found.opponents[0], strict=True):
        expected = found.mixtures[1] * (skew[0, own] >= -1e-9)  # the value of a symmetric game is 0
        np.testing.assert_allclose(target, expected / expected.sum(), atol=1e-9)


def test_fictitious_play_is_the_average_of_best_responses():
    payoffs = random_game(4, 3)
    counts, average = [np.zeros(4), np.zeros(3)], [np.full(4, 1 / 4), np.full(3, 1 / 3)]
    for t in range(1, 51):
        best = [np.argmax(payoffs[0] @ average[1]), np.argmax(average[0] @ payoffs[1])]
        for i in range(2):
            counts[i][best[i]] += 1
            average[i] = counts[i] / t
    found = fictitious_play(payoffs, iterations=50)
    for mixture, expected in zip(found.mixtures, average, strict=True):
        np.testing.assert_allclose(mixture, expected, atol=1e-12)


def test_fictitious_play_of_three_players_answers_the_product_of_averages():
    best = np.zeros((3, 2, 2, 2))
    best[:, 1, 1, 1] = 1.0  # coordinating pays everybody
    found = fictitious_play(best, iterations=10)
    assert [mixture.tolist() for mixture in found.mixtures] == [[0.0, 1.0]] * 3


def test_regret_matching_follows_a_plain_loop():
    payoffs = random_game(2, 3, 2, seed=4)
    scaled = np.stack([(own - own.min()) / np.ptp(own) for own in payoffs])
    for plus in (False, True):
        regrets, joint = [np.zeros(2), np.zeros(3), np.zeros(2)], np.zeros((2, 3, 2))
        for t in range(1, 31):
            mixtures = [
                np.maximum(r, 0) / np.maximum(r, 0).sum() if (r > 0).any() else np.full(len(r), 1 / len(r)) for r in regrets
            ]
            played = np.einsum("a,b,c->abc", *mixtures)
            joint += (t if plus else 1) * played
            for i in range(3):
                for s in range(len(regrets[i])):
                    instead = [np.eye(len(m))[s] if j == i else m for j, m in enumerate(mixtures)]
                    regrets[i][s] += (scaled[i] * (np.einsum("a,b,c->abc", *instead) - played)).sum()
                if plus:
                    regrets[i] = np.maximum(regrets[i], 0)
        np.testing.assert_allclose(regret_matching(payoffs, iterations=30, plus=plus).joint, joint / joint.sum(), atol=1e-12)


def test_regret_matching_approaches_coarse_correlated_equilibria_of_general_games():
    for payoffs in (*GAMES.values(), random_game(4, 5, 3, seed=2)):
        for plus in (False, True):
            gaps = [cce_gap(payoffs, regret_matching(payoffs, iterations=n, plus=plus).joint) for n in (30, 3000)]
            assert gaps[1] <= 0.02 * np.ptp(payoffs)
            assert gaps[1] <= gaps[0]


def test_projected_replicator_dynamics_takes_the_papers_steps():
    payoffs = random_game(3, 2, seed=5)
    scaled = np.stack([(own - own.min()) / np.ptp(own) for own in payoffs])
    x, y = np.full(3, 1 / 3), np.full(2, 1 / 2)
    xs, ys = [], []
    for _ in range(20):
        xs.append(x)
        ys.append(y)
        ux, uy = scaled[0] @ y, x @ scaled[1]
        dx, dy = x * (ux - x @ ux), y * (uy - y @ uy)
        x, y = nearest(x + 0.5 * dx, 0.3 / 3), nearest(y + 0.5 * dy, 0.3 / 2)
    found = projected_replicator_dynamics(payoffs, iterations=20, step=0.5, exploration=0.3)
    np.testing.assert_allclose(found.mixtures[0], np.mean(xs, 0), atol=1e-5)
    np.testing.assert_allclose(found.mixtures[1], np.mean(ys, 0), atol=1e-5)


def nearest(point, floor):
    """The projection by a general optimizer."""
    start = np.full(len(point), 1 / len(point))
    sums = {"type": "eq", "fun": lambda x: x.sum() - 1}
    found = minimize(
        lambda x: ((x - point) ** 2).sum(), start, bounds=[(floor, 1)] * len(point), constraints=[sums], options={"ftol": 1e-14}
    )
    return found.x


def test_projection_is_the_nearest_mixture_above_the_floor():
    random = np.random.default_rng(0)
    for size in (1, 2, 5):
        for floor in (0.0, 0.05, 1 / size):
            point = random.normal(size=size)
            found = project(point, floor)
            assert found.sum() == pytest.approx(1)
            assert found.min() >= floor - 1e-15
            np.testing.assert_allclose(found, nearest(point, floor), atol=1e-5)


def test_exploration_keeps_dominated_strategies_alive():
    dominated = np.array([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    kept = projected_replicator_dynamics(dominated, iterations=2000, step=0.5, exploration=0.2).mixtures[0][1]
    assert 0.1 <= kept <= 0.11  # half of 0.2, and the time that the way there took
    assert projected_replicator_dynamics(dominated, iterations=2000, step=0.5, exploration=0.0).mixtures[0][1] < 0.01


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("selection", ["entropy", "welfare"])
def test_equilibrium_constraints_hold(game, selection):
    payoffs = GAMES[game]
    found = correlated_equilibrium(payoffs, selection=selection)
    coarse = coarse_correlated_equilibrium(payoffs, selection=selection)
    assert ce_gap(payoffs, found.joint) <= 1e-6
    assert cce_gap(payoffs, coarse.joint) <= 1e-6
    for i in range(len(payoffs)):  # the definition, inequality by inequality
        for told in range(2):
            rows = np.take(payoffs[i], told, i), np.take(payoffs[i], 1 - told, i)
            assert (np.take(found.joint, told, i) * (rows[1] - rows[0])).sum() <= 1e-6
            instead = (np.take(payoffs[i], told, i) * coarse.joint.sum(i)).sum()
            assert instead <= (payoffs[i] * coarse.joint).sum() + 1e-6


def test_equilibria_of_a_50_by_50_game_leave_no_gains():
    payoffs = random_game(50, 50, seed=1)
    found = correlated_equilibrium(payoffs, selection="welfare")
    best, spread = (coarse_correlated_equilibrium(payoffs, selection=selection) for selection in ("welfare", "entropy"))
    assert ce_gap(payoffs, found.joint) <= 1e-6
    welfare = [expected_payoffs(payoffs, x.joint).sum() for x in (spread, found, best)]
    assert welfare == sorted(welfare)  # every correlated equilibrium is a coarse one
    for x in (best, spread):
        assert cce_gap(payoffs, x.joint) <= 1e-6
    entropies = [-(x.joint * np.log(np.maximum(x.joint, 1e-300))).sum() for x in (best, spread)]
    assert entropies[0] < entropies[1] <= np.log(2500)


def test_best_correlated_equilibrium_of_chicken_is_the_textbooks():
    found = correlated_equilibrium(CHICKEN, selection="welfare")
    np.testing.assert_allclose(found.joint, [[0, 0.25], [0.25, 0.5]], atol=1e-6)  # Aumann 1974: 5.25 each
    np.testing.assert_allclose(expected_payoffs(CHICKEN, found.joint), [5.25, 5.25], atol=1e-6)
    # who is told to dare knows that the other yields; who yields faces daring once in three times
    np.testing.assert_allclose(found.opponents[0], [[0, 1], [1 / 3, 2 / 3]], atol=1e-6)
    assert coarse_correlated_equilibrium(CHICKEN, selection="welfare").opponents[0].shape == (1, 2)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("payoffs", [CHICKEN, SEXES, random_game(3, 3, seed=7), random_game(2, 2, 3, seed=8)])
def test_most_random_equilibrium_is_the_one_that_a_general_optimizer_finds(payoffs, told):
    solver, gap = (correlated_equilibrium, ce_gap) if told else (coarse_correlated_equilibrium, cce_gap)
    shape, rows = payoffs.shape[1:], []
    for i in range(len(shape)):
        for s, instead in itertools.product(range(shape[i]), repeat=2):
            gain = np.take(payoffs[i], [instead] * shape[i], i) - payoffs[i]
            if told:
                gain = gain * (np.indices(shape)[i] == s)
            rows.append(gain.ravel())
    rows = np.array(rows)
    constraints = [{"type": "eq", "fun": lambda x: x.sum() - 1}, {"type": "ineq", "fun": lambda x: -rows @ x}]
    size = payoffs[0].size
    options = {"ftol": 1e-13, "maxiter": 1000}
    oracle = minimize(
        lambda x: (x * np.log(x)).sum(),
        np.full(size, 1 / size),
        bounds=[(1e-12, 1)] * size,
        constraints=constraints,
        options=options,
    )
    found = solver(payoffs)
    assert gap(payoffs, found.joint) <= 1e-6
    np.testing.assert_allclose(found.joint.ravel(), oracle.x, atol=2e-3)
    assert -(found.joint * np.log(found.joint)).sum() >= -oracle.fun - 1e-5


def test_a_larger_tolerance_of_equilibria_allows_more_entropy():
    joints = [correlated_equilibrium(random_game(3, 4), tolerance=tolerance).joint for tolerance in (1e-8, 1e-3)]
    entropies = [-(joint * np.log(joint, where=joint > 0, out=np.zeros_like(joint))).sum() for joint in joints]
    assert entropies[1] > entropies[0] + 1e-4


def test_equilibria_of_games_in_which_nothing_matters_are_uniform():
    for solver in (correlated_equilibrium, coarse_correlated_equilibrium):
        np.testing.assert_allclose(solver(np.ones((2, 2, 3))).joint, np.full((2, 3), 1 / 6))


def test_alpha_rank_is_open_spiels(monkeypatch):
    stub = types.ModuleType("matplotlib")  # its α-Rank imports plots, which aren't drawn here
    for name in ("", ".patches", ".patheffects", ".pyplot"):
        monkeypatch.setitem(sys.modules, "matplotlib" + name, stub)
    stub.patches = stub.patheffects = stub.pyplot = stub
    theirs = importlib.import_module("open_spiel.python.egt.alpharank")
    for payoffs in (random_game(3, 4), random_game(2, 3, 2, seed=1), 0.1 * CHICKEN, 0.1 * SEXES):
        *_, expected, _, _ = theirs.compute(list(payoffs), m=20, alpha=0.7)
        found = alpha_rank(payoffs, alpha=0.7, population_size=20)
        np.testing.assert_allclose(found.joint.ravel(), expected, atol=1e-9)
    single = np.random.default_rng(2).random((5, 5))
    *_, expected, _, _ = theirs.compute([single], m=20, alpha=0.7)
    found = alpha_rank([single, single.T], alpha=0.7, population_size=20, symmetric=True)
    np.testing.assert_allclose(found.mixtures[0], expected, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.01, 1, 30, 1e3, 1e5])
def test_alpha_rank_stays_exact_for_large_alpha(alpha):
    payoffs = np.array([[0, -2, 1], [2, 0, -3], [-1, 3, 0]], float) / 4
    found = alpha_rank(zero_sum(payoffs), alpha=alpha, population_size=10, symmetric=True).mixtures[0]
    with localcontext() as context:  # closed form for three states: sums over trees, in decimals whose exponents don't end
        context.prec, context.Emin, context.Emax = 40, -(10**15), 10**15

        def rate(old, new):
            x = Decimal(alpha) * (Decimal(payoffs[new, old]) - Decimal(payoffs[old, new]))
            return (1 - (-x).exp()) / (1 - (-10 * x).exp())

        trees = []
        for root in range(3):
            a, b = (i for i in range(3) if i != root)
            trees.append(rate(a, root) * rate(b, root) + rate(a, b) * rate(b, root) + rate(b, a) * rate(a, root))
        expected = [float(tree / sum(trees)) for tree in trees]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_alpha_rank_of_large_alpha_is_the_sink_of_the_response_graph():
    payoffs = random_game(6, 5, seed=3)
    states = np.arange(30).reshape(6, 5)
    reach = np.eye(30, dtype=bool)
    for i, own in enumerate(payoffs):
        for first, second in itertools.product(np.ndindex(6, 5), repeat=2):
            moved = [k for k in range(2) if first[k] != second[k]]
            if moved == [i] and own[second] > own[first]:
                reach[states[first], states[second]] = True
    for _ in range(5):
        reach = reach @ reach
    sink = np.array([all(reach[other, s] for other in np.flatnonzero(reach[s])) for s in range(30)])
    joint = alpha_rank(payoffs, alpha=1e6).joint.ravel()
    assert joint[sink].sum() == pytest.approx(1, abs=1e-9)
    assert 0 < sink.sum() < 30


def test_symmetric_alpha_rank_refuses_a_game_that_is_not():
    with pytest.raises(ValueError, match="symmetric=True needs"):
        alpha_rank(CHICKEN + np.array([0.0, 1.0])[:, None, None] * CHICKEN, symmetric=True)
    with pytest.raises(ValueError, match="symmetric=True needs"):
        alpha_rank(random_game(2, 3), symmetric=True)


def test_gaps_are_what_trying_every_deviation_finds():
    payoffs = random_game(3, 2, 3, seed=9)
    joint = np.random.default_rng(10).dirichlet(np.ones(18)).reshape(3, 2, 3)
    coarse = swap = 0.0
    for i, size in enumerate(payoffs.shape[1:]):
        now = (payoffs[i] * joint).sum()

        def after(change, i=i):
            return sum(joint[s] * payoffs[(i, *s[:i], change[s[i]], *s[i + 1 :])] for s in np.ndindex(3, 2, 3))

        coarse += max(0.0, max(after([s] * size) - now for s in range(size)))
        swap += max(after(change) - now for change in itertools.product(range(size), repeat=size))
    assert cce_gap(payoffs, joint) == pytest.approx(coarse)
    assert ce_gap(payoffs, joint) == pytest.approx(swap)
    assert swap > coarse > 0
    mixtures = correlated(joint).mixtures
    assert nash_gap(payoffs, mixtures) == pytest.approx(cce_gap(payoffs, product(mixtures)))


def test_one_result_serves_independent_and_correlated_players():
    free = independent([np.array([0.2, 0.8]), np.array([0.5, 0.25, 0.25]), np.array([1.0])])
    again = correlated(free.joint)
    for one, other in zip((*free.mixtures, *free.opponents), (*again.mixtures, *again.opponents), strict=True):
        np.testing.assert_allclose(one, other)
    assert [targets.shape for targets in free.opponents] == [(1, 3, 1), (1, 2, 1), (1, 2, 3)]
    told = correlated(np.array([[0.0, 0.5], [0.0, 0.5]]), told=True)
    assert told.opponents[0].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert told.opponents[1].tolist() == [[0.5, 0.5]]  # the second player is never told its first strategy


@pytest.mark.parametrize("name", META_SOLVERS)
def test_solvers_keep_the_contract(name):
    quick = name in ("fictitious_play", "regret_matching", "projected_replicator_dynamics")
    options = {"iterations": 300} if quick else {}
    gaps = {"nash": 1e-6, "rectified_nash": 1e-6, "coarse_correlated_equilibrium": 1e-6, "correlated_equilibrium": 1e-5}
    gap = 0.5 if quick else gaps.get(name)
    meta_solver_contract(lambda payoffs: resolve(name)(payoffs, **options), gap=gap, affine=name != "alpha_rank")


def test_welfare_equilibria_keep_the_contract():
    meta_solver_contract(lambda payoffs: correlated_equilibrium(payoffs, selection="welfare"), gap=1e-5)


def skewed(payoffs):
    found = uniform(payoffs)
    return independent([np.arange(len(mixture)) + 1.0 for mixture in found.mixtures])


def first(payoffs):
    return independent([np.eye(len(mixture))[0] for mixture in uniform(payoffs).mixtures])


def changing(payoffs):
    uniform(payoffs)
    payoffs += 1.0
    return uniform(payoffs)


def by_unit(payoffs):
    found = uniform(payoffs)
    weights = [np.exp(np.moveaxis(own, i, 0).reshape(len(mixture), -1).mean(1))
               for i, (own, mixture) in enumerate(zip(np.asarray(payoffs), found.mixtures, strict=True))]  # fmt: skip
    return independent([w / w.sum() for w in weights])


def unchecked(payoffs):
    return independent([np.full(size, 1 / size) for size in np.nan_to_num(np.asarray(payoffs)).shape[1:]])


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        (skewed, "sums to"),
        (first, "in another order"),
        (changing, "wrote into the payoffs"),
        (by_unit, "times 4"),
        (unchecked, "expected a ValueError"),
        (lambda payoffs: list(uniform(payoffs).mixtures), "expected a MetaStrategy"),
        (lambda payoffs: uniform(payoffs)._replace(opponents=()), "0 opponents for 2 players"),
        (lambda payoffs: uniform(payoffs)._replace(joint=first(payoffs).joint), "isn't the marginal"),
        (uniform, "nash_gap is"),
        (lambda payoffs: nash(np.full((3, 2, 2, 2), np.nan)), "refuses every game"),
    ],
)
def test_contract_says_what_is_wrong_with_a_solver(solver, says):
    with pytest.raises(ContractError, match=says):
        meta_solver_contract(solver, gap=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: uniform([[1, 2], [3, 4]]), r"shape \(2, 2\); expected \[players, "),
        (lambda: uniform([[["a"]]]), "no array of numbers"),
        (lambda: uniform(np.array([[[0, 1], [2, np.nan]]] * 2)), r"2 of 8 payoffs aren't finite, the first at \(0, 1, 1\)"),
        (lambda: nash_gap(CHICKEN, [[0.5, 0.5]]), "expected one for each player"),
        (lambda: nash_gap(CHICKEN, [[0.5, 0.5], [0.9, 0.9]]), "mixture of player 1 sums to 1.8"),
        (lambda: ce_gap(CHICKEN, [0.5, 0.5]), "expected \\(2, 2\\)"),
        (lambda: cce_gap(CHICKEN, [[1.5, -0.5], [0, 0]]), "its smallest entry is -0.5"),
        (lambda: fictitious_play(CHICKEN, iterations=0), "iterations=0; expected 1 or more"),
        (lambda: regret_matching(CHICKEN, iterations=0), "iterations=0; expected 1 or more"),
        (lambda: projected_replicator_dynamics(CHICKEN, step=0.0), "step must be positive"),
        (lambda: projected_replicator_dynamics(CHICKEN, exploration=2.0), "exploration 0 … 1"),
        (lambda: alpha_rank(CHICKEN, alpha=float("inf")), "expected a finite alpha"),
        (lambda: correlated_equilibrium(CHICKEN, selection="best"), "selection='best' is not a choice; entropy or welfare"),
        (lambda: correlated_equilibrium(CHICKEN, tolerance=0.0), "between 1e-10 and 0.1"),
    ],
)
def test_bad_input_is_refused_at_once(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_solvers_are_found_by_name_or_by_import(monkeypatch):
    assert all(callable(resolve(name)) for name in META_SOLVERS)
    assert resolve("marl_hpc.meta_solvers.dynamics:uniform") is uniform
    monkeypatch.setitem(META_SOLVERS, "mine", uniform)
    assert resolve("mine") is uniform
    with pytest.raises(ConfigError, match="unknown meta-solver 'nahs'; did you mean 'nash'"):
        resolve("nahs")
    with pytest.raises(ConfigError, match="could not be imported"):
        resolve("marl_hpc.nowhere:solver")


def test_importing_meta_solvers_imports_neither_scipy_nor_torch():
    check = (
        "import sys, marl_hpc.meta_solvers as m, marl_hpc.meta_solvers.zero_sum; m.resolve('correlated_equilibrium');"
        "sys.exit(any(name in sys.modules for name in ('scipy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0
