"""From a run folder to its page. Everything that comes from files is escaped; what is missing is said, never an error."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from marl_hpc.report import populations
from marl_hpc.report.svg import Line, number, plot

BADGES = {"finished": "#1a7f37", "stopped": "#9a6700", "failed": "#cf222e", "running": "#1f6feb"}
COMPUTING = ("#1f6feb", "#2da44e", "#8250df", "#bf8700", "#0a7ea4", "#cf222e", "#57606a", "#e16f24", "#116329", "#bf3989")
STEPS = {"env_steps": "environment steps", "learner_steps": "iterations"}
WAITING = ("#c9d1d9", "#cfe3fb", "#f3dcc0", "#d8ecd5", "#ead7f2", "#f6d5d8")
STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--card:#f6f8fa;--line:#d1d9e0}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--card:#151b23;--line:#3d444d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:940px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}.soft{color:var(--soft)}
.badge{color:#fff;border-radius:1rem;padding:.15rem .7rem;font-size:.85rem;vertical-align:.25rem;margin-left:.6rem}
.figures{display:flex;flex-wrap:wrap;gap:.7rem;margin:1.2rem 0}.figure{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .9rem;flex:1 1 9rem}
.figure b{display:block;font-size:1.35rem}.figure span{color:var(--soft);font-size:.85rem}
svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}svg .title{fill:var(--ink)}svg .grid{stroke:var(--line)}
svg .reference{stroke:var(--soft);stroke-dasharray:6 4}.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:.8rem}
table{border-collapse:collapse;width:100%;font-size:.88rem}td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}pre{background:var(--card);border:1px solid var(--line);padding:.8rem;overflow-x:auto;font-size:.8rem}
.bar{display:flex;height:1.3rem;border-radius:.25rem;overflow:hidden;background:var(--card);border:1px solid var(--line)}.bar i{display:block;height:100%}
.bar i.wait{background-image:repeating-linear-gradient(45deg,transparent 0 4px,rgba(90,100,110,.35) 4px 6px)}
.key i{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 .9rem;border-radius:.15rem;vertical-align:-.05rem}.key i.wait{background-image:repeating-linear-gradient(45deg,transparent 0 3px,rgba(90,100,110,.4) 3px 5px)}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}}
"""


