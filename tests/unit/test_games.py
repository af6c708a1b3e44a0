"""Compiled games against OpenSpiel's own code, brute force, and what theory says."""

import itertools
import json
import sys
import time

import numpy as np
import pyspiel
import pytest

from marl_hpc.games import (
    CHANCE,
    TERMINAL,
    Copies,
    behavior_policy,
    best_response,
    best_response_to,
    compile_game,
    expected_returns,
    exploitability,
    from_openspiel,
    matrix_game,
    mixture_policy,
    nash_conv,
    reach_probabilities,
    realization_plan,
    sequence_returns,
    to_openspiel,
    uniform_policy,
)
from marl_hpc.games.tree import History, build
from marl_hpc.meta_solvers import nash_gap
from marl_hpc.meta_solvers.zero_sum import nash

NAMES = ("kuhn_poker", "leduc_poker", "kuhn_poker(players=3)", "liars_dice(dice_sides=4)", "tiny_hanabi", "matrix_pd")
UNIFORM = {"kuhn_poker": 0.916667, "leduc_poker": 4.747222, "liars_dice(dice_sides=4)": 1.310119}  # NashConv
COMPILED = {}


def compiled(name):
    if name not in COMPILED:
        COMPILED[name] = compile_game(name)
    return COMPILED[name]


def random_policy(game, player, seed, share_of_zeros=0.0):
    random = np.random.default_rng([seed, player])
    weights = random.exponential(size=game.legal[player].shape) * game.legal[player]
    weights *= random.random(weights.shape) >= share_of_zeros
    weights += game.legal[player] * (weights.sum(1, keepdims=True) == 0)
    return weights / weights.sum(1, keepdims=True)


def random_policies(game, seed, share_of_zeros=0.0):
    return [random_policy(game, player, seed, share_of_zeros) for player in range(game.players)]


def theirs(name, game, policies):
    """(OpenSpiel's game, the same policies as its own)."""
    loaded = pyspiel.load_game(name)
    if loaded.get_type().dynamics == pyspiel.GameType.Dynamics.SIMULTANEOUS:
        loaded = pyspiel.convert_to_turn_based(loaded)
    return loaded, pyspiel.TabularPolicy(to_openspiel(game, policies))


