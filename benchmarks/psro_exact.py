"""How many CPU-seconds does PSRO with exact best responses take to come close to equilibrium, beside OpenSpiel's?

    pip install matplotlib cvxpy ecos  # what OpenSpiel's psro_v2 imports
    OMP_NUM_THREADS=1 python benchmarks/psro_exact.py [--repeats 5] [--budget 20]

Both start from uniform policies and solve the meta-game for a Nash equilibrium. OpenSpiel's `psro_v2` runs as in its own example, which
simulates 1000 episodes for each cell, and once more with each cell computed by OpenSpiel's `expected_game_score` instead. A run is given
up after `--budget` CPU-seconds. Counted is what setting up and iterating take: for ours compiling the game and NashConv at every iteration,
for OpenSpiel neither NashConv nor the behavior policy that it needs, which both sides have checked by `pyspiel.nash_conv` outside of
the count. Runs differ by seed on OpenSpiel's side; ours are the same each time. Written to benchmarks/results/psro_exact.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyspiel
import scipy.optimize  # noqa: F401 - what importing takes isn't counted
from open_spiel.python import policy as openspiel_policy
from open_spiel.python.algorithms import expected_game_score, policy_aggregator
from open_spiel.python.algorithms.psro_v2 import best_response_oracle, psro_v2

from marl_hpc.games import compile_game, to_openspiel
from marl_hpc.populations import psro
from marl_hpc.summary import git_state, versions

TARGETS = {"kuhn_poker": (0.05, 1e-6), "leduc_poker": (2.36, 1.0, 0.5, 0.2)}  # NashConv
SIMULATIONS = 1000  # the example's
Curve = Iterator[tuple[float, float]]  # (CPU-seconds so far, NashConv), by iteration


def ours(name: str, seed: int) -> Curve:
    began = time.process_time()
    game = compile_game(name)
    spent = time.process_time() - began
    loaded = pyspiel.load_game(name)
    for record in psro(game, start="uniform", iterations=1000):
        spent += record.cpu_s
        checked = pyspiel.nash_conv(loaded, pyspiel.TabularPolicy(to_openspiel(game, record.policies)))
        if abs(checked - record.nash_conv) > 1e-9:
            raise RuntimeError(f"{name}: NashConv is {record.nash_conv} by marl_hpc, {checked} by OpenSpiel")
        yield spent, checked


class Exact(psro_v2.PSROSolver):
    """OpenSpiel's solver with its own exact expectation in place of simulated episodes."""

    def sample_episodes(self, policies: Any, num_episodes: int) -> np.ndarray:
        return expected_game_score.policy_value(self._game.new_initial_state(), policies)


def openspiel(solver_class: type) -> Callable[[str, int], Curve]:
    def run(name: str, seed: int) -> Curve:
        np.random.seed(seed)
        game = pyspiel.load_game(name)
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            uniform = openspiel_policy.TabularPolicy(game)
            solver = solver_class(
                game,
                best_response_oracle.BestResponseOracle(game=game, policy=uniform),
                initial_policies=[uniform.__copy__() for _ in range(2)],
                training_strategy_selector="probabilistic",
                sims_per_entry=SIMULATIONS,
                meta_strategy_method="nash",
                sample_from_marginals=True,
            )
        spent = time.process_time() - began
        aggregator = policy_aggregator.PolicyAggregator(game)
        while True:
            mixed = aggregator.aggregate(range(2), solver.get_policies(), solver.get_meta_strategies())
            table = {state: list(chances.items()) for own in mixed.policy for state, chances in own.items()}
            yield spent, pyspiel.nash_conv(game, pyspiel.TabularPolicy(table))
            began = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                solver.iteration()
            spent += time.process_time() - began

    return run


SIDES: dict[str, Callable[[str, int], Curve]] = {
    "marl_hpc": ours,
    f"OpenSpiel psro_v2, {SIMULATIONS} episodes a cell": openspiel(psro_v2.PSROSolver),
    "OpenSpiel psro_v2, exact cells": openspiel(Exact),
}


def measure(side: str, name: str, seed: int, budget_s: float) -> dict[str, Any]:
    """When each target was reached for the first time: (iteration, CPU-seconds); None where it wasn't."""
    reached: dict[float, tuple[int, float] | None] = dict.fromkeys(TARGETS[name])
    curve: list[tuple[float, float]] = []
    for iteration, (spent, gap) in enumerate(SIDES[side](name, seed)):
        curve.append((round(spent, 4), gap))
        for target in reached:
            if gap <= target and reached[target] is None and spent <= budget_s:
                reached[target] = (iteration, spent)
        if spent > budget_s or None not in reached.values():
            break
    return {"side": side, "game": name, "seed": seed, "reached": [reached[target] for target in TARGETS[name]], "curve": curve}


def table(runs: list[dict[str, Any]], budget_s: float) -> str:
    lines = [f"| game | NashConv | {' | '.join(SIDES)} |", "|---|---|" + "---|" * len(SIDES)]
    for name, targets in TARGETS.items():
        for number, target in enumerate(targets):
            row = [name, f"{target:g}"]
            for side in SIDES:
                mine = [run["reached"][number] for run in runs if (run["side"], run["game"]) == (side, name)]
                found = [one for one in mine if one is not None]
                if 2 * len(found) <= len(mine):
                    row.append(f"not in {budget_s:g} s ({len(found)} of {len(mine)} runs)")
                    continue
                spent = [one[1] if one is not None else budget_s for one in mine]
                worst = f"{max(spent):.2f}" if len(found) == len(mine) else f"more than {budget_s:g}"
                iterations = statistics.median_low(one[0] for one in found)
                row.append(f"{statistics.median(spent):.2f} s ({min(spent):.2f} … {worst}), {iterations} iterations")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=20.0, help="CPU-seconds of one run")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "psro_exact.json")
    arguments = parser.parse_args()
    for side in SIDES:  # warm-up
        measure(side, "kuhn_poker", 0, 0.0)
    runs = [measure(side, name, seed, arguments.budget) for name in TARGETS for seed in range(arguments.repeats) for side in SIDES]
    text = table(runs, arguments.budget)
    print(text)
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "budget_cpu_s": arguments.budget, "targets": TARGETS, "table": text, "runs": runs,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
