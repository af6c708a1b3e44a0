"""Whom an agent that learns meets, and what a population amounts to: each scheme as a function of what is known of the populations.

A scheme is a plain function `scheme(known, section) -> Strategy`; `SCHEMES` maps names to functions. Members are in the order in which
they were frozen, number 0 is what a population began with. Pure NumPy; may import meta-solvers and config.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import numpy as np

from marl_hpc import meta_solvers
from marl_hpc.config import ConfigError, Population
from marl_hpc.keyed_random import RESET, generator
from marl_hpc.meta_solvers.normal_form import TOLD, independent

LEARNS = -1  # in place of a member's number: who plays as it learns; LEARNS - k by line k
BOLD = 0.1  # the rate of wins below which a main exploiter leaves the main agents of today alone (Vinyals et al. 2019)
ZERO_SUM_TOLERANCE = 1e-6  # by how much the sum of both payoffs may vary, as a share of the largest
LEAGUE_RESETS = 0.25  # how often a league exploiter begins anew after a stage (the same)


class Known(NamedTuple):
    """What a scheme may look at, when a stage begins."""

    stage: int
    lines: int  # policies of a player that learn side by side; each stage, each of them joins its population
    players: int
    payoffs: np.ndarray | None  # [players, *sizes], NaN where the scheme doesn't need them; None where it needs none
    # where the scheme needs them: wins[k][i][j] [size_j] are the rates of wins, draws counting half, of the newest policy of player i's
    # line k against those of j
    wins: Sequence[Sequence[Sequence[np.ndarray]]] | None

    @property
    def size(self) -> int:
        """Of each player's population."""
        return 1 + self.stage * self.lines


class Meeting(NamedTuple):
    """A distribution over whom an episode is played by."""

    profiles: np.ndarray  # [M, players] numbers of members, or LEARNS - k for who plays as line k learns
    weights: np.ndarray  # [M] probabilities


class Strategy(NamedTuple):
    meetings: tuple[tuple[Meeting, ...], ...]  # [lines][players], where that player learns, and stands as LEARNS
    live: tuple[float, ...]  # for each line: the share of its episodes in which all play as line 0 learns instead, and learn
    mixtures: tuple[np.ndarray, ...]  # for each player [size]: what its population amounts to


Scheme = Callable[[Known, Population], Strategy]


def self_play(known: Known, section: Population) -> Strategy:
    """All play as they learn. It amounts to what was frozen last."""
    mixtures = [newest(known.size)] * known.players
    return Strategy((meetings_of(mixtures),), (1.0,), tuple(mixtures))


def fictitious_play(known: Known, section: Population) -> Strategy:
    """An approximate best response to the average of the past, drawn from as it was learned (Heinrich et al. 2015, whose theorem lets it come
    closer to a best response over time); a pure one with population.greedy. It amounts to that average. What populations began with counts
    until something has been learned."""
    mixtures = [recent(known.size, max(1, known.size - 1))] * known.players
    return Strategy((meetings_of(mixtures),), (0.0,), tuple(mixtures))


def delta_uniform(known: Known, section: Population) -> Strategy:
    """Opponents uniformly among the newest share `delta` of the past (Bansal et al. 2018, section 3.3), in a share `live` of episodes the
    present. It amounts to what was frozen last."""
    mixtures = [recent(known.size, max(1, math.ceil(known.size * section.delta - 1e-9)))] * known.players
    return Strategy((meetings_of(mixtures),), (section.live,), (newest(known.size),) * known.players)


def league(known: Known, section: Population) -> Strategy:
    """Prioritized fictitious self-play (Vinyals et al. 2019, Methods): main agents meet each member in proportion to (1 - rate of wins)^
    `power` of their newest policy against it; in a share `live` of episodes they meet themselves, as they learn. It amounts to what they
    froze last.

    League exploiters meet everybody in that way. Main exploiters meet the main agents as they learn, or while they hardly ever win
    against those their past, in proportion to rate x (1 - rate).
    """
    assert known.wins is not None, "the league's table is simulated before"
    kinds = ["", *section.exploiters]
    meetings = []
    for kind, wins in zip(kinds, known.wins, strict=True):
        meetings.append(tuple(
            against_main(player, wins[player], known) if kind == "main" else against_all(player, wins[player], section.power)
            for player in range(known.players)
        ))  # fmt: skip
    live = (section.live, *[0.0] * len(section.exploiters))
    mine = newest(known.size) if known.stage == 0 else np.eye(known.size)[number_of(known.stage, 0, known.lines)]
    return Strategy(tuple(meetings), live, (mine,) * known.players)


