"""What the report page shows of populations, read back from the page."""

import json
import re

import pytest

from marl_hpc.report import render

PAYOFFS = [[0.0, -1.5], [0.75, None]]


def write(folder, payoffs=PAYOFFS, sizes=(2, 2), gaps=(2.0, 0.5, 0.01), env_steps=(0, 0, 0), recorded=None):
    (folder / "population").mkdir(parents=True)
    history = [
        {"iteration": k, "nash_conv": gap, "mixtures": [[1.0] if k == 0 else [0.25, 0.75], [1.0]]} for k, gap in enumerate(gaps)
    ]
    text = "".join(json.dumps(line) + "\n" for line in history)
    (folder / "population" / "history.jsonl").write_text(text + '{"iteration": 3, "mixt')
    members = [
        {
            "id": f"0/{k}",
            "parent": None,
            "iteration": k,
            "env_steps": 10 * k,
            "made_by": "<b>bold</b>",
            "played": "greedy",
            "content": "",
        }
        for k in range(2)
    ]
    (folder / "population" / "members.json").write_text(json.dumps({"populations": [0, 1], "members": members}))
    (folder / "population" / "payoffs.json").write_text(json.dumps({"sizes": sizes, "payoffs": payoffs and [payoffs, payoffs]}))
    lines = [
        {"time_s": 2.5 * k, "env_steps": n, "learner_steps": k, "population/nash_conv": g, **(recorded or {})}
        for k, (n, g) in enumerate(zip(env_steps, gaps, strict=True))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "population": {"nash_conv": gaps[-1]}}))
    return render(folder).read_text()


def test_every_known_payoff_is_a_cell_that_says_it_and_what_isnt_known_is_none(tmp_path):
    text = write(tmp_path / "run")
    picture = next(svg for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "what player 0 gets" in svg)
    assert "from -1.5 to 1.5" in picture
    cells = dict(re.findall(r"<title>(\d+, \d+): ([^<]+)</title>", picture))
    assert cells == {"0, 0": "0", "0, 1": "-1.5", "1, 0": "0.75"}
    colors = {place: re.search(rf'fill="(#\w+)"><title>{place}:', picture)[1] for place in cells}
    assert colors["0, 0"] == "#f7f7f7"
    red, blue = ([int(colors[place][i : i + 2], 16) for i in (1, 5)] for place in ("1, 0", "0, 1"))
    assert red[0] > red[1]
    assert blue[1] > blue[0]


def test_gaps_that_span_magnitudes_are_drawn_by_their_logarithm(tmp_path):
    assert "NashConv, sum over players, log10" in write(tmp_path / "wide")
    assert "NashConv, sum over players, log10" not in write(tmp_path / "near", gaps=(2.0, 1.5, 1.0))


def test_an_equilibrium_up_to_rounding_doesnt_flatten_the_curve(tmp_path):
    text = write(tmp_path / "run", gaps=(2.0, 0.5, -1e-17))
    picture = next(svg for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "log10 over iteration" in svg)
    assert "below 1e-06 is drawn as that" in text
    assert re.findall(r"<title>(\d): ([-\d.]+)</title>", picture) == [("0", "0.301"), ("1", "-0.301"), ("2", "-6")]


@pytest.mark.parametrize(
    ("run", "over"),
    [
        ({"env_steps": (0, 80, 160)}, ["iteration", "environment steps", "seconds of training"]),
        ({"recorded": {"population/cpu_s": 1.5}}, ["iteration", "seconds of training"]),
        ({}, ["iteration", "seconds of training"]),
    ],
)
def test_nash_conv_is_drawn_over_whatever_is_counted(tmp_path, run, over):
    text = write(tmp_path / "run", gaps=(2.0, 1.5, 1.0), **run)
    drawn = re.findall(r'aria-label="NashConv, sum over players over ([^"]+)"', text)
    assert drawn == over


def test_nash_conv_of_computed_populations_is_drawn_over_cpu_seconds(tmp_path):
    folder = tmp_path / "run"
    write(folder, gaps=(2.0, 1.5, 1.0))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"population/cpu_s": 0.25 * (k + 1)}) + "\n" for k, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text(text)
    picture = next(svg for svg in re.findall(r"<svg.*?</svg>", render(folder).read_text(), re.DOTALL) if "over CPU seconds" in svg)
    assert re.findall(r"<title>([\d.]+): ([\d.]+)</title>", picture) == [("0.25", "2"), ("0.5", "1.5"), ("0.75", "1")]


