"""The run's arithmetic, for every small schedule."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from marl_hpc.config import Budget, Checkpoint, Config, Evaluate, Rollout
from marl_hpc.roles.schedule import Schedule

schedules = st.builds(
    Schedule,
    steps=st.integers(1, 500),
    iterations=st.integers(1, 200),
    save_every=st.integers(1, 40),
    evaluate_every=st.integers(1, 40),
    lag=st.integers(0, 1),
    start=st.integers(0, 50),
)


@given(schedules, st.integers(0, 200))
def test_version_is_never_older_than_the_lag_and_never_from_the_future(schedule, ahead):
    fragment = schedule.start + ahead
    assert fragment - schedule.lag <= schedule.version(fragment) <= fragment


@given(schedules, st.integers(0, 200))
def test_version_is_never_from_before_its_segment(schedule, ahead):
    fragment = schedule.start + ahead
    assert schedule.start <= schedule.segment(fragment) <= schedule.version(fragment)
    assert schedule.version(schedule.segment(fragment)) == schedule.segment(fragment)


@given(schedules, st.integers(1, 200))
def test_versions_never_go_back(schedule, ahead):
    fragment = schedule.start + ahead
    assert 0 <= schedule.version(fragment) - schedule.version(fragment - 1) <= 2
    assert schedule.segment(fragment - 1) <= schedule.segment(fragment)


@given(schedules, st.integers(0, 200))
def test_a_segment_starts_at_the_start_and_after_every_scheduled_save_and_nowhere_else(schedule, ahead):
    fragment = schedule.start + ahead
    restarts = schedule.segment(fragment) == fragment
    assert restarts == (fragment == schedule.start or schedule.saves_after(fragment - 1))


@given(schedules, st.integers(1, 6), st.integers(0, 200))
def test_run_resumed_at_a_scheduled_save_collects_with_the_versions_of_the_run_that_was_never_stopped(schedule, saves, ahead):
    whole = replace(schedule, start=0)
    resumed = replace(schedule, start=saves * schedule.save_every)
    fragment = resumed.start + ahead
    assert resumed.version(fragment) == whole.version(fragment)
    assert resumed.segment(fragment) == whole.segment(fragment)


@given(schedules, st.integers(0, 200))
def test_evaluation_is_the_newest_multiple_and_never_of_version_zero(schedule, version):
    due = [v for v in range(1, version + 1) if v % schedule.evaluate_every == 0]
    assert schedule.evaluation(version) == (due[-1] if due else None)


@given(
    budget=st.integers(1, 10**6), envs=st.integers(1, 64), fragment=st.integers(1, 200), workers=st.integers(1, 16),
    every=st.integers(1, 10**6), spent=st.integers(0, 10**6),
)  # fmt: skip
def test_schedule_of_a_configuration_spends_the_budget_and_not_an_iteration_more(budget, envs, fragment, workers, every, spent):
    config = Config(
        budget=Budget(env_steps=budget), rollout=Rollout(envs=envs, fragment=fragment, max_lag=0),
        checkpoint=Checkpoint(every_steps=every), evaluate=Evaluate(every_steps=every),
    )  # fmt: skip
    schedule = Schedule.of(config, workers, start=3, start_steps=spent)
    assert schedule.steps == envs * fragment * workers
    assert schedule.env_steps(3) == spent
    assert schedule.env_steps(schedule.iterations) >= budget
    assert schedule.iterations == 3 or schedule.env_steps(schedule.iterations - 1) < budget
    assert schedule.save_every == schedule.evaluate_every >= 1
    assert schedule.save_every * schedule.steps <= max(every, schedule.steps)
    assert (schedule.lag, schedule.start) == (0, 3)