def against_all(player: int, wins: Sequence[np.ndarray], power: float) -> Meeting:
    """Everybody, the more often the less this player's newest policy wins; `wins[j]` [size_j] are its rates."""
    weights = [(1 - rates) ** power for rates in wins]
    return meeting(player, [normalized(x) for x in weights])


def against_main(player: int, wins: Sequence[np.ndarray], known: Known) -> Meeting:
    """The main agents of today, or those of the past where they are too strong."""
    others = [j for j in range(known.players) if j != player]
    today = number_of(known.stage, 0, known.lines) if known.stage else 0
    if np.mean([wins[j][today] for j in others]) > BOLD:
        return Meeting(np.full((1, known.players), LEARNS), np.ones(1))
    past = [0, *(number_of(stage, 0, known.lines) for stage in range(1, known.stage + 1))]
    mixtures = []
    for rates in wins:
        weights = np.zeros(len(rates))
        weights[past] = rates[past] * (1 - rates[past])
        if not weights.any():
            weights[past] = 1
        mixtures.append(normalized(weights))
    return meeting(player, mixtures)


def psro(known: Known, section: Population) -> Strategy:
    """Best responses to what the meta-solver says (Lanctot et al. 2017); it amounts to the meta-strategy.

    Where the meta-solver asks for several best responses of a player at once, as rectified PSRO (Balduzzi et al. 2019) and PSRO for
    correlated equilibria (Marris et al. 2021) do, `responses` lines learn one each: those for the strategies that are played most, in this
    order. Of fewer that are asked for, the first are learned by several lines.
    """
    meetings, mixtures = solved(known, section, range(known.size), known.lines)
    return Strategy(meetings, (0.0,) * known.lines, mixtures)


def pipeline_psro(known: Known, section: Population) -> Strategy:
    """Several levels of best responses learn side by side (McAleer et al. 2020): each answers the meta-strategy over all levels below it,
    those that are final and those that still learn, as they were frozen last. Each stage makes the lowest one final. It amounts to the
    meta-strategy over all but the highest."""
    below = levels_below(known.stage, known.lines)
    meetings: list[tuple[Meeting, ...]] = [()] * known.lines
    mixtures: tuple[np.ndarray, ...] = ()
    for level in range(known.stage + 1, known.stage + known.lines + 1):
        (meetings[(level - 1) % known.lines],), mixtures = solved(known, section, below[: level if known.stage else 1], 1)
    return Strategy(tuple(meetings), (0.0,) * known.lines, mixtures)


def levels_below(stage: int, lines: int) -> list[int]:
    """The members that stand for levels 0, 1, ... below the highest that learns in a stage.

    >>> levels_below(0, 2), levels_below(1, 2), levels_below(2, 2)
    ([0], [0, 1, 2], [0, 1, 4, 3])
    """
    final = [number_of(level, (level - 1) % lines, lines) for level in range(1, stage + 1)]
    learning = [number_of(stage, (level - 1) % lines, lines) for level in range(stage + 1, stage + lines)] if stage else []
    return [0, *final, *learning]


