"""Anytime PSRO: a mixture that never gets easier to exploit. Two-player zero-sum games, exactly.

A double oracle solves its populations against one another, and the solution may be easy to beat from outside: NashConv goes up and
down. Here each player's mixture is the least exploitable one of its population against *everything* that the opponent can do, found by
minimizing regret against best responses (McAleer et al. 2022, "Anytime PSRO for two-player zero-sum games"). No table of payoffs is
needed. Pure NumPy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from marl_hpc.games import BestResponse, Game, best_response_to, nash_conv, realization_plan, sequence_returns
from marl_hpc.meta_solvers.normal_form import independent
from marl_hpc.populations.population import PolicyPopulation
from marl_hpc.populations.psro import Iteration, begin, grow, play


class Restricted(NamedTuple):
    """The least exploitable mixture of a population that was found."""

    mixture: np.ndarray  # [policies]
    value: float  # what a best response to it returns to the opponent
    bound: float  # no mixture leaves the opponent less than this
    answers: tuple[BestResponse, ...]  # the opponent's different best responses: to the mixture, then those it played most first


def anytime_psro(
    game: Game,
    *,
    start: str = "pure",
    iterations: int = 100,
    regret_steps: int = 200,
    tolerance: float = 1e-6,
    seed: int = 0,
    population: PolicyPopulation | None = None,
    mixtures: Sequence[np.ndarray] | None = None,
) -> Iterator[Iteration]:
    """Anytime PSRO with exact best responses: `nash_conv` never rises from one iteration to the next.

    Each player mixes its population by `regret_steps` of regret matching+ against the opponent's best responses, and keeps its last
    mixture where that is no better. The opponent adds its best response to the mixture; if that plays as one that is there already, the
    one of those met on the way that isn't and was played most. When there is none, both mixtures are an equilibrium, up to what the
    regret steps leave. Records are those of `psro`, where `gap` says how much that is at most: by how much the populations' least
    exploitable mixtures could be better. Other options are as there; to go on from an earlier loop, give its `population` and the
    `mixtures` of its last iteration, `Iteration.meta.mixtures`. Raises ValueError for a game that isn't two-player zero-sum, and as
    `psro` does.
    """
    if iterations < 1 or regret_steps < 1 or not tolerance >= 0:
        raise ValueError(
            f"iterations={iterations}, regret_steps={regret_steps}, tolerance={tolerance}; expected 1 or more of each, and a tolerance "
            "of 0 or more"
        )
    if game.players != 2 or not game.zero_sum:
        raise ValueError(
            f"{game.name} isn't a two-player zero-sum game, which anytime_psro needs; use psro with another meta-solver"
        )
    population = PolicyPopulation((0, 1)) if population is None else population
    plans = begin(game, population, start=start, seed=seed)
    if mixtures is None:
        mixtures = [np.eye(len(plan))[0] for plan in plans]
    for player, (mixture, plan) in enumerate(zip(mixtures, plans, strict=True)):
        if np.ndim(mixture) != 1 or not 1 <= len(mixture) <= len(plan):
            raise ValueError(f"the mixture of player {player} has shape {np.shape(mixture)} for a population of {len(plan)}")
    return _iterate(game, population, plans, list(mixtures), iterations, regret_steps, tolerance)


def least_exploitable(game: Game, player: int, plans: np.ndarray, mixture: np.ndarray, steps: int) -> Restricted:
    """The mixture of a player's policies, with `plans` [policies, S], that leaves the opponent least; no worse than `mixture`.

    Regret matching+ (Tammelin et al. 2015) on the policies against the opponent's best response to what is played, which counts linearly
    in both averages. The player's average leaves the opponent `value`; against the opponent's average no policy leaves less than `bound`.
    """
    other = 1 - player
    best, regret = mixture, np.zeros(len(plans))
    average, answered = np.zeros(len(plans)), np.zeros(game.sequences(other))
    value, played = np.inf, mixture
    met: dict[bytes, list] = {}  # plan to [how much it was played, the response]
    for step in range(1, steps + 1):
        response, plan = _answer(game, other, played @ plans)
        if response.value < value:
            best, value = played, response.value
        met.setdefault(plan.tobytes(), [0, response])[0] += step
        average += step * played
        answered += step * plan
        returns = plans @ _against(game, player, plan)
        regret = np.maximum(regret + returns - returns @ played, 0)
        played = regret / regret.sum() if regret.any() else np.full(len(plans), 1 / len(plans))
    average /= average.sum()
    final, _ = _answer(game, other, average @ plans)
    if final.value < value:
        best, value = average, final.value
    response, plan = _answer(game, other, best @ plans)
    kept = met.pop(plan.tobytes(), None)
    most_played = sorted(met.values(), key=lambda entry: -entry[0])
    total = game.returns[game.terminal[0]].sum()
    bound = total - float((plans @ _against(game, player, answered / answered[0])).max())
    answers = (response if kept is None else kept[1], *(entry[1] for entry in most_played))
    return Restricted(best, value, bound, answers)


def _iterate(
    game: Game,
    population: PolicyPopulation,
    plans: list[np.ndarray],
    mixtures: list[np.ndarray],
    iterations: int,
    regret_steps: int,
    tolerance: float,
) -> Iterator[Iteration]:
    for number in range(max(member.iteration for member in population), iterations):
        began = time.process_time()
        sizes = population.sizes
        mixtures = [np.append(mixture, np.zeros(size - len(mixture))) for mixture, size in zip(mixtures, sizes, strict=True)]
        found = [least_exploitable(game, player, plans[player], mixtures[player], regret_steps) for player in range(2)]
        mixtures = [one.mixture for one in found]
        policies = play(game, plans, tuple(mixtures))
        missed = nash_conv(game, policies)
        own = mixtures[0] @ plans[0] @ _against(game, 0, mixtures[1] @ plans[1])
        gains = np.array([found[1].value, found[0].value]) - [own, game.returns[game.terminal[0]].sum() - own]
        converged = missed <= tolerance
        new = [[] if converged else _unknown(game, player, plans[player], found[1 - player].answers) for player in range(2)]
        added = grow(game, population, plans, new, repeats=False, iteration=number + 1)
        gap = sum(one.value - one.bound for one in found)
        spent = time.process_time() - began
        yield Iteration(number, sizes, independent(mixtures), policies, missed, gap, gains, added, converged, spent)
        if not added:
            return


def _unknown(game: Game, player: int, plans: np.ndarray, answers: Sequence[BestResponse]) -> list[np.ndarray]:
    """The first answer that doesn't play as a policy that is there, if any."""
    new = (answer.policy for answer in answers if not (plans == realization_plan(game, player, answer.policy)).all(1).any())
    return list(itertools.islice(new, 1))


def _answer(game: Game, player: int, plan: np.ndarray) -> tuple[BestResponse, np.ndarray]:
    """A best response of a player to the other one's plan, and its plan."""
    response = best_response_to(game, player, _against(game, player, plan))
    return response, realization_plan(game, player, response.policy)


def _against(game: Game, player: int, plan: np.ndarray) -> np.ndarray:
    """[S]: what a player's sequences return to it against the other one's plan."""
    return sequence_returns(game, player, [plan, plan])[:, player]
