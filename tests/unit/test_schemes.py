"""Whom agents meet, scheme by scheme, from what is known of the populations."""

import numpy as np
import pytest

from marl_hpc.config import ConfigError, Population
from marl_hpc.populations.schemes import LEARNS, SCHEMES, Known, configured

ROCK_PAPER_SCISSORS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def strategy(name, sizes=(4, 4), payoffs=None, wins=None, **options):
    return SCHEMES[name](Known(sizes, payoffs, wins), Population(name=name, **options))


def opponents(meeting, player):
    """How likely each member of the other one is, of two players."""
    chances = np.zeros(meeting.profiles[:, 1 - player].max() + 1)
    assert (meeting.profiles[:, player] == LEARNS).all()
    np.add.at(chances, meeting.profiles[:, 1 - player], meeting.weights)
    return chances


def test_self_play_is_always_against_the_present_and_amounts_to_the_newest():
    found = strategy("self_play")
    assert found.live == 1
    assert found.mixtures[1].tolist() == [0, 0, 0, 1]


def test_fictitious_play_answers_and_amounts_to_the_average_of_what_was_learned():
    found = strategy("fictitious_play")
    assert found.live == 0
    np.testing.assert_allclose(opponents(found.meetings[0], 0), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(found.mixtures[0], [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(strategy("fictitious_play", (1, 1)).mixtures[0], [1])


@pytest.mark.parametrize(("delta", "met"), [(0.5, 2), (0.51, 3), (0.01, 1), (1.0, 4)])
def test_delta_uniform_meets_the_newest_share(delta, met):
    found = strategy("delta_uniform", delta=delta, live=0.3)
    assert found.live == 0.3
    expected = (np.arange(4) >= 4 - met) / met
    np.testing.assert_allclose(opponents(found.meetings[1], 1), expected[:4])
    assert found.mixtures[0].tolist() == [0, 0, 0, 1]


def test_a_league_meets_most_whom_it_beats_least():
    wins = [[np.zeros(3), np.array([1.0, 0.5, 0.0])], [np.array([0.0, 1.0, 1.0]), np.zeros(3)]]
    found = strategy("league", (3, 3), wins=wins, power=2.0, live=0.0)
    np.testing.assert_allclose(opponents(found.meetings[0], 0), np.array([0.0, 0.25, 1.0]) / 1.25)
    np.testing.assert_allclose(opponents(found.meetings[1], 1), [1.0])


def test_a_league_that_beats_everybody_meets_everybody_alike():
    wins = [[np.zeros(2), np.ones(2)], [np.ones(2), np.zeros(2)]]
    np.testing.assert_allclose(opponents(strategy("league", (2, 2), wins=wins).meetings[0], 0), [0.5, 0.5])


def test_psro_answers_the_meta_strategy():
    found = strategy("psro", (3, 3), payoffs=np.stack([ROCK_PAPER_SCISSORS, -ROCK_PAPER_SCISSORS]))
    np.testing.assert_allclose(opponents(found.meetings[0], 0), np.full(3, 1 / 3), atol=1e-9)
    np.testing.assert_allclose(found.mixtures[1], np.full(3, 1 / 3), atol=1e-9)


def test_psro_of_three_players_draws_opponents_together_where_they_are_correlated():
    payoffs = np.zeros((3, 2, 2, 2))
    for profile in np.ndindex(2, 2, 2):  # whoever is with the majority gets 1
        payoffs[:, *profile] = [profile.count(choice) >= 2 for choice in profile]
    found = strategy("psro", (2, 2, 2), payoffs=payoffs, meta_solver="coarse_correlated_equilibrium")
    for player, meeting in enumerate(found.meetings):
        assert (meeting.profiles[:, player] == LEARNS).all()
        assert meeting.weights.sum() == pytest.approx(1)
        for other in range(3):
            if other != player:
                share = meeting.weights @ meeting.profiles[:, other]
                assert share == pytest.approx(found.mixtures[other][1], abs=1e-6)


def test_a_solver_that_wants_several_best_responses_at_once_is_refused_with_what_would_work():
    chicken = np.array([[[0.0, 7.0], [2.0, 6.0]], [[0.0, 2.0], [7.0, 6.0]]])
    with pytest.raises(ValueError, match=r"best responses of player 0 at once.*coarse_correlated_equilibrium"):
        strategy("psro", (2, 2), payoffs=chicken, meta_solver="correlated_equilibrium")


def test_options_of_a_meta_solver_are_checked_by_name():
    assert configured(Population(name="psro", meta_solver="alpha_rank", meta_options={"alpha": 3.0})).keywords == {"alpha": 3.0}
    with pytest.raises(ConfigError, match="takes alpha, population_size, symmetric"):
        configured(Population(name="psro", meta_solver="alpha_rank", meta_options={"alpa": 3.0}))