def anytime_psro(known: Known, section: Population) -> Strategy:
    """Best responses that learn while the mixture they answer is being updated against them, by regret matching+ (McAleer et al. 2022;
    Tammelin et al. 2015): one update each stage, `updates` stages for a best response. It amounts to the average of the mixtures that the
    newest best responses were learned against. Raises ValueError where payoffs don't sum to a constant."""
    assert known.payoffs is not None, "the table is complete before"
    found = ~np.isnan(known.payoffs[0])
    total = known.payoffs.sum(0)[found]
    if len(total) and np.ptp(total) > ZERO_SUM_TOLERANCE * np.abs(known.payoffs[:, found]).max():
        raise ValueError(
            f"anytime_psro is for two-player zero-sum games, and payoffs sum to {total.min():.6g} … {total.max():.6g}; choose "
            "population=psro with a population.meta_solver for general-sum games, such as coarse_correlated_equilibrium"
        )
    averages = played = [np.ones(1)] * 2
    for begun in range(0, known.stage + 1, section.updates):
        finals = np.arange(0, begun + 1, section.updates)
        played = [carried(average, len(finals)) for average in averages]
        regrets, sums = np.zeros((2, len(finals))), np.zeros((2, len(finals)))
        for step, snapshot in enumerate(range(begun + 1, min(begun + section.updates, known.stage) + 1), 1):
            for player in range(2):
                cells = (finals, snapshot) if player == 0 else (snapshot, finals)
                sums[player] += step * played[player]
                returns = known.payoffs[player, *cells]
                regrets[player] = np.maximum(regrets[player] + returns - returns @ played[player], 0)
                played[player] = normalized(regrets[player])
        averages = [normalized(x) if x.any() else last for x, last in zip(sums, averages, strict=True)]
    spread = np.zeros((2, 2, known.size))  # [played or average, player]
    for k, mixtures in enumerate((played, averages)):
        for player, mixture in enumerate(mixtures):
            spread[k, player, : len(mixture) * section.updates : section.updates] = mixture
    return Strategy((meetings_of(list(spread[0])),), (0.0,), tuple(spread[1]))


def carried(mixture: np.ndarray, size: int) -> np.ndarray:
    """A mixture where its population has grown to this size: what is new is played as often as it would be uniformly.

    >>> carried(np.array([0.5, 0.5]), 3).round(3).tolist()
    [0.333, 0.333, 0.333]
    """
    new = size - len(mixture)
    return np.append(mixture * (1 - new / size), np.full(new, 1 / size))


def solved(
    known: Known, section: Population, members: Sequence[int], lines: int
) -> tuple[tuple[tuple[Meeting, ...], ...], tuple[np.ndarray, ...]]:
    """(for so many lines whom each player meets, mixtures [size]), by the meta-solver's solution of the game among some members of each
    population."""
    assert known.payoffs is not None, "the table is complete before"
    chosen = np.array(members)
    found = configured(section)(known.payoffs[(slice(None), *np.ix_(*[chosen] * known.players))])
    by_player = []
    for player, (targets, mixture) in enumerate(zip(found.opponents, found.mixtures, strict=True)):
        order = most_played(mixture, len(targets))
        meetings = []
        for line in range(lines):
            target = np.asarray(targets[order[line % len(order)]])
            places = np.argwhere(target > 1e-9)
            weights = target[tuple(places.T)]
            meetings.append(Meeting(np.insert(chosen[places], player, LEARNS, axis=1), weights / weights.sum()))
        by_player.append(meetings)
    mixtures = []
    for mixture in found.mixtures:
        spread = np.zeros(known.size)
        spread[chosen] = mixture
        mixtures.append(spread)
    return tuple(zip(*by_player, strict=True)), tuple(mixtures)


def most_played(mixture: np.ndarray, targets: int) -> np.ndarray:
    """A player's targets by how often the strategy is played that they belong to, the most often first; as they are where they belong to
    none.

    >>> most_played(np.array([0.2, 0.0, 0.5, 0.3]), 3).tolist(), most_played(np.array([0.2, 0.8]), 3).tolist()
    ([1, 2, 0], [0, 1, 2])
    """
    played = mixture[mixture > TOLD]
    return np.argsort(-played, kind="stable") if len(played) == targets else np.arange(targets)


SCHEMES: dict[str, Scheme] = {
    "self_play": self_play, "fictitious_play": fictitious_play, "delta_uniform": delta_uniform, "league": league, "psro": psro,
    "pipeline_psro": pipeline_psro, "anytime_psro": anytime_psro, "nfsp": self_play,
}  # fmt: skip
ALL_LEARN = ("self_play", "nfsp")  # nobody meets frozen policies
BEST_RESPONSES = ("psro", "pipeline_psro", "anytime_psro")  # what joins is a best response to a mixture of its own, made greedy


def lines_of(section: Population) -> int:
    """How many policies of a player learn side by side."""
    if section.name == "psro":
        return section.responses
    return section.levels if section.name == "pipeline_psro" else 1 + len(section.exploiters)