@pytest.mark.parametrize("name", NAMES)
def test_nash_conv_is_open_spiels(name):
    game = compiled(name)
    uniform = [uniform_policy(game, player) for player in range(game.players)]
    if name in UNIFORM:
        assert nash_conv(game, uniform) == pytest.approx(UNIFORM[name], abs=1e-6)
        assert exploitability(game, uniform) == pytest.approx(UNIFORM[name] / 2, abs=1e-6)
    for policies in (uniform, *(random_policies(game, seed, zeros) for seed, zeros in ((0, 0), (1, 0.4), (2, 0.8)))):
        assert nash_conv(game, policies) == pytest.approx(pyspiel.nash_conv(*theirs(name, game, policies)), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_expected_returns_are_open_spiels(name):
    game = compiled(name)
    for seed in range(3):
        policies = random_policies(game, seed, 0.3)
        loaded, policy = theirs(name, game, policies)
        expected = pyspiel.expected_returns(loaded.new_initial_state(), policy, -1, False)
        np.testing.assert_allclose(expected_returns(game, policies), expected, atol=1e-9)


def test_batches_of_policies_are_played_against_one_another_at_once():
    game = compiled("kuhn_poker")
    first, second = (np.stack([random_policy(game, player, seed) for seed in range(4)]) for player in (0, 1))
    table = expected_returns(game, [first[:, None], second[None]])
    assert table.shape == (4, 4, 2)
    for i, j in np.ndindex(4, 4):
        np.testing.assert_allclose(table[i, j], expected_returns(game, [first[i], second[j]]), atol=1e-12)


def test_reach_probabilities_are_products_along_each_history():
    game = compiled("kuhn_poker(players=3)")
    policies = random_policies(game, 0, 0.3)
    reach = reach_probabilities(game, policies)
    assert reach.shape == (4, len(game.player))
    assert reach[:, game.terminal].prod(0).sum() == pytest.approx(1)
    for history in range(len(game.player)):
        expected = np.ones(4)
        at = history
        while at > 0:
            above, move = game.parent[at], game.move[at]
            mover = game.player[above]
            expected[mover] *= game.probability[at] if mover == CHANCE else policies[mover][game.state[above], move]
            at = above
        np.testing.assert_allclose(reach[:, history], expected, atol=1e-12)


@pytest.mark.parametrize("player", [0, 1])
def test_best_response_is_the_best_of_all_pure_policies(player):
    game = compiled("kuhn_poker")
    pure = np.stack([np.eye(2)[list(choice)] for choice in itertools.product((0, 1), repeat=6)])
    for seed in range(5):
        policies = random_policies(game, seed, 0.3)
        policies[player] = pure
        values = expected_returns(game, [p if i == player else p[None] for i, p in enumerate(policies)])[:, player]
        found = best_response(game, player, [p if i != player else uniform_policy(game, player) for i, p in enumerate(policies)])
        assert found.value == pytest.approx(values.max(), abs=1e-12)
        assert np.isin(found.policy, (0, 1)).all()
        best = np.flatnonzero(values >= values.max() - 1e-12)
        assert (found.policy == pure[best]).all((1, 2)).any()


def test_ties_are_broken_to_the_lowest_legal_action_also_where_nothing_leads():
    histories = [History(-1, -1, 1.0, 0, "first", (1, 2, 3), (0, 0))]
    histories += [History(0, action, 1.0, TERMINAL, "", (), (reward, 0.0)) for action, reward in ((1, 0.3), (2, 0.1 * 3))]
    histories += [History(0, 3, 1.0, 1, "other", (0, 1), (0, 0)), History(3, 0, 1.0, TERMINAL, "", (), (0.0, 0.0))]
    histories += [History(3, 1, 1.0, 0, "second", (0, 2), (0, 0))]
    histories += [History(5, action, 1.0, TERMINAL, "", (), (action, 0.0)) for action in (0, 2)]
    game, _ = build("ties", 2, 4, histories)
    assert 0.1 * 3 > 0.3  # by rounding only
    never = best_response(game, 0, [uniform_policy(game, 0), np.array([[1.0, 0, 0, 0]])])
    assert never.policy.argmax(1).tolist() == [1, 0]
    assert never.value == pytest.approx(0.3)
    always = best_response(game, 0, [uniform_policy(game, 0), np.array([[0, 1.0, 0, 0]])])
    assert always.policy.argmax(1).tolist() == [3, 2]
    assert always.value == 2


def test_best_response_answers_any_distribution_over_the_others():
    game = compiled("kuhn_poker(players=3)")
    joint = np.random.default_rng(0).dirichlet(np.ones(4)).reshape(2, 2)  # of two policies of player 1 and two of player 2
    policies = [[random_policy(game, player, seed) for seed in range(2)] for player in range(3)]
    plans = [[realization_plan(game, player, p) for p in policies[player]] for player in range(3)]
    returns = sum(joint[j, k] * sequence_returns(game, 0, [plans[0][0], plans[1][j], plans[2][k]]) for j, k in np.ndindex(2, 2))
    found = best_response_to(game, 0, returns[:, 0])

    def value(policy):
        return sum(joint[j, k] * expected_returns(game, [policy, policies[1][j], policies[2][k]])[0] for j, k in np.ndindex(2, 2))

    assert value(found.policy) == pytest.approx(found.value, abs=1e-12)
    for seed in range(50):
        pure = np.eye(game.actions)[np.random.default_rng(seed).integers(0, 2, game.states(0))]
        assert value(pure) <= found.value + 1e-12


@pytest.mark.parametrize("name", ["leduc_poker", "kuhn_poker(players=3)"])
def test_payoffs_of_one_policy_against_many_are_one_product(name):
    game = compiled(name)
    new = random_policies(game, 0)
    old = np.stack([random_policy(game, 1, seed) for seed in range(1, 6)])
    plans = [realization_plan(game, player, policy) for player, policy in enumerate(new)]
    payoffs = realization_plan(game, 1, old) @ sequence_returns(game, 1, plans)
    for row, policy in zip(payoffs, old, strict=True):
        loaded, table = theirs(name, game, [policy if player == 1 else p for player, p in enumerate(new)])
        np.testing.assert_allclose(row, pyspiel.expected_returns(loaded.new_initial_state(), table, -1, False), atol=1e-9)


def test_policy_of_a_mixture_plays_like_drawing_one_policy_for_the_game():
    game = compiled("leduc_poker")
    policies = np.stack([random_policy(game, 0, seed, 0.5) for seed in range(5)])
    weights = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    mixed = mixture_policy(game, 0, policies, weights)
    averaged = np.tensordot(weights, policies, 1)
    wrong = []
    for seed in range(5):
        other = random_policy(game, 1, 100 + seed)
        expected = weights @ expected_returns(game, [policies, other[None]])
        np.testing.assert_allclose(expected_returns(game, [mixed, other]), expected, atol=1e-12)
        wrong.append(np.abs(expected_returns(game, [averaged, other]) - expected).max())
    assert min(wrong) > 0.005


def test_averaging_action_probabilities_is_not_mixing():
    # two moves in a row: one policy goes on and then takes 2, the other stops, and would take -1 had it gone on
    histories = [
        History(-1, -1, 1.0, 0, "first", (0, 1), (0,)),
        History(0, 0, 1.0, TERMINAL, "", (), (1.0,)),
        History(0, 1, 1.0, 0, "second", (0, 1), (0,)),
        History(2, 0, 1.0, TERMINAL, "", (), (-1.0,)),
        History(2, 1, 1.0, TERMINAL, "", (), (2.0,)),
    ]
    game, _ = build("twice", 1, 2, histories)
    goes, stops = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    mixed = mixture_policy(game, 0, [goes, stops], [0.5, 0.5])
    assert mixed.tolist() == [[0.5, 0.5], [0.0, 1.0]]  # who comes to the second state is the one that goes
    assert expected_returns(game, [mixed]).tolist() == [1.5]
    assert expected_returns(game, [(goes + stops) / 2]).tolist() == [0.75]
    assert mixture_policy(game, 0, [stops], [1.0]).tolist() == stops.tolist()  # where nothing leads, averages


def test_plan_and_policy_say_the_same():
    game = compiled("leduc_poker")
    policy = random_policy(game, 0, 0)
    plan = realization_plan(game, 0, policy)
    np.testing.assert_allclose(behavior_policy(game, 0, plan), policy, atol=1e-12)
    lame = random_policy(game, 0, 1, 0.8)
    again = behavior_policy(game, 0, realization_plan(game, 0, lame))
    np.testing.assert_allclose(realization_plan(game, 0, again), realization_plan(game, 0, lame), atol=1e-12)
    assert not np.array_equal(again, lame)
    np.testing.assert_allclose(again.sum(1), 1)


def double_oracle(game, goal, iterations):
    """(iterations, NashConv) of a population whose payoffs, mixtures and best responses are all exact."""
    plans = [np.empty((0, game.sequences(player))) for player in (0, 1)]
    table = np.empty((0, 0))
    uniform = [uniform_policy(game, player) for player in (0, 1)]
    new = [best_response(game, player, uniform).policy for player in (0, 1)]
    for iteration in range(1, iterations + 1):  # noqa: B007
        added = [realization_plan(game, player, policy) for player, policy in enumerate(new)]
        plans = [np.vstack([old, plan]) for old, plan in zip(plans, added, strict=True)]
        row, column = plans[1] @ sequence_returns(game, 1, added)[:, 0], plans[0] @ sequence_returns(game, 0, added)[:, 0]
        table = np.block([[table, column[:-1, None]], [row[None]]])
        mixtures = nash(np.stack([table, -table])).mixtures
        mixed = [mixture @ plan for mixture, plan in zip(mixtures, plans, strict=True)]
        responses = [best_response_to(game, i, sequence_returns(game, i, mixed)[:, i]) for i in (0, 1)]
        gap = sum(response.value for response in responses)  # of a zero-sum game
        if gap <= goal:
            break
        new = [response.policy for response in responses]
    assert gap == pytest.approx(nash_conv(game, [behavior_policy(game, i, mixed[i]) for i in (0, 1)]), abs=1e-9)
    return iteration, gap


@pytest.mark.parametrize(
    ("name", "goal", "most", "cpu_s"), [("kuhn_poker", 1e-6, 12, 1), ("leduc_poker", 0.5, 100, 20), ("leduc_poker", 0.2, 150, 60)]
)
def test_double_oracle_closes_in_on_equilibrium(name, goal, most, cpu_s):
    game = compiled(name)
    started = time.process_time()
    iterations, gap = double_oracle(game, goal, most)
    assert gap <= goal
    assert iterations <= most
    assert time.process_time() - started <= cpu_s  # measured: 0.01, 0.2 and 0.5


@pytest.mark.parametrize("name", NAMES)
def test_arrays_are_the_games_histories(name):
    game = compiled(name)
    loaded, _ = theirs(name, game, [uniform_policy(game, player) for player in range(game.players)])
    assert np.all(np.diff(game.levels) > 0)
    assert game.levels[-1] == len(game.player)
    assert np.all(game.parent[1:] < np.arange(1, len(game.player)))
    random = np.random.default_rng(0)
    for history in random.integers(0, len(game.player), 50):
        path = [history]
        while path[-1] > 0:
            path.append(game.parent[path[-1]])
        assert game.levels[len(path) - 1] <= history < game.levels[len(path)]
        state = loaded.new_initial_state()
        for at in path[-2::-1]:
            if state.is_chance_node():
                assert dict(state.chance_outcomes())[game.move[at]] == game.probability[at]
            else:
                assert game.probability[at] == 1
                assert game.child[game.parent[at], game.move[at]] == at
            state.apply_action(int(game.move[at]))
        player = game.player[history]
        assert player == (TERMINAL if state.is_terminal() else state.current_player())
        legal = np.flatnonzero(game.child[history] >= 0).tolist()
        assert legal == ([] if player < 0 else state.legal_actions())
        if player >= 0:
            number = game.state[history]
            assert game.state_names[player][number] == state.information_state_string(player)
            assert np.flatnonzero(game.legal[player][number]).tolist() == legal
        if player != CHANCE:
            assert game.returns[history].tolist() == state.returns()


def test_policies_travel_to_open_spiel_and_back_as_json():
    game = compiled("leduc_poker")
    policies = random_policies(game, 0, 0.3)
    table = json.loads(json.dumps(to_openspiel(game, policies)))
    assert len(table) == game.states(0) + game.states(1)
    for one, other in zip(from_openspiel(game, table), policies, strict=True):
        np.testing.assert_array_equal(one, other)
    solver = pyspiel.CFRSolver(pyspiel.load_game("leduc_poker"))
    for _ in range(3):
        solver.evaluate_and_update_policy()
    average = solver.tabular_average_policy()
    found = nash_conv(game, from_openspiel(game, average.policy_table()))
    assert found == pytest.approx(pyspiel.nash_conv(pyspiel.load_game("leduc_poker"), average), abs=1e-6)
    table[game.state_names[0][0]] = [[3, 1.0]]
    with pytest.raises(ValueError, match="has action 3; expected 0 … 2"):
        from_openspiel(game, table)


@pytest.mark.parametrize("name", ["kuhn_poker(players=3)", "leduc_poker", "tiny_hanabi", "matrix_pd"])
def test_copies_play_as_open_spiel_does(name):
    game = compiled(name)
    loaded, _ = theirs(name, game, [uniform_policy(game, player) for player in range(game.players)])
    copies, random = Copies(game, 5), np.random.default_rng(1)
    states, draws, drawn = [None] * 5, np.zeros((5, copies.draws)), [0] * 5

    def chance(copy):
        while states[copy].is_chance_node():
            outcomes, chances = zip(*states[copy].chance_outcomes(), strict=True)
            states[copy].apply_action(outcomes[np.searchsorted(np.cumsum(chances), draws[copy, drawn[copy]], side="right")])
            drawn[copy] += 1

    assert copies.over.all()
    for _ in range(60):
        over = np.flatnonzero(copies.over)
        draws[over] = random.random((len(over), copies.draws))
        copies.reset(over, draws[over])
        for copy in over:
            states[copy], drawn[copy] = loaded.new_initial_state(), 0
            chance(copy)
        actions = np.array([random.choice(np.flatnonzero(legal)) for legal in copies.legal])
        copies.step(actions)
        for copy, state in enumerate(states):
            state.apply_action(int(actions[copy]))
            chance(copy)
            player = int(copies.player[copy])
            assert bool(copies.over[copy]) == state.is_terminal()
            assert copies.returns[copy].tolist() == state.returns()
            if not state.is_terminal():
                assert player == state.current_player()
                assert np.flatnonzero(copies.legal[copy]).tolist() == state.legal_actions()
                assert game.state_names[player][copies.state[copy]] == state.information_state_string(player)


def test_copies_that_are_over_stay_and_take_any_action():
    copies = Copies(compiled("kuhn_poker"), 2)
    copies.reset([0, 1], np.zeros((2, 2)))
    copies.step(np.array([0, 1]))
    copies.step(np.array([0, 0]))  # pass, pass | bet, pass
    assert copies.over.tolist() == [True, True]
    returns = copies.returns.copy()
    copies.step(np.array([7, -3]))
    assert np.array_equal(copies.returns, returns)
    copies.reset([1], np.zeros((1, 2)))
    assert copies.over.tolist() == [True, False]
    assert copies.state.tolist() == [-1, 0]


def test_chance_gives_each_outcome_its_share_of_the_unit_interval():
    game = compiled("leduc_poker")
    copies = Copies(game, 600)
    numbers = np.stack([(np.arange(600) + 0.5) / 600, np.zeros(600), np.zeros(600)], 1)
    copies.reset(np.arange(600), numbers)
    first = np.array([game.move[game.parent[at]] for at in copies.at])  # the card of player 0
    assert np.bincount(first).tolist() == [100] * 6
    assert np.all(np.diff(first) >= 0)
    last = np.full((600, 3), np.nextafter(1, 0))
    copies.reset(np.arange(600), last)
    assert np.unique(copies.at).size == 1
    assert game.move[copies.at[0]] == 4  # the last of the cards that are left


def test_many_copies_step_fast():
    game = compiled("leduc_poker")
    copies, random = Copies(game, 4096), np.random.default_rng(0)
    everyone = np.arange(4096)
    spent = steps = 0.0
    for _ in range(30):
        over = everyone[copies.over]
        copies.reset(over, random.random((len(over), copies.draws)))
        actions = (random.random((4096, game.actions)) * copies.legal).argmax(1)
        started = time.process_time()
        copies.step(actions)
        spent += time.process_time() - started
        steps += 4096
    assert steps / spent >= 500_000  # measured: 40 million


def test_an_information_state_has_the_same_legal_actions_everywhere():
    histories = [History(-1, -1, 1.0, CHANCE, "", (), (0,))]
    for outcome, legal in enumerate([(0, 1), (0,)]):
        above = len(histories)
        histories.append(History(0, outcome, 0.5, 0, "blind", legal, (0,)))
        histories += [History(above, action, 1.0, TERMINAL, "", (), (1,)) for action in legal]
    with pytest.raises(ValueError, match="'blind' of player 0 has different legal actions"):
        build("blind", 1, 2, histories)


@pytest.mark.parametrize("name", ["kuhn_poker", "leduc_poker", "liars_dice(dice_sides=3)", "kuhn_poker(players=4)", "tiny_hanabi"])
def test_no_game_is_called_too_large_that_just_fits(name):
    histories = len(compiled(name).player)
    assert len(compile_game(name, max_histories=histories).player) == histories
    with pytest.raises(ValueError, match=f"more than max_histories={histories - 1} histories"):
        compile_game(name, max_histories=histories - 1)


@pytest.mark.parametrize("name", ["connect_four", "goofspiel", "chess", "goofspiel(num_cards=5)"])
def test_games_that_are_far_too_large_are_refused_without_a_visit(name):
    visited = []
    with pytest.raises(ValueError, match="more than max_histories=1000000 histories"):
        compile_game(name, look=lambda state, player: visited.append(state) or [])
    assert not visited


def test_games_that_cannot_be_compiled_say_why(monkeypatch):
    with pytest.raises(ValueError, match="doesn't remember its own moves in information state"):
        compile_game("liars_dice_ir(dice_sides=3)")
    with pytest.raises(ValueError, match="more than max_histories=1000 histories"):
        compile_game("leduc_poker", max_histories=1000)
    with pytest.raises(ValueError, match="OpenSpiel has no game 'khun_poker': Unknown game 'khun_poker'"):
        compile_game("khun_poker")
    with pytest.raises(ValueError, match="names no information states"):
        compile_game("backgammon")
    with pytest.raises(ValueError, match="mean-field"):
        compile_game("mfg_crowd_modelling")
    with pytest.raises(ValueError, match="draws its chance by itself"):
        compile_game("negotiation")
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(ImportError, match=r"pip install 'marl_hpc\[openspiel\]'"):
        compile_game("kuhn_poker")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda game: nash_conv(game, [uniform_policy(game, 0)]), "has 2 players, got 1 policies"),
        (lambda game: uniform_policy(game, 2), r"players 0 … 1, got 2"),
        (lambda game: realization_plan(game, 0, np.ones((5, 2))), r"has shape \(5, 2\); expected \[…, 6, 2\]"),
        (
            lambda game: realization_plan(game, 1, np.full((6, 2), 0.6)),
            r"at \(0,\) isn't probabilities .* in information state '1p'",
        ),
        (lambda game: nash_conv(game, [np.full((3, 6, 2), 0.5)] * 2), "expected one policy"),
        (lambda game: best_response_to(game, 0, np.zeros(4)), "has 13 sequences"),
        (lambda game: mixture_policy(game, 0, [uniform_policy(game, 0)], [0.5]), "sum to 0.5"),
        (lambda game: from_openspiel(game, {"0": [[0, 1.0]]}), "lacks 11 .* and has 0 others"),
        (lambda game: to_openspiel(game, [uniform_policy(game, 0)]), "give one for each"),
        (lambda game: Copies(game, 0), "at least one"),
        (lambda game: Copies(game, 2).reset([0], np.zeros((2, 2))), r"expected \(1, 2\)"),
        (lambda game: Copies(game, 2).reset([0], np.ones((1, 2))), r"\[0, 1\)"),
        (lambda game: Copies(game, 2).step([0]), r"expected \(2,\)"),
    ],
)
def test_bad_input_is_refused_at_once(call, says):
    with pytest.raises(ValueError, match=says):
        call(compiled("kuhn_poker"))


