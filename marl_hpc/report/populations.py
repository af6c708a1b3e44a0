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
LOGARITHMIC = 20.0  # a curve that spans more than this factor is drawn by its logarithm
ROUNDING = 1e-6  # what is less is as good as nothing


# what NashConv is drawn over beside iterations, where metrics record it and it goes on
OVER = {"env_steps": "environment steps", "population/cpu_s": "CPU seconds", "time_s": "seconds of training"}


def section(folder: Path, metrics: Sequence[dict[str, Any]] = ()) -> str:
    """HTML of RUN/population; nothing where a run has none. `metrics` are the run's, line by line."""
    if not folder.is_dir():
        return ""
    history, members, table = _lines(folder / "history.jsonl"), _read(folder / "members.json"), _read(folder / "payoffs.json")
    ranking = _read(folder / "ranking.json")
    parts = ["<h2>Populations</h2>", _gaps(history, metrics)]
    last = history[-1]["mixtures"] if history else []
    parts += [_mixtures(history, player) for player in range(len(last))]
    parts += [_payoffs(table), _cross_play(ranking), _members(members, last, ranking)]
    return "\n".join(part for part in parts if part)


def _gaps(history: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]) -> str:
    """NashConv by iteration, and over whatever else is counted."""
    points = _points(history, "iteration", "nash_conv")
    if not points:
        return "<p class=\"empty\">NashConv isn't known: the game can't be written down whole.</p>"
    curves = {title: _points(metrics, name, "population/nash_conv") for name, title in OVER.items()}
    plots = [
        f"<div>{_curve(own, title, 420)}</div>" for title, own in curves.items() if len({x for x, _ in own}) > 1
    ]  # what is counted at all
    floor = (
        f"<p class=soft>By logarithm, NashConv below {ROUNDING:g} is drawn as that.</p>"
        if min(y for _, y in points) < ROUNDING
        else ""
    )
    return _curve(points, "iteration", 860) + f"<div class=small>{''.join(plots)}</div>{floor}"


def _points(lines: Sequence[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(float(line[x]), float(line[y])) for line in lines if all(isinstance(line.get(name), int | float) for name in (x, y))]


def _curve(points: list[tuple[float, float]], x_title: str, width: int) -> str:
    least, most = min(y for _, y in points), max(y for _, y in points)
    title = "NashConv, sum over players"
    if most > LOGARITHMIC * max(least, ROUNDING):
        points = [(x, math.log10(max(y, ROUNDING))) for x, y in points]
        title += ", log10"
    return plot([Line("NashConv", points)], x_title, title, width=width, height=260)


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


def _cross_play(ranking: dict[str, Any]) -> str:
    """Who beats whom. Where only members of different populations meet, of two the first ones' rows and the others' columns."""
    rates, names = ranking.get("win_rates"), ranking.get("names") or []
    if not rates:
        return ""
    rows = columns = range(len(names))
    owners = [name.partition("/")[0] for name in names]
    apart = all(rates[i][j] is None for i in rows for j in columns if owners[i] == owners[j])
    if apart and len(set(owners)) == 2:
        rows, columns = ([i for i in range(len(names)) if owners[i] == owner] for owner in dict.fromkeys(owners))
    titles = [f"member, {names[some[0]]} … {names[some[-1]]}" for some in (columns, rows)]
    matrix = [[rates[i][j] for j in columns] for i in rows]
    return raster(matrix, titles[0], titles[1], "cross-play: how often the row's member wins, draws half", height=420)


def _rated(ranking: dict[str, Any]) -> str:
    """What the ratings in the table of members were computed by, or why there are none."""
    elo, alpha_rank = ranking.get("elo") or {}, ranking.get("alpha_rank") or {}
    said = []
    if "left_out" in elo:
        said.append(f"No Elo ratings: {elo['left_out']}.")
    elif elo:
        said.append(
            f"Elo: ratings of maximum likelihood; draws of each member with one of rating {elo['mean']:g} that are added: {elo['prior_draws']:g}."
        )
    if "left_out" in alpha_rank:
        said.append(f"No α-Rank: {alpha_rank['left_out']}.")
    elif alpha_rank:
        said.append(
            f"α-Rank: α={alpha_rank['alpha']:g} per unit of return, {alpha_rank['model']}, with {alpha_rank['population_size']} individuals."
        )
    return f"<p class=soft>{escape(' '.join(said))}</p>" if said else ""


def _members(members: dict[str, Any], last: Sequence[Sequence[float]], ranking: dict[str, Any]) -> str:
    populations, found = members.get("populations") or [], members.get("members") or []
    share: dict[str, float] = {}
    for player, mixture in enumerate(last):
        for k, x in enumerate(mixture):
            name = f"{populations[player]}/{k}" if player < len(populations) else ""
            share[name] = max(share.get(name, 0.0), x)
    ranked = sorted(found, key=lambda member: -share.get(member["id"], 0.0))
    names = ranking.get("names") or []
    elo = dict(zip(names, (ranking.get("elo") or {}).get("ratings", []), strict=False))
    masses = dict(zip(names, (ranking.get("alpha_rank") or {}).get("masses", []), strict=False))
    rows = [
        f"<tr><td>{escape(str(m['id']))}<td class=n>{share.get(m['id'], 0.0):.3f}"
        f"<td class=n>{_number(elo.get(m['id']), 0)}<td class=n>{_number(masses.get(m['id']), 3)}<td>{escape(str(m['made_by']))}<td>{escape(str(m.get('played', '–')))}"
        f"<td class=n>{m['iteration']}<td class=n>{'–' if m['parent'] is None else m['parent']}<td class=n>{m['env_steps']:,}"
        for m in ranked[:MOST_MEMBERS]
    ]
    if not rows:
        return ""
    rest = (
        f"<p class=soft>and {len(ranked) - MOST_MEMBERS} more, in population/members.json</p>" if len(ranked) > MOST_MEMBERS else ""
    )
    head = (
        "<tr><th>member<th>share of the last mixture<th>Elo<th>α-Rank<th>made by<th>played<th>iteration<th>started from"
        "<th>environment steps"
    )
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>{rest}{_rated(ranking)}"


def _number(x: float | None, digits: int) -> str:
    return "–" if x is None else f"{x:.{digits}f}"


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