def number_of(stage: int, line: int, lines: int) -> int:
    """What the policy of a line is called that was frozen when this stage began, from 1 on; number 0 is what all began with."""
    return 1 + (stage - 1) * lines + line


def begins(section: Population, line: int, stage: int) -> bool:
    """Whether what a line learns in this stage is another policy than in the one before, and starts from scratch where `fresh` asks for
    that."""
    if section.name == "pipeline_psro":
        return (stage - line - 1) % section.levels == 0
    if section.name == "anytime_psro":
        return stage % section.updates == 0
    return True


def resets(section: Population, line: int, stage: int, seed: int) -> bool:
    """Whether a line starts from scratch in this stage."""
    if line and section.name == "league":
        kind = section.exploiters[line - 1]
        return kind == "main" or generator(seed, RESET, line, stage).random() < LEAGUE_RESETS
    return section.fresh and begins(section, line, stage)


def what_learns(section: Population, line: int, stage: int) -> str:
    """What a line's policy is at the end of this stage, in words. Who is drawn from is no best response, however it was learned."""
    answer = "best response" if plays_greedily(section) else "approximate best response"
    if section.name == "pipeline_psro":
        level = next(level for level in range(stage + 1, stage + section.levels + 1) if (level - 1) % section.levels == line)
        return f"{answer}, level {level}" if level == stage + 1 else f"level {level}, still learning"
    if section.name == "anytime_psro":
        return answer if (stage + 1) % section.updates == 0 else "still learning"
    if section.exploiters:
        return f"{section.exploiters[line - 1]} exploiter" if line else "main agent"
    if section.name == "psro" and section.responses > 1:
        return f"{answer}, target {line + 1}"
    return answer if section.name in ("psro", "fictitious_play") else "learned"


def plays_greedily(section: Population) -> bool:
    """Whether what joins takes its most likely actions, instead of being drawn from."""
    return section.name in BEST_RESPONSES if section.greedy is None else section.greedy


def needed(section: Population, stage: int, players: int) -> np.ndarray:
    """[*sizes] bool: the profiles whose payoffs a stage's strategy is made of."""
    size = 1 + stage * lines_of(section)
    if section.name == "pipeline_psro":
        here = np.isin(np.arange(size), levels_below(stage, section.levels))
        return reduce(np.logical_and.outer, [here] * players)
    if section.name == "anytime_psro":
        member = np.arange(size)
        begun = (member - 1) // section.updates * section.updates  # the newest final one when a snapshot was learned
        answers = (member[:, None] % section.updates == 0) & (member[:, None] <= begun) & (member > 0)
        return answers | answers.T
    return np.ones((size,) * players, bool)


def configured(section: Population) -> meta_solvers.MetaSolver:
    """The meta-solver with its options. Raises ConfigError for one, or for an option of it, that doesn't exist."""
    solver = meta_solvers.resolve(section.meta_solver)
    known = list(inspect.signature(solver).parameters)[1:]
    options = dict(section.meta_options or {})
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"population.meta_options has {', '.join(unknown)}, and meta_solver={section.meta_solver} takes {', '.join(known) or 'no options'}"
        )
    return partial(solver, **options) if options else solver


def normalized(weights: np.ndarray) -> np.ndarray:
    """Summing to 1; uniform where there are none."""
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))


def newest(size: int) -> np.ndarray:
    return np.eye(size)[-1]


def recent(size: int, count: int) -> np.ndarray:
    """Uniform over the newest `count`.

    >>> recent(4, 2).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    return (np.arange(size) >= size - count) / count


def meetings_of(mixtures: Sequence[np.ndarray]) -> tuple[Meeting, ...]:
    """Each player against independent draws of the others."""
    return tuple(meeting(player, mixtures) for player in range(len(mixtures)))


def meeting(player: int, mixtures: Sequence[np.ndarray]) -> Meeting:
    """
    >>> meeting(1, [np.array([0.0, 1.0]), np.array([1.0])])
    Meeting(profiles=array([[ 1, -1]]), weights=array([1.]))
    """
    target = independent(mixtures).opponents[player][0]
    places = np.argwhere(target > 0)
    return Meeting(np.insert(places, player, LEARNS, axis=1), target[tuple(places.T)])