def test_the_strongest_members_stand_first_and_text_is_escaped(tmp_path):
    text = write(tmp_path / "run")
    assert "&lt;b&gt;bold" in text
    assert "<b>bold" not in text
    rows = re.findall(r"<tr><td>(0/\d)<td class=n>([\d.]+)", text)
    assert rows == [("0/1", "0.750"), ("0/0", "0.250")]
    assert ">0.01</b>" in text


def test_a_run_that_computes_has_iterations_and_no_empty_learning_curve(tmp_path):
    text = write(tmp_path / "computed")
    assert "Learning curve" not in text
    assert "environment steps</text>" not in text
    assert "Learning curve" in write(tmp_path / "learned", env_steps=(0, 100, 200))


RANKING = {
    "names": ["0/0", "0/1", "1/0"], "win_rates": [[None, None, 0.25], [None, None, 1.0], [0.75, 0.0, None]],
    "elo": {"prior_draws": 1.0, "mean": 0.0, "ratings": [-31.4, 52.0, -20.6]},
    "alpha_rank": {"model": "a population for each player", "alpha": 100.0, "population_size": 50, "masses": [0.125, 0.875, 1.0]},
}  # fmt: skip


def ranked(folder, **changed):
    write(folder)
    (folder / "population" / "ranking.json").write_text(json.dumps(RANKING | changed))
    return render(folder).read_text()


def cross_play_of(text):
    picture = next(svg for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "cross-play" in svg)
    return dict(re.findall(r"<title>(\d+, \d+): ([^<]+)</title>", picture))


def test_members_have_their_ratings_and_who_beats_whom_is_drawn(tmp_path):
    text = ranked(tmp_path / "run")
    rows = re.findall(r"<tr><td>(0/\d)<td class=n>[\d.]+<td class=n>([-\d.]+)<td class=n>([\d.]+)", text)
    assert rows == [("0/1", "52", "0.875"), ("0/0", "-31", "0.125")]
    assert cross_play_of(text) == {"0, 0": "0.25", "1, 0": "1"}  # two populations: the members of one against those of the other
    assert "α=100 per unit of return, a population for each player, with 50" in text


def test_members_of_one_population_are_drawn_against_one_another(tmp_path):
    text = ranked(tmp_path / "run", names=["0/0", "0/1", "0/2"])
    assert cross_play_of(text) == {"0, 2": "0.25", "1, 2": "1", "2, 0": "0.75", "2, 1": "0"}


def test_ratings_that_were_left_out_say_why(tmp_path):
    text = ranked(tmp_path / "run", elo={"left_out": "no wins"}, alpha_rank={"left_out": "4,000 states"}, win_rates=None)
    assert "No Elo ratings: no wins. No α-Rank: 4,000 states." in text
    assert "cross-play" not in text
    assert "<td>0/1<td class=n>0.750<td class=n>–<td class=n>–" in text


@pytest.mark.parametrize("missing", ["history.jsonl", "members.json", "payoffs.json"])
def test_a_missing_file_is_no_error(tmp_path, missing):
    write(tmp_path / "run")
    (tmp_path / "run" / "population" / missing).unlink()
    assert "Populations" in render(tmp_path / "run").read_text()


def test_large_tables_are_drawn_as_means_of_blocks(tmp_path):
    payoffs = [[float(i == j) for j in range(130)] for i in range(130)]
    picture = write(tmp_path / "run", payoffs=payoffs, sizes=(130, 130))
    assert "cells are means of 3 x 3" in picture
    assert "<title>129, 129: 1</title>" in picture  # the last block has one cell
    assert "<title>0, 0: 0.3333</title>" in picture


def test_payoffs_of_more_players_and_of_schemes_without_a_table_are_said(tmp_path):
    assert "3 players aren't drawn" in write(tmp_path / "three", payoffs=None, sizes=(2, 2, 2))
    assert "needs no payoffs" in write(tmp_path / "none", payoffs=None, sizes=(0, 0))
