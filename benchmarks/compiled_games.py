"""How many steps a second do compiled games make, beside the same games stepped by OpenSpiel?

    OMP_NUM_THREADS=1 python benchmarks/compiled_games.py [--games kuhn_poker leduc_poker …] [--copies 4096] [--seconds 3]

Both play uniformly random legal actions on one core, in turns; a step is one player's action, counted by CPU-seconds with drawing actions,
chance and new episodes. OpenSpiel's side is its C++ state, asked for legal actions and stepped from Python. Written to
benchmarks/results/compiled_games.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pyspiel

from marl_hpc.games import compile_game
from marl_hpc.games.copies import Copies
from marl_hpc.summary import git_state, versions

ROOT = Path(__file__).parent.parent


def compiled(name: str, copies: int, seconds: float) -> float:
    """Steps a CPU-second."""
    batch, random = Copies(compile_game(name), copies), np.random.default_rng(0)
    batch.reset(np.arange(copies), random.random((copies, batch.draws)))
    steps, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        legal = batch.legal
        batch.step((legal * random.random(legal.shape)).argmax(1))
        steps += copies
        over = np.flatnonzero(batch.over)
        if len(over):
            batch.reset(over, random.random((len(over), batch.draws)))
    return steps / (time.process_time() - began)


def openspiel(name: str, seconds: float) -> float:
    game, random = pyspiel.load_game(name), np.random.default_rng(0)
    steps, began = 0, time.process_time()
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
    return steps / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--games", nargs="+", default=["kuhn_poker", "leduc_poker", "tic_tac_toe", "liars_dice(numdice=1,dice_sides=4)"]
    )
    parser.add_argument("--copies", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.games:
        rows[name] = {
            "compiled": compiled(name, arguments.copies, arguments.seconds),
            "openspiel": openspiel(name, arguments.seconds),
        }
        ours, theirs = rows[name]["compiled"], rows[name]["openspiel"]
        print(f"{name}: {ours:,.0f} steps a CPU-second, OpenSpiel {theirs:,.0f}: {ours / theirs:.0f} times", flush=True)
    record = {
        "question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "cores": os.cpu_count(),
        "copies": arguments.copies, "steps_per_cpu_s": rows,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "compiled_games.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
