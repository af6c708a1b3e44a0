"""The run's arithmetic, for every small schedule."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl_hpc.config import Budget, Checkpoint, Config, ConfigError, Evaluate, Population, Rollout
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


@st.composite
def staged(draw):
    """Schedules of populations: stages are no shorter than iterations, and an attempt may start in the middle of one."""
    schedule = draw(schedules)
    stage_steps = schedule.steps + draw(st.integers(0, 2000))
    return replace(schedule, stage_steps=stage_steps, start_steps=draw(st.integers(0, 5000)) if schedule.start else 0)


@given(staged(), st.integers(0, 200))
def test_a_stage_is_as_many_whole_stage_steps_as_were_learned_before(schedule, ahead):
    k = schedule.start + ahead
    steps = schedule.start_steps + ahead * schedule.steps
    assert schedule.stage(k) * schedule.stage_steps <= steps < (schedule.stage(k) + 1) * schedule.stage_steps
    assert schedule.stage(k + 1) - schedule.stage(k) in (0, 1)  # so no policy is left out
    assert schedule.ends_stage(k) == (schedule.stage(k + 1) > schedule.stage(k))


@given(staged(), st.integers(0, 200))
def test_a_stage_starts_where_the_one_before_it_ends(schedule, ahead):
    k = schedule.start + ahead
    first = schedule.stage_start(schedule.stage(k))
    assert schedule.start <= first <= k
    assert schedule.stage(first) == schedule.stage(k)
    assert first == schedule.start or schedule.ends_stage(first - 1)
    assert not any(schedule.ends_stage(other) for other in range(first, k))


@given(staged(), st.integers(0, 200))
def test_environments_restart_and_no_older_version_collects_where_a_stage_starts(schedule, ahead):
    fragment = schedule.start + ahead
    restarts = schedule.segment(fragment) == fragment
    ended = fragment > schedule.start and (schedule.saves_after(fragment - 1) or schedule.ends_stage(fragment - 1))
    assert restarts == (fragment == schedule.start or ended)
    assert schedule.stage(schedule.version(fragment)) == schedule.stage(fragment)


@given(staged(), st.integers(1, 6), st.integers(0, 200))
def test_a_run_resumed_at_a_save_is_in_the_stages_of_the_run_that_was_never_stopped(schedule, saves, ahead):
    whole = replace(schedule, start=0, start_steps=0)
    start = saves * schedule.save_every
    resumed = replace(whole, start=start, start_steps=whole.env_steps(start))
    fragment = start + ahead
    for of in ("stage", "ends_stage", "segment", "version", "env_steps"):
        assert getattr(resumed, of)(fragment) == getattr(whole, of)(fragment), of
    assert resumed.stage_start(resumed.stage(fragment)) == max(start, whole.stage_start(whole.stage(fragment)))


@given(staged(), st.integers(1, 8), st.integers(1, 3000))
def test_a_run_that_goes_on_with_other_workers_is_in_the_stage_that_its_steps_say(schedule, saves, steps):
    start = saves * schedule.save_every
    resumed = replace(schedule, start=start, start_steps=replace(schedule, start=0, start_steps=0).env_steps(start), steps=steps)
    for k in range(start, start + 20):
        assert resumed.stage(k) == (schedule.steps * start + (k - start) * steps) // schedule.stage_steps


@given(envs=st.integers(1, 16), fragment=st.integers(1, 50), workers=st.integers(1, 8), every=st.integers(1, 4000))
def test_stages_are_as_long_as_asked_for_and_those_shorter_than_an_iteration_are_refused(envs, fragment, workers, every):
    config = Config(population=Population(name="psro", every_steps=every), rollout=Rollout(envs=envs, fragment=fragment))
    steps = envs * fragment * workers
    if every < steps:
        with pytest.raises(ConfigError, match=f"every_steps={every} is less than an iteration, {steps} environment steps"):
            Schedule.of(config, workers)
    else:
        assert Schedule.of(config, workers).stage_steps == every
    assert Schedule.of(replace(config, population=Population()), workers).stage_steps == 0