def render(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, at any time of the run; returns its path."""
    run_dir = Path(run_dir)
    summary = _read_json(run_dir / "summary.json")
    metrics = list(_read_lines(run_dir / "metrics.jsonl"))
    config = run_dir / "config.yaml"
    text = page(
        run_dir.name,
        summary,
        metrics,
        config.read_text() if config.exists() else "",
        populations.section(run_dir / "population", metrics),
    )
    path = run_dir / "report.html"
    aside = run_dir / f".report.{os.getpid()}.tmp"
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def page(name: str, summary: dict[str, Any], metrics: list[dict[str, Any]], config: str, population: str = "") -> str:
    """The whole page as text."""
    status = summary.get("status", "running")
    scale = (summary.get("evaluate") or {}).get("return_scale") or "scale in summary.json"
    environment = summary.get("environment") or {}
    random_return = summary.get("random_return")
    reference = (random_return, f"random policy {number(random_return)}") if isinstance(random_return, int | float) else None
    learning = [
        Line("evaluated, 95 % interval", _series(metrics, "evaluate/return_mean"), _band(metrics)),
        Line("training episodes", _series(metrics, "train/return_mean"), thin=True),
    ]
    computed = bool(population) and bool(metrics) and not any(line.get("env_steps") for line in metrics)  # nothing was learned
    about = " · ".join(escape(str(x)) for x in (environment.get("version"), summary.get("algorithm"), summary.get("paradigm")) if x)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(name)}</title><style>{STYLE}</style>",
        f"<h1>{escape(name)}<span class=badge style='background:{BADGES.get(status, '#59636e')}'>{escape(status)}</span></h1>",
        f"<div class=soft>{about}</div>",
        _reason(summary),
        _figures(summary, metrics),
        *(
            []
            if computed
            else [
                "<h2>Learning curve</h2>",
                plot(learning, "environment steps", f"return ({scale})", reference=reference),
                population,
                "<h2>Throughput</h2>",
                plot(
                    [Line("env steps/s", _series(metrics, "throughput/env_steps_per_s", "time_s"))],
                    "seconds of training",
                    "env steps per second",
                    height=230,
                ),
            ]
        ),
        population if computed else "",
        "<h2>Time per role</h2>",
        _times(summary.get("time_split") or {}),
        "<h2>Layout</h2>",
        _table(summary.get("world") or []),
        "<h2>Diagnostics</h2>",
        _diagnostics(metrics, "learner_steps" if computed else "env_steps"),
        f"<details><summary><b>Configuration</b></summary><pre>{escape(config)}</pre></details>",
        _provenance(summary),
    ]
    return "\n".join(parts)


def _reason(summary: dict[str, Any]) -> str:
    reason = str(summary.get("exit_reason") or "")
    if "\n" in reason:
        return f"<pre>{escape(reason)}</pre>"
    return f"<div class=soft>{escape(reason)}</div>"


def _figures(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    figures: list[tuple[str, str]] = []
    evaluated = summary.get("evaluate")
    if evaluated:
        low, high = evaluated["interval"]
        figures.append(
            (
                f"{evaluated['return_mean']:.2f}",
                f"evaluated return, mean of {evaluated['episodes']} episodes<br>{escape(evaluated['return_scale'])}",
            )
        )
        figures.append((f"{evaluated['iqm']:.2f}", f"interquartile mean<br>95 % interval {low:.2f} to {high:.2f}"))
    reached = summary.get("population") or {}
    if _finite(reached.get("nash_conv")):
        figures.append((f"{max(reached['nash_conv'], 0):.4g}", "NashConv, sum over players<br>of what the populations amount to"))
    last = metrics[-1] if metrics else {}
    figures.append(
        (
            number(summary.get("env_steps", last.get("env_steps", 0))),
            f"environment steps<br>{number(summary.get('learner_steps', 0))} updates",
        )
    )
    seconds = float(summary.get("wall_s", last.get("time_s", 0.0)))
    rate = summary.get("env_steps_per_s")
    figures.append((f"{int(seconds) // 60}:{int(seconds) % 60:02d}", "of training, minutes:seconds"))
    if rate:
        figures.append((f"{rate:,.0f}", "env steps per second<br>of whole training"))
    return (
        "<div class=figures>"
        + "".join(f"<div class=figure><b>{value}</b><span>{label}</span></div>" for value, label in figures)
        + "</div>"
    )


def _times(split: dict[str, Any]) -> str:
    if not split:
        return '<p class="empty">No role has reported its time yet.</p>'
    computing = list(dict.fromkeys(name for entry in split.values() for name in entry.get("computing", {})))
    waiting = list(dict.fromkeys(name for entry in split.values() for name in entry.get("waiting", {})))
    color = {("computing", name): COMPUTING[i % len(COMPUTING)] for i, name in enumerate(computing)}
    color |= {("waiting", name): WAITING[i % len(WAITING)] for i, name in enumerate(waiting)}
    style = {"computing": "", "waiting": " class=wait"}
    rows, bars = [], []
    for rank, entry in sorted(split.items(), key=lambda item: int(item[0])):
        wall = max(float(entry.get("wall_s", 0.0)), 1e-9)
        pieces = []
        for kind in ("computing", "waiting"):
            for name, seconds in entry.get(kind, {}).items():
                label = f"{name}" if kind == "computing" else f"waiting for {name}"
                share = 100 * seconds / wall
                pieces.append(
                    f"<i{style[kind]} title='{escape(label)}: {seconds:.1f} s' style='width:{share:.2f}%;background-color:{color[kind, name]}'></i>"
                )
                if seconds >= 0.005:
                    rows.append(
                        (
                            share,
                            f"<tr><td>{escape(str(rank))}<td>{escape(str(entry.get('role')))}<td>{escape(label)}<td class=n>{seconds:.2f}<td class=n>{share:.1f} %",
                        )
                    )
        bars.append(f"<tr><td>{escape(str(entry.get('role')))}<td style='width:80%'><div class=bar>{''.join(pieces)}</div>")
    keys = [
        f"<i{style[kind]} style='background-color:{value}'></i>{'waiting for ' if kind == 'waiting' else ''}{escape(name)}"
        for (kind, name), value in color.items()
    ]
    table = "<table><tr><th>rank<th>role<th>phase<th>seconds<th>of its time" + "".join(row for _, row in rows) + "</table>"
    return f"<div class=key>{''.join(keys)}</div><table>{''.join(bars)}</table><details><summary>seconds</summary><div class=wide>{table}</div></details>"


def _diagnostics(metrics: list[dict[str, Any]], x: str) -> str:
    shown = {"train/return_mean", "throughput/env_steps_per_s"}
    names = list(dict.fromkeys(name for line in metrics for name in line if "/" in name and not name.startswith("evaluate/")))
    plots = [
        plot([Line(name, _series(metrics, name, x), thin=True)], STEPS[x], name, width=420, height=220)
        for name in names
        if name not in shown
    ]
    return (
        f"<div class=small>{''.join(f'<div>{each}</div>' for each in plots)}</div>"
        if plots
        else '<p class="empty">None recorded.</p>'
    )


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return '<p class="empty">Not known yet.</p>'
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(row.get(column, '')))}" for column in columns) for row in rows)
    return f"<div class=wide><table><tr>{head}{body}</table></div>"


def _provenance(summary: dict[str, Any]) -> str:
    git = summary.get("git") or {}
    commit = f"commit {git['commit'][:12]}{' (with changes)' if git.get('dirty') else ''}" if git.get("commit") else ""
    found = [commit, *(f"{name} {version}" for name, version in (summary.get("versions") or {}).items())]
    faults = "".join(f"<li>{escape(str(fault))}" for fault in summary.get("faults") or [])
    return (
        f"<h2>Faults</h2><ul>{faults}</ul>" if faults else ""
    ) + f"<p class=soft>{' · '.join(escape(x) for x in found if x)}</p>"


def _series(metrics: Iterable[dict[str, Any]], name: str, x: str = "env_steps") -> list[tuple[float, float]]:
    return [(float(line[x]), float(line[name])) for line in metrics if _finite(line.get(name)) and _finite(line.get(x))]


def _band(metrics: Iterable[dict[str, Any]]) -> list[tuple[float, float, float]]:
    low, high = "evaluate/return_low", "evaluate/return_high"
    return [
        (float(line["env_steps"]), float(line[low]), float(line[high]))
        for line in metrics
        if _finite(line.get(low)) and _finite(line.get(high))
    ]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _read_lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that is being written
