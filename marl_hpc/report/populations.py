"""The part of a run's page that is about its populations: how far from equilibrium, who meets whom, and what policies return against one
another. Torch-free; may import this package's `svg` only."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from marl_hpc.report.svg import Line, plot, raster

MOST_MEMBERS = 20
LOGARITHMIC = 20.0  # a curve of positive numbers that spans more than this factor is drawn by its logarithm


def section(folder: Path) -> str:
    """HTML of RUN/population; nothing where a run has none."""
    if not folder.is_dir():
        return ""
    history, members, table = _lines(folder / "history.jsonl"), _read(folder / "members.json"), _read(folder / "payoffs.json")
    parts = ["<h2>Populations</h2>", _gaps(history)]
    last = history[-1]["mixtures"] if history else []
    parts += [_mixtures(history, player) for player in range(len(last))]
    parts += [_payoffs(table), _members(members, last)]
    return "\n".join(part for part in parts if part)


def _gaps(history: Sequence[dict[str, Any]]) -> str:
    points = [
        (float(line["iteration"]), float(line["nash_conv"])) for line in history if isinstance(line.get("nash_conv"), int | float)
    ]
    if not points:
        return "<p class=\"empty\">NashConv isn't known: the game can't be written down whole.</p>"
    values = [y for _, y in points]
    title = "NashConv, sum over players"
    if min(values) > 0 and max(values) > LOGARITHMIC * min(values):
        points, title = [(x, math.log10(y)) for x, y in points], "NashConv, sum over players, log10"
    return plot([Line("NashConv", points)], "iteration", title, height=260)


def _mixtures(history: Sequence[dict[str, Any]], player: int) -> str:
    """Iteration by member, the darker the more it is played."""
    size = max(len(line["mixtures"][player]) for line in history)
    rows = [[(line["mixtures"][player] + [None] * size)[k] for line in history] for k in range(size)]
    return raster(rows, "iteration", "member", f"player {player}: how much of its mixture each member is", height=230)


def _payoffs(table: dict[str, Any]) -> str:
    sizes, payoffs = table.get("sizes") or [], table.get("payoffs")
    if len(sizes) != 2:
        return (
            f'<p class="empty">Payoffs of {len(sizes)} players aren\'t drawn; they are in population/payoffs.json.</p>'
            if sizes
            else ""
        )
    if not payoffs or not all(sizes):
        return '<p class="empty">This scheme needs no payoffs, so none were found out.</p>'
    return raster(payoffs[0], "member of player 1", "member of player 0", "what player 0 gets on average", height=420)


def _members(members: dict[str, Any], last: Sequence[Sequence[float]]) -> str:
    populations, found = members.get("populations") or [], members.get("members") or []
    share: dict[str, float] = {}
    for player, mixture in enumerate(last):
        for k, x in enumerate(mixture):
            name = f"{populations[player]}/{k}" if player < len(populations) else ""
            share[name] = max(share.get(name, 0.0), x)
    ranked = sorted(found, key=lambda member: -share.get(member["id"], 0.0))
    rows = [
        f"<tr><td>{escape(str(m['id']))}<td class=n>{share.get(m['id'], 0.0):.3f}<td>{escape(str(m['made_by']))}<td>{escape(str(m.get('played', '–')))}"
        f"<td class=n>{m['iteration']}<td class=n>{'–' if m['parent'] is None else m['parent']}<td class=n>{m['env_steps']:,}"
        for m in ranked[:MOST_MEMBERS]
    ]
    if not rows:
        return ""
    rest = (
        f"<p class=soft>and {len(ranked) - MOST_MEMBERS} more, in population/members.json</p>" if len(ranked) > MOST_MEMBERS else ""
    )
    head = "<tr><th>member<th>share of the last mixture<th>made by<th>played<th>iteration<th>started from<th>environment steps"
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>{rest}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that is being written
    return found
