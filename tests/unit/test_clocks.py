"""Clocks of learners: what the bound says, over random histories."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl_hpc.clocks import Clocks


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 3), st.integers(1, 4))
def test_no_learner_starts_before_every_live_one_has_finished_what_the_bound_says(data, staleness, learners):
    clocks = Clocks(range(learners), staleness)
    running: dict[int, int] = {}
    most = 0
    for step in range(60):
        learner = data.draw(st.integers(0, learners - 1))
        if learner in running:
            assert clocks.finish(learner, step)
            del running[learner]
        elif clocks.may_start(learner, step):
            clock = clocks.finished[learner]
            assert all(done > clock - staleness - 1 for done in clocks.finished.values())  # iteration c - S - 1 is finished
            most = max(most, clock - min(clocks.finished.values()))
            clocks.start(learner, step)
            running[learner] = clock
        else:
            assert min(clocks.finished.values()) < clocks.finished[learner] - staleness
    assert most <= staleness
    # nobody waits for ever: the slowest may always start
    slowest = min(clocks.finished, key=clocks.finished.__getitem__)
    assert clocks.may_start(slowest, 60)


def test_without_a_bound_nobody_waits():
    clocks = Clocks(range(2))
    for step in range(50):
        assert clocks.may_start(0, step)
        clocks.start(0, step)
        clocks.finish(0, step)


def test_staleness_zero_is_bulk_synchronous():
    clocks = Clocks(range(3), 0)
    for step in range(5):
        for learner in (0, 1, 2):
            assert clocks.may_start(learner, step)
            clocks.start(learner, step)
        for learner in (2, 0):
            clocks.finish(learner, step)
            assert not clocks.may_start(learner, step)
        clocks.finish(1, step)


def test_an_iteration_beyond_the_limit_holds_nobody_and_its_gradient_is_dropped():
    clocks = Clocks(range(2), staleness=1, limit_s=10)
    clocks.start(1, 0.0)
    for step in range(2):
        clocks.start(0, step)
        clocks.finish(0, step + 0.5)
    assert not clocks.may_start(0, 10.0)  # learner 1 is still in its first
    assert clocks.may_start(0, 10.1)
    clocks.start(0, 10.1)
    clocks.finish(0, 11.0)
    assert not clocks.finish(1, 12.0)
    assert clocks.dropped == {0: 0, 1: 1}
    assert clocks.finished == {0: 3, 1: 3}  # it goes on with the others
    assert clocks.may_start(1, 12.0)


def test_who_leaves_holds_nobody():
    clocks = Clocks(range(2), 0)
    clocks.start(0, 0)
    clocks.finish(0, 0)
    assert not clocks.may_start(0, 0)
    clocks.leave(1)
    assert clocks.may_start(0, 0)


def test_a_pause_for_all_makes_nobody_late():
    clocks = Clocks(range(2), staleness=1, limit_s=10)
    clocks.start(0, 0.0)
    clocks.restart(100.0)
    assert not clocks.late(0, 105.0)
    assert clocks.next_deadline() == 110.0
    assert Clocks(range(2)).next_deadline() == math.inf


@pytest.mark.parametrize(("staleness", "limit_s"), [(-1, 1.0), (math.nan, 1.0), (1, 0.0)])
def test_bounds_that_mean_nothing_are_refused(staleness, limit_s):
    with pytest.raises(ValueError, match="staleness"):
        Clocks(range(2), staleness, limit_s)
