"""How many steps a second do compiled games make, beside the same games stepped by OpenSpiel?

    OMP_NUM_THREADS=1 python benchmarks/compiled_games.py [--games kuhn_poker leduc_poker …] [--copies 4096] [--seconds 2] [--repeats 5]

All play uniformly random legal actions on one core, in turns; a step is one player's action, counted by CPU-seconds with drawing actions,
chance and new episodes. Sides are the compiled game alone (`games.Copies`); the environment that trains (`openspiel_fast/…`, with what
players see, masks, rewards, and a seed for each episode), by as many copies and by 64; and OpenSpiel's C++ state, asked for legal actions
and stepped from Python. Each side's mean return has to be that of the uniform policy, computed, within five standard errors. Written to
benchmarks/results/compiled_games.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyspiel

from marl_hpc import envs
from marl_hpc.games import compile_game, expected_returns, uniform_policy
from marl_hpc.games.copies import Copies
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent
FEW = 64  # copies of a common rollout worker


class Played(NamedTuple):
    steps_per_cpu_s: float
    returns: np.ndarray  # [episodes] of the first player


def compiled(name: str, copies: int, seconds: float, seed: int) -> Played:
    batch, random = Copies(compile_game(name), copies), np.random.default_rng(seed)
    batch.reset(np.arange(copies), random.random((copies, batch.draws)))
    steps, returns, began = 0, [], time.process_time()
    while time.process_time() - began < seconds:
        legal = batch.legal
        batch.step((legal * random.random(legal.shape)).argmax(1))
        steps += copies
        over = np.flatnonzero(batch.over)
        if len(over):
            returns.append(batch.returns[over, 0])
            batch.reset(over, random.random((len(over), batch.draws)))
    return Played(steps / (time.process_time() - began), np.concatenate(returns))


def environment(name: str, copies: int, seconds: float, seed: int) -> Played:
    env, random = envs.make("openspiel_fast/game", game=name, copies=copies, groups="shared"), np.random.default_rng(seed)
    first = seed << 27  # repeats play other episodes
    env.reset(list(range(copies)), list(range(first, first + copies)))
    seen, steps, episodes, returns, earned, began = env.observe(), 0, first + copies, [], np.zeros(copies), time.process_time()
    while time.process_time() - began < seconds:
        mask = seen.action_mask["shared"]
        step = env.step({"shared": (mask * random.random(mask.shape, dtype=np.float32)).argmax(-1)})
        steps, seen = steps + copies, step.seen
        earned += step.reward["shared"][:, 0]
        over = np.flatnonzero(step.over)
        if len(over):
            returns.append(earned[over])
            earned[over] = 0
            env.reset(over.tolist(), list(range(episodes, episodes := episodes + len(over))))
            seen = env.observe()
    return Played(steps / (time.process_time() - began), np.concatenate(returns))


def openspiel(name: str, seconds: float, seed: int) -> Played:
    game, random = pyspiel.load_game(name), np.random.default_rng(seed)
    steps, returns, began = 0, [], time.process_time()
    while time.process_time() - began < seconds:
        state = game.new_initial_state()
        while not state.is_terminal():
            if state.is_chance_node():
                outcomes, chances = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(outcomes[int(np.searchsorted(np.cumsum(chances), random.random()))])
            else:
                legal = state.legal_actions()
                state.apply_action(legal[int(random.random() * len(legal))])
                steps += 1
        returns.append(state.player_return(0))
    return Played(steps / (time.process_time() - began), np.array(returns))


def check(side: str, name: str, returns: np.ndarray, exact: float) -> None:
    """Raises SystemExit where episodes aren't those of the uniform policy."""
    error = returns.std() / math.sqrt(len(returns))
    if not abs(returns.mean() - exact) < 5 * error:
        raise SystemExit(
            f"{name}, {side}: the uniform policy returned {returns.mean():.5f} +- {error:.5f} over {len(returns):,} episodes, and {exact:.5f} exactly"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--games", nargs="+", default=["kuhn_poker", "leduc_poker", "tic_tac_toe", "liars_dice(numdice=1,dice_sides=4)"]
    )
    parser.add_argument("--copies", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    copies, seconds = arguments.copies, arguments.seconds
    sides: dict[str, Callable[[str, int], Played]] = {
        "compiled": lambda name, seed: compiled(name, copies, seconds, seed),
        "environment": lambda name, seed: environment(name, copies, seconds, seed),
        f"environment, {FEW} copies": lambda name, seed: environment(name, FEW, seconds, seed),
        "openspiel": lambda name, seed: openspiel(name, seconds, seed),
    }
    rows: dict[str, dict[str, list[float]]] = {}
    for name in arguments.games:
        game = compile_game(name)
        exact = expected_returns(game, [uniform_policy(game, player) for player in range(game.players)])[0]
        rows[name] = {side: [] for side in sides}
        returns: dict[str, list[np.ndarray]] = {side: [] for side in sides}
        for repeat in range(-1, arguments.repeats):  # the first is a warm-up
            for side, play in sides.items():
                found = play(name, 1 + repeat)
                if repeat >= 0:
                    rows[name][side].append(found.steps_per_cpu_s)
                    returns[side].append(found.returns)
        for side, rates in rows[name].items():
            check(side, name, np.concatenate(returns[side]), float(exact))
            print(
                f"{name}, {side}: {statistics.median(rates):,.0f} ({min(rates):,.0f} … {max(rates):,.0f}) steps a CPU-second",
                flush=True,
            )
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "copies": copies, "repeats": arguments.repeats, "steps_per_cpu_s": rows,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "compiled_games.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
