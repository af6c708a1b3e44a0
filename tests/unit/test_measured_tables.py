"""What the README says of records: no more than they hold."""

import importlib.util
import json
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("readme_tables", Path(__file__).parents[2] / "benchmarks" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)

SHARES = {"wins": 1.0, "draws": 0.0, "losses": 0.0, "illegal": 0, "games": 100}
RUN = {"seed": 0, "env_steps": 1000, "git": {"commit": "0123456789"}}


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    return lambda name, record: (tmp_path / f"{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("seats", "says"),
    [
        (["first", "second"], "greedy against a random player."),
        (["first, random", "first, perfect"], "greedy against a random and a perfect player."),
    ],
)
def test_only_opponents_that_were_played_are_named(records, seats, says):
    records("tictactoe", {"runs": [{**RUN, **dict.fromkeys(seats, SHARES)}]})
    lines = readme.tictactoe()
    assert lines[1].endswith(says)
    assert sum("100.00 %" in line for line in lines) == len(seats)


@pytest.mark.parametrize(
    ("computed", "says"), [([2.0, 1.0, 0.5, 0.25], "| 0.500, iteration 2 |"), ([2.0, 0.0], "| 0.000, iteration 1 |")]
)
def test_learned_psro_stands_beside_as_many_iterations_of_the_computed_one(records, computed, says):
    run = {**RUN, "curve": [[0, 0, 3.0], [10, 1, 2.0], [20, 2, 0.75]], "nash_conv": 0.75, "wall_s": 60.0}
    entry = {"runs": [run], "overrides": [], "computed": computed}
    records("populations", {"entries": {"leduc_psro": entry, "leduc_mmd": entry}})
    psro, mmd = readme.learned_populations()[-2:]
    assert says in psro
    assert "| 0.750 | – |" in mmd


def test_every_side_of_the_compiled_games_has_its_median_and_range(records):
    rows = {"kuhn_poker": {"compiled": [3.0, 1.0, 2.0], "environment, 64 copies": [40.0, 60.0, 50.0], "openspiel": [7.0, 7.0, 7.0]}}
    records("compiled_games", {"copies": 4096, "repeats": 3, "git": {"commit": "0123456789"}, "steps_per_cpu_s": rows})
    table = readme.compiled_games()[-3:]
    assert table[0] == "| game | the game alone | `openspiel_fast` environment, 64 copies | OpenSpiel |"
    assert table[-1] == "| kuhn_poker | 2 (1 … 3) | 50 (40 … 60) | 7 (7 … 7) |"
