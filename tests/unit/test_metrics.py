"""The metrics file survives kills and resumes; clocks count every second once."""

import json
import time

import pytest

from marl_hpc.metrics import Clock, MetricsWriter


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def writer_at(run_dir, learner_steps):
    return MetricsWriter(run_dir, learner_steps, "none", {})


def write(run_dir, start, steps):
    writer = writer_at(run_dir, start)
    for step in steps:
        writer.write(0.5 * step, 100 * step, step, {"loss/policy": float(step)})
    writer.close()


def test_lines_hold_time_steps_and_metrics(tmp_path):
    writer = writer_at(tmp_path, 0)
    writer.write(1.23456, 200, 2, {"loss/policy": 0.25, "loss/value": -3.0})
    writer.close()
    assert lines(tmp_path) == [{"time_s": 1.235, "env_steps": 200, "learner_steps": 2, "loss/policy": 0.25, "loss/value": -3.0}]


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    writer = writer_at(tmp_path, 0)
    writer.write(1.0, 100, 1, {})
    assert len(lines(tmp_path)) == 1
    writer.close()


def test_resumed_run_drops_what_was_written_after_its_checkpoint(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4, 5])
    write(tmp_path, 3, [4, 5, 6])
    assert [line["learner_steps"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_run_from_the_beginning_drops_everything(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, 0, [1])
    assert [line["learner_steps"] for line in lines(tmp_path)] == [1]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_truncated_last_line_is_dropped(tmp_path, cut):
    write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-cut])
    write(tmp_path, 9, [4])
    assert [line["learner_steps"] for line in lines(tmp_path)] == [1, 2, 4]


def test_numbers_that_json_lacks_are_null(tmp_path):
    writer = writer_at(tmp_path, 0)
    writer.write(0.0, 1, 1, {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0})
    writer.close()
    assert {name: lines(tmp_path)[0][name] for name in "abcd"} == {"a": None, "b": None, "c": None, "d": 1.0}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    write(tmp_path, 1, [2])
    assert len(lines(tmp_path)) == 2


def test_evaluations_that_stand_there_are_known_after_a_resume(tmp_path):
    writer = writer_at(tmp_path, 0)
    writer.write(0.0, 100, 1, {"loss/policy": 0.0})
    writer.write(0.0, 200, 2, {"evaluate/return_mean": -20.0})
    writer.write(0.0, 400, 4, {"evaluate/return_mean": -10.0})
    writer.close()
    resumed = writer_at(tmp_path, 3)
    assert resumed.evaluated == {2}
    resumed.close()
    assert [line["learner_steps"] for line in lines(tmp_path)] == [1, 2]


def work(seconds):
    """Spend CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def test_time_goes_to_the_innermost_phase_alone():
    clock = Clock()
    with clock.computing("learn"):
        work(0.02)
        with clock.waiting("dataset"):
            time.sleep(0.1)
        work(0.02)
    totals = clock.totals()
    assert (
        0.1
        <= totals["waiting"]["dataset"]
        < totals["waiting"]["dataset"] + totals["computing"]["learn"]
        <= totals["wall_s"] + 0.002
    )
    assert totals["computing"]["learn"] >= 0.039
    # sleeping costs no CPU, and what the waiting didn't use isn't booked on it
    assert totals["cpu"]["dataset"] < 0.02
    assert totals["cpu"]["learn"] >= 0.039


def test_phases_add_up_to_the_time_inside_them():
    clock = Clock()
    begin = time.perf_counter()
    for _ in range(3):
        with clock.computing("a"):
            time.sleep(0.005)
            with clock.computing("b"):
                time.sleep(0.005)
                with clock.waiting("c"):
                    time.sleep(0.005)
    elapsed = time.perf_counter() - begin
    totals = clock.totals()
    spent = sum(totals["computing"].values()) + sum(totals["waiting"].values())
    assert 0.045 <= spent <= elapsed + 0.001
    assert spent >= 0.9 * elapsed
    assert sorted(totals["computing"]) == ["a", "b"]


def test_totals_in_the_middle_of_a_phase_count_it_so_far_and_once():
    clock = Clock()
    with clock.waiting("calls"):
        time.sleep(0.03)
        first = clock.totals()["waiting"]["calls"]
        time.sleep(0.03)
    second = clock.totals()["waiting"]["calls"]
    assert 0.03 <= first < second
    assert 0.06 <= second <= clock.totals()["wall_s"] + 0.002


def test_phase_that_fails_is_left():
    clock = Clock()
    with pytest.raises(KeyError), clock.computing("learn"):
        raise KeyError("x")
    time.sleep(0.05)
    assert clock.totals()["computing"]["learn"] < 0.04
