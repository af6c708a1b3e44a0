"""Whom agents meet, scheme by scheme, from what is known of the populations."""

import numpy as np
import pytest

from marl_hpc.config import ConfigError, Population
from marl_hpc.meta_solvers import resolve
from marl_hpc.populations.schemes import (
    LEARNS,
    SCHEMES,
    Known,
    begins,
    configured,
    levels_below,
    lines_of,
    needed,
    resets,
    solved,
    what_learns,
)  # fmt: skip

ROCK_PAPER_SCISSORS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def strategy(name, stage=3, payoffs=None, wins=None, players=2, **options):
    section = Population(name=name, **options)
    return SCHEMES[name](Known(stage, lines_of(section), players, payoffs, wins), section)


def opponents(meeting, player):
    """How likely each member of the other one is, of two players."""
    chances = np.zeros(meeting.profiles[:, 1 - player].max() + 1)
    assert (meeting.profiles[:, player] == LEARNS).all()
    np.add.at(chances, meeting.profiles[:, 1 - player], meeting.weights)
    return chances


def test_self_play_is_always_against_the_present_and_amounts_to_the_newest():
    found = strategy("self_play")
    assert found.live == (1,)
    assert found.mixtures[1].tolist() == [0, 0, 0, 1]


def test_fictitious_play_answers_and_amounts_to_the_average_of_what_was_learned():
    found = strategy("fictitious_play")
    assert found.live == (0,)
    np.testing.assert_allclose(opponents(found.meetings[0][0], 0), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(found.mixtures[0], [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(strategy("fictitious_play", 0).mixtures[0], [1])


@pytest.mark.parametrize(("delta", "met"), [(0.5, 2), (0.51, 3), (0.01, 1), (1.0, 4)])
def test_delta_uniform_meets_the_newest_share(delta, met):
    found = strategy("delta_uniform", delta=delta, live=0.3)
    assert found.live == (0.3,)
    expected = (np.arange(4) >= 4 - met) / met
    np.testing.assert_allclose(opponents(found.meetings[0][1], 1), expected[:4])
    assert found.mixtures[0].tolist() == [0, 0, 0, 1]


def test_a_league_meets_most_whom_it_beats_least():
    wins = [[[np.zeros(3), np.array([1.0, 0.5, 0.0])], [np.array([0.0, 1.0, 1.0]), np.zeros(3)]]]
    found = strategy("league", 2, wins=wins, power=2.0, live=0.0)
    np.testing.assert_allclose(opponents(found.meetings[0][0], 0), np.array([0.0, 0.25, 1.0]) / 1.25)
    np.testing.assert_allclose(opponents(found.meetings[0][1], 1), [1.0])


def test_a_league_that_beats_everybody_meets_everybody_alike():
    wins = [[[np.zeros(2), np.ones(2)], [np.ones(2), np.zeros(2)]]]
    np.testing.assert_allclose(opponents(strategy("league", 1, wins=wins).meetings[0][0], 0), [0.5, 0.5])


def of_league(rates_of_main_exploiter):
    """After one stage: members are the start, the main agent, the main exploiter and the league exploiter."""
    even = [[np.full(4, 0.5)] * 2] * 2
    rates = [[np.array(rates_of_main_exploiter)] * 2] * 2
    return strategy("league", 1, wins=[even, rates, even], exploiters=["main", "league"], live=0.25)


def test_exploiters_of_the_main_agents_meet_those_as_they_learn():
    found = of_league([1.0, 0.2, 1.0, 1.0])
    assert found.live == (0.25, 0, 0)
    assert found.meetings[1][0].profiles.tolist() == [[LEARNS, LEARNS]]
    assert found.mixtures[0].tolist() == [0, 1, 0, 0]


def test_exploiters_that_hardly_ever_win_meet_the_past_of_the_main_agents_alone():
    found = of_league([0.6, 0.05, 0.5, 0.5])
    past = np.array([0.6 * 0.4, 0.05 * 0.95])
    np.testing.assert_allclose(opponents(found.meetings[1][0], 0), past / past.sum())


def test_exploiters_of_the_league_and_main_agents_meet_everybody():
    found = of_league([0.5] * 4)
    for line in (0, 2):
        np.testing.assert_allclose(opponents(found.meetings[line][1], 1), np.full(4, 0.25))


def test_main_exploiters_begin_anew_after_each_stage_and_league_exploiters_after_some():
    section = Population(name="league", exploiters=["main", "league"])
    often = [[resets(section, line, stage, seed=0) for stage in range(1, 401)] for line in range(3)]
    assert [sum(of_line) for of_line in often[:2]] == [0, 400]
    assert 70 < sum(often[2]) < 130  # a quarter of 400; four standard deviations are 35


@pytest.mark.parametrize(("stage", "below"), [(0, [0]), (1, [0, 1, 2, 3]), (2, [0, 1, 5, 6, 4]), (3, [0, 1, 5, 9, 7, 8])])
def test_of_three_levels_each_answers_the_final_ones_and_what_the_lower_ones_were_last(stage, below):
    assert levels_below(stage, 3) == below


def test_a_level_of_the_pipeline_meets_whom_the_meta_solver_says_among_those_below_it():
    payoffs = np.full((2, 5, 5), np.nan)
    order = levels_below(2, 2)
    strength = np.arange(4.0)
    payoffs[0][np.ix_(order, order)] = strength[:, None] - strength
    payoffs[1] = -payoffs[0]
    found = strategy("pipeline_psro", 2, payoffs=payoffs, levels=2)
    assert opponents(found.meetings[0][0], 0)[order[2]] == pytest.approx(1)  # level 3, the best of those below it is level 2
    assert opponents(found.meetings[1][0], 0)[order[3]] == pytest.approx(1)  # level 4
    assert found.mixtures[1][order[3]] == pytest.approx(1)
    wanted = needed(Population(name="pipeline_psro", levels=2), 2, 2)
    assert sorted(np.flatnonzero(wanted.any(0)).tolist()) == sorted(order)
    assert wanted.sum() == 16


def test_every_level_is_one_lines_from_when_it_begins_until_it_is_final():
    section = Population(name="pipeline_psro", levels=3)
    for line in range(3):
        said = [what_learns(section, line, stage) for stage in range(7)]
        for stage in range(1, 7):
            same = said[stage].partition("level ")[2].split(",")[0] == said[stage - 1].partition("level ")[2].split(",")[0]
            assert same != begins(section, line, stage)
            assert begins(section, line, stage) == said[stage - 1].startswith("best response")


def test_what_is_drawn_from_isnt_called_a_best_response():
    said = {greedy: what_learns(Population(name="fictitious_play", greedy=greedy), 0, 3) for greedy in (None, False, True)}
    assert said == {None: "approximate best response", False: "approximate best response", True: "best response"}
    assert what_learns(Population(name="psro"), 0, 3) == "best response"  # greedy by default
    assert what_learns(Population(name="psro", greedy=False), 0, 3) == "approximate best response"


def test_the_anytime_mixture_is_what_regret_matching_makes_of_the_answers():
    """Two final policies: what began, and the answer to it; three snapshots answer since."""
    section = {"updates": 3}
    payoffs = np.full((2, 7, 7), np.nan)
    payoffs[0][[0, 0, 0, 3, 3, 3], [4, 5, 6, 4, 5, 6]] = [-1.0, -1.0, 2.0, 1.0, 0.0, -2.0]
    payoffs[0][0, [1, 2, 3]] = -1.0
    payoffs[0][[1, 2, 3, 4, 5, 6], 0] = 1.0
    payoffs[0][[4, 5, 6], 3] = 1.0
    payoffs[1] = -payoffs[0]
    played, regret = np.array([0.5, 0.5]), np.zeros(2)
    sums = np.zeros(2)
    for step, returns in enumerate(([-1.0, 1.0], [-1.0, 0.0], [2.0, -2.0]), 1):
        sums += step * played
        regret = np.maximum(regret + np.array(returns) - played @ returns, 0)
        played = regret / regret.sum()
    before = strategy("anytime_psro", 5, payoffs=payoffs[:, :6, :6], **section)
    np.testing.assert_allclose(before.mixtures[0][[0, 3]], [0.5 / 3, 2.5 / 3])
    np.testing.assert_allclose(opponents(before.meetings[0][1], 1), [0, 0, 0, 1])
    after = strategy("anytime_psro", 6, payoffs=payoffs, **section)
    np.testing.assert_allclose(after.mixtures[0][[0, 3]], sums / 6)
    share = sums / 6 * (2 / 3)
    np.testing.assert_allclose(opponents(after.meetings[0][1], 1)[[0, 3, 6]], [share[0], share[1], 1 / 3])
    wanted = needed(Population(name="anytime_psro", **section), 6, 2)
    assert (wanted == ~np.isnan(payoffs[0])).all()


def test_psro_answers_the_meta_strategy():
    found = strategy("psro", 2, payoffs=np.stack([ROCK_PAPER_SCISSORS, -ROCK_PAPER_SCISSORS]))
    np.testing.assert_allclose(opponents(found.meetings[0][0], 0), np.full(3, 1 / 3), atol=1e-9)
    np.testing.assert_allclose(found.mixtures[1], np.full(3, 1 / 3), atol=1e-9)


def test_psro_of_three_players_draws_opponents_together_where_they_are_correlated():
    payoffs = np.zeros((3, 2, 2, 2))
    for profile in np.ndindex(2, 2, 2):  # whoever is with the majority gets 1
        payoffs[:, *profile] = [profile.count(choice) >= 2 for choice in profile]
    found = strategy("psro", 1, payoffs=payoffs, players=3, meta_solver="coarse_correlated_equilibrium")
    for player, meeting in enumerate(found.meetings[0]):
        assert (meeting.profiles[:, player] == LEARNS).all()
        assert meeting.weights.sum() == pytest.approx(1)
        for other in range(3):
            if other != player:
                share = meeting.weights @ meeting.profiles[:, other]
                assert share == pytest.approx(found.mixtures[other][1], abs=1e-6)


CHICKEN = np.array([[[0.0, 7.0], [2.0, 6.0]], [[0.0, 2.0], [7.0, 6.0]]])


@pytest.mark.parametrize(
    ("solver", "payoffs"),
    [("correlated_equilibrium", CHICKEN), ("rectified_nash", np.stack([ROCK_PAPER_SCISSORS, -ROCK_PAPER_SCISSORS]))],
)
def test_each_line_answers_a_target_of_its_own_the_most_played_first(solver, payoffs):
    size, answers = payoffs.shape[1], resolve(solver)(payoffs)
    for lines in (size - 1, size, size + 1):  # too few for all targets, one each, one too many
        section = Population(name="psro", meta_solver=solver, responses=lines)
        found, _ = solved(Known(1, lines, 2, payoffs, None), section, range(size), lines)
        assert len(found) == lines
        for player in range(2):
            order = np.argsort(-answers.mixtures[player], kind="stable")  # all are played
            for line in range(lines):
                met = opponents(found[line][player], player)
                target = answers.opponents[player][order[line % size]]
                np.testing.assert_allclose(met, target[: len(met)], atol=1e-8)
                np.testing.assert_allclose(target[len(met) :], 0, atol=1e-8)


def test_anytime_mixtures_of_a_general_sum_game_are_refused():
    with pytest.raises(ValueError, match=r"payoffs sum to 0 … 12; choose population=psro"):
        strategy("anytime_psro", 1, payoffs=CHICKEN)


def test_options_of_a_meta_solver_are_checked_by_name():
    assert configured(Population(name="psro", meta_solver="alpha_rank", meta_options={"alpha": 3.0})).keywords == {"alpha": 3.0}
    with pytest.raises(ConfigError, match="takes alpha, population_size, symmetric"):
        configured(Population(name="psro", meta_solver="alpha_rank", meta_options={"alpa": 3.0}))
