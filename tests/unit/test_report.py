"""The report page, read back as HTML and SVG."""

import json
import re
from html.parser import HTMLParser

import pytest

from marl_hpc.report import render
from marl_hpc.report.svg import Line, plot, thin_out


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def write_run(folder, lines, summary=None):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("seed: 0\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return render(folder).read_text()


def evaluations(values):
    return [
        {
            "time_s": i,
            "env_steps": 1000 * i,
            "learner_steps": i,
            "evaluate/return_mean": v,
            "evaluate/return_low": v - 1,
            "evaluate/return_high": v + 1,
        }
        for i, v in enumerate(values, 1)
    ]


def curve(text, label):
    points = re.search(rf'<polyline data-label="{re.escape(label)}"[^>]*points="([^"]+)"', text)[1]
    return [tuple(map(float, point.split(","))) for point in points.split()]


def test_a_rising_return_is_drawn_rising(tmp_path):
    points = curve(write_run(tmp_path / "run", evaluations([-27, -24, -21, -20])), "evaluated, 95 % interval")
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True), "SVG's y axis points down"


def test_page_loads_nothing_from_anywhere(tmp_path):
    text = write_run(tmp_path / "run", evaluations([-27, -20]), {"status": "finished"})
    for tag, attributes in Tags(text).found:
        assert tag not in ("script", "img", "link", "iframe"), tag
        assert "src" not in attributes
    assert "http://" not in text
    assert "https://" not in text


def test_markup_in_a_file_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    lines = [{"time_s": 1, "env_steps": 1, "learner_steps": 1, f"loss/{evil}": 1.0}]
    summary = {"status": "failed", "exit_reason": evil, "algorithm": evil, "world": [{"role": evil}], "faults": [evil]}
    text = write_run(tmp_path / "run", lines, summary)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("lines", [[], evaluations([-20]), [{"time_s": 1, "env_steps": 1, "learner_steps": 1, "loss/value": None}]])
def test_a_run_with_little_in_it_has_a_page(tmp_path, lines):
    assert "running" in write_run(tmp_path / "run", lines)


def test_the_line_that_is_being_written_is_passed_over(tmp_path):
    write_run(tmp_path / "run", evaluations([-27, -20]))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"time_s": 3, "env_st')
    assert len(curve(render(tmp_path / "run").read_text(), "evaluated, 95 % interval")) == 2


def test_time_shares_are_of_the_roles_own_time(tmp_path):
    split = {"0": {"role": "learner/0", "wall_s": 10.0, "computing": {"learn": 4.0}, "waiting": {"dataset shards": 6.0}}}
    text = write_run(tmp_path / "run", [], {"status": "finished", "time_split": split})
    widths = [float(width) for width in re.findall(r"style='width:([\d.]+)%;", text)]
    assert widths == [40.0, 60.0]


def test_thousands_of_points_are_thinned_and_keep_their_course():
    thinned = thin_out([(float(x), x * 2.0) for x in range(10_000)])
    assert len(thinned) <= 500
    assert all(abs(y - 2 * x) < 1e-9 for x, y in thinned)


def test_a_constant_curve_has_an_axis():
    assert plot([Line("flat", [(0.0, 25.0), (10.0, 25.0)])], "x", "y").count('class="grid"') >= 2
