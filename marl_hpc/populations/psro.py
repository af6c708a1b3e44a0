"""Policy-space response oracles on compiled games, exactly: solve the table, add best responses to the solution, and again.

With a Nash meta-solver this is the double oracle; others make it fictitious self-play, self-play, rectified PSRO, or PSRO of any number
of players. Every iteration is a function of the populations alone: a loop that is given those of an earlier one goes on with them.
Pure NumPy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from marl_hpc import keyed_random
from marl_hpc.games import Game, nash_conv, realization_plan, uniform_policy
from marl_hpc.games.policies import behavior_policy
from marl_hpc.meta_solvers import MetaSolver, MetaStrategy, cce_gap, expected_payoffs, resolve
from marl_hpc.meta_solvers.normal_form import TOLD, checked, correlated, independent
from marl_hpc.populations.exact import best_response_to_joint, exact_cells
from marl_hpc.populations.payoff_table import PayoffTable
from marl_hpc.populations.population import PolicyId, PolicyPopulation

STARTS = ("pure", "uniform", "random")


class Iteration(NamedTuple):
    """One turn of the loop. Gaps are in units of return."""

    number: int
    sizes: tuple[int, ...]  # of the populations that were solved
    meta: MetaStrategy
    policies: tuple[np.ndarray, ...]  # for each player [I, A]: the behavior policy of its mixture, weighted by reach
    nash_conv: float  # of these policies, in the whole game
    gap: float  # what players would gain by another policy of their population: 0 where the solver finds an equilibrium
    gains: (
        np.ndarray
    )  # [players]: what they would gain by any policy, together with what they are told where players are correlated
    added: tuple[PolicyId, ...]  # best responses that the next iteration has as well
    converged: bool  # no best response gains more than the tolerance
    cpu_s: float  # CPU seconds of this process that the iteration took


def psro(
    game: Game,
    *,
    meta_solver: str | MetaSolver = "nash",
    start: str = "pure",
    repeats: bool = False,
    iterations: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
    population: PolicyPopulation | None = None,
    table: PayoffTable | None = None,
) -> Iterator[Iteration]:
    """Policy-space response oracles (Lanctot et al. 2017), with exact payoffs and best responses; with "nash" the double oracle
    (McMahan et al. 2003).

    Each player has a population, which starts with one policy: `start` is "pure", the lowest action everywhere; "uniform"; or "random",
    a pure one drawn by `seed`. An iteration solves the table of payoffs and adds for each player a best response to every target that
    the meta-solver names for it. One that plays as a policy that is there already isn't added, unless `repeats`: fictitious and
    self-play count how often it was. The loop ends after so many iterations (those of a `population` that is given count), when it has
    converged to within `tolerance`, in units of return, or when nothing is added.

    `population` and `table` are filled in place; each iteration is complete when it is yielded, so that their states, loaded, go on from
    there. Raises ValueError for a start that doesn't exist and for populations that aren't one a player, and what the meta-solver raises.

    >>> from marl_hpc.games import matrix_game
    >>> rock_paper_scissors = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    >>> *_, last = psro(matrix_game([rock_paper_scissors, -rock_paper_scissors]))
    >>> last.number, last.sizes, last.converged, round(last.nash_conv, 6)
    (2, (3, 3), True, 0.0)
    """
    solver = resolve(meta_solver) if isinstance(meta_solver, str) else meta_solver
    if iterations < 1 or not tolerance >= 0:
        raise ValueError(
            f"iterations={iterations}, tolerance={tolerance}; expected 1 or more iterations, and a tolerance of 0 or more"
        )
    population = PolicyPopulation(range(game.players)) if population is None else population
    table = PayoffTable(range(game.players)) if table is None else table
    if table.populations != tuple(range(game.players)):
        raise ValueError(
            f"the table is of populations {table.populations}; exact PSRO needs one a player, {tuple(range(game.players))}"
        )
    plans = begin(game, population, start=start, seed=seed)
    return _iterate(game, solver, population, table, plans, repeats, iterations, tolerance)


def fictitious_self_play(game: Game, **options: Any) -> Iterator[Iteration]:
    """Everybody answers the others' average so far (Heinrich et al. 2015, XFP with step sizes 1 / t): `psro` with a uniform mixture
    over the past, in which policies count as often as they were best responses. Options are those of `psro`."""
    return psro(game, meta_solver="uniform", repeats=True, **options)


def self_play(game: Game, **options: Any) -> Iterator[Iteration]:
    """Everybody answers the others' latest policy: `psro` with `latest`. It cycles wherever strategies do. Options are those of `psro`."""
    return psro(game, meta_solver=latest, repeats=True, **options)