def test_illegal_actions_name_the_copy_and_what_is_legal():
    copies = Copies(compiled("leduc_poker"), 2)
    copies.reset([0, 1], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"copy 1 got action 0; its player 0 may choose from \[1, 2\]"):
        copies.step([1, 0])
    with pytest.raises(ValueError, match="copy 0 got action 3"):
        copies.step([3, 1])


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4), (2, 3, 2)])
def test_a_matrix_game_returns_what_its_table_says(sizes):
    payoffs = np.random.default_rng(0).normal(size=(len(sizes), *sizes))
    game = matrix_game(payoffs)
    assert [game.legal[i].sum() for i in range(game.players)] == list(sizes)
    mixtures = [random_policy(game, player, 1) for player in range(game.players)]
    joint = mixtures[0][0, : sizes[0]]
    for mixture, size in zip(mixtures[1:], sizes[1:], strict=True):
        joint = np.multiply.outer(joint, mixture[0, :size])
    np.testing.assert_allclose(expected_returns(game, mixtures), (payoffs * joint).reshape(len(sizes), -1).sum(1), rtol=1e-12)
    gap = nash_gap(payoffs, [mixture[0, :size] for mixture, size in zip(mixtures, sizes, strict=True)])
    assert nash_conv(game, mixtures) == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize("payoffs", [np.zeros((2, 3)), np.zeros((2, 0, 3)), np.full((2, 1, 1), np.nan)])
def test_payoffs_that_make_no_matrix_game_are_refused(payoffs):
    with pytest.raises(ValueError, match="players"):
        matrix_game(payoffs)


def test_rounding_in_a_plan_never_makes_a_probability_above_one():
    game = compiled("kuhn_poker")
    pure = np.eye(2)[game.legal[0].argmax(1)]
    plan = realization_plan(game, 0, pure)
    plan[1:] = np.nextafter(plan[1:], 2 * plan[1:])  # as a sum in another order may have it
    policy = behavior_policy(game, 0, plan)
    assert policy.max() == 1
    np.testing.assert_array_equal(policy[game.stages[0][0].states], pure[game.stages[0][0].states])
    game_of_theirs, table = theirs("kuhn_poker", game, [policy, uniform_policy(game, 1)])
    assert pyspiel.nash_conv(game_of_theirs, table) > 0