def latest(payoffs: Any) -> MetaStrategy:
    """A meta-solver: all play the policy that was added last.

    >>> latest(np.zeros((2, 3, 2))).mixtures[0].tolist()
    [0.0, 0.0, 1.0]
    """
    return independent([np.eye(size)[-1] for size in checked(payoffs).shape[1:]])


def start_policy(game: Game, player: int, start: str, seed: int = 0) -> np.ndarray:
    """[I, A]: what a population starts with; see `psro`. Raises ValueError for a start that doesn't exist."""
    legal = game.legal[player]
    if start == "uniform":
        return uniform_policy(game, player)
    if start == "pure":
        return np.eye(game.actions)[legal.argmax(1)]
    if start == "random":
        drawn = keyed_random.generator(seed, keyed_random.INITIALIZATION, player).random(legal.shape)
        return np.eye(game.actions)[np.where(legal, drawn, -1).argmax(1)]
    raise ValueError(f"start={start!r} is not a choice; choose one of: {', '.join(STARTS)}")


def begin(game: Game, population: PolicyPopulation, *, start: str, seed: int) -> list[np.ndarray]:
    """The plans [policies, S_i] of each player's population, to which the start policy is added where there is none yet."""
    if population.populations != tuple(range(game.players)):
        raise ValueError(
            f"populations {population.populations} for {game.players} players of {game.name}: exact best responses need one a player, "
            f"{tuple(range(game.players))}"
        )
    for player in range(game.players):
        if not population.members(player):
            values = start_policy(game, player, start, seed)
            population.add(PolicyId(player, 0), values, made_by=f"start: {start}")
    return [
        realization_plan(game, player, np.stack([population.values(member.id) for member in population.members(player)]))
        for player in range(game.players)
    ]


def play(game: Game, plans: list[np.ndarray], mixtures: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """For each player [I, A] the behavior policy of its mixture, weighted by reach (`games.mixture_policy`, from plans)."""
    return tuple(behavior_policy(game, i, mixture @ plans[i]) for i, mixture in enumerate(mixtures))


def grow(
    game: Game, population: PolicyPopulation, plans: list[np.ndarray], new: list[list[np.ndarray]], *, repeats: bool, iteration: int
) -> tuple[PolicyId, ...]:
    """Add new policies [I, A] of each player to the population and to its plans in place. Without `repeats` only those that don't
    play as one that is there: policies differ where their plans do."""
    added = []
    for player, policies in enumerate(new):
        for policy in policies:
            plan = realization_plan(game, player, policy)
            if repeats or not (plans[player] == plan).all(1).any():
                member = population.add(population.next_id(player), policy, made_by="exact best response", iteration=iteration)
                plans[player] = np.vstack([plans[player], plan])
                added.append(member.id)
    return tuple(added)


def _iterate(
    game: Game,
    solver: MetaSolver,
    population: PolicyPopulation,
    table: PayoffTable,
    plans: list[np.ndarray],
    repeats: bool,
    iterations: int,
    tolerance: float,
) -> Iterator[Iteration]:
    for number in range(max(member.iteration for member in population), iterations):
        began = time.process_time()
        sizes = population.sizes
        table.grow(sizes)
        table.fill(*exact_cells(game, plans, table.missing(), table.populations))
        payoffs = table.payoffs()
        meta = solver(payoffs)
        responses = [[best_response_to_joint(game, i, plans, target) for target in meta.opponents[i]] for i in range(game.players)]
        values = [np.array([response.value for response in own]) for own in responses]
        gains = _gains(game, plans, meta, values) - expected_payoffs(payoffs, meta.joint)
        policies = play(game, plans, meta.mixtures)
        converged = bool(np.maximum(gains, 0).sum() <= tolerance)
        new = [[response.policy for response in own] for own in responses]
        added = () if converged else grow(game, population, plans, new, repeats=repeats, iteration=number + 1)
        spent = time.process_time() - began
        yield Iteration(
            number, sizes, meta, policies, nash_conv(game, policies), cce_gap(payoffs, meta.joint), gains, added, converged, spent
        )
        if converged or not added:
            return


def _gains(game: Game, plans: list[np.ndarray], meta: MetaStrategy, values: list[np.ndarray]) -> np.ndarray:
    """[players]: what best responses return. Where the targets are what the others do given each strategy that a player is told, it
    may answer each of them; otherwise it answers what they do on the whole."""
    known = correlated(meta.joint, told=True).opponents
    returns = []
    for i, targets in enumerate(meta.opponents):
        if len(targets) > 1 and targets.shape == known[i].shape and np.allclose(targets, known[i], rtol=0, atol=TOLD):
            told = meta.mixtures[i][meta.mixtures[i] > TOLD]
            returns.append(values[i] @ (told / told.sum()))
        else:
            returns.append(best_response_to_joint(game, i, plans, meta.joint.sum(i)).value)
    return np.array(returns)
