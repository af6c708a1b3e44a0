"""How does a policy trained by self-play do at PettingZoo's tictactoe_v3 against a random player and a perfect one, seat by seat?

The best possible against random: wins 99.5 % as first and 93.9 % as second, and never loses. The perfect player draws uniformly among the
moves that minimax finds best, and plays 1,000 games: who never makes a mistake draws all of them.

    python benchmarks/tictactoe.py RUN… [--games 10000] [--output benchmarks/results/tictactoe.json]

RUN are folders of runs of `marl-hpc experiment=tictactoe/ppo`; policies play greedily. Every action is checked against the mask.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pettingzoo.classic import tictactoe_v3

import marl_hpc
from marl_hpc.summary import git_state, versions

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
PERFECT_GAMES = 1000
SEATS = ("first", "second")


@functools.cache
def value(squares: tuple[int, ...], mover: int) -> int:
    """What a position is worth to who moves: 1 won, 0 drawn, -1 lost. Squares hold 0, 1 or 2; so does `mover`, 1 or 2."""
    if any(squares[a] == squares[b] == squares[c] == 3 - mover for a, b, c in LINES):
        return -1
    if 0 not in squares:
        return 0
    return max(-value(after(squares, move, mover), 3 - mover) for move in range(9) if squares[move] == 0)


def after(squares: tuple[int, ...], move: int, mover: int) -> tuple[int, ...]:
    return (*squares[:move], mover, *squares[move + 1 :])


def best_moves(squares: tuple[int, ...], mover: int) -> list[int]:
    """All moves that keep what the position is worth."""
    found = [-value(after(squares, move, mover), 3 - mover) if squares[move] == 0 else -2 for move in range(9)]
    return [move for move in range(9) if found[move] == max(found)]


def play(run_dir: Path, seat: int, games: int, *, perfect: bool = False) -> dict[str, float]:
    """Shares of games won, drawn and lost in a seat against a random or a perfect player, and how many illegal actions the policy chose."""
    env = tictactoe_v3.env()
    board: Any = None
    random = np.random.default_rng(seat)
    agents = env.possible_agents
    policy = marl_hpc.load_policy(run_dir, agents[seat])
    ended = {1: 0, 0: 0, -1: 0}
    illegal = 0
    for _ in range(games):
        env.reset()
        board, reward = getattr(env.unwrapped, "board", None), 0
        for agent in env.agent_iter():
            seen: Any
            seen, _, terminated, truncated, _ = env.last()
            if terminated or truncated:
                env.step(None)
                continue
            mask = seen["action_mask"]
            if agent == agents[seat]:
                action = policy.act(seen["observation"], mask)
                illegal += not mask[action]
            elif perfect:
                action = int(random.choice(best_moves(tuple(board.squares), 2 - seat)))
            else:
                action = int(random.choice(np.flatnonzero(mask)))
            env.step(action)
            if any(env.rewards.values()):
                reward = env.rewards[agents[seat]]
        ended[int(np.sign(reward))] += 1
    return {"wins": ended[1] / games, "draws": ended[0] / games, "losses": ended[-1] / games, "illegal": illegal, "games": games}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--games", type=int, default=10000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tictactoe.json")
    arguments = parser.parse_args()
    played = []
    for run_dir in arguments.runs:
        summary = json.loads((run_dir / "summary.json").read_text())
        seed = yaml.safe_load((run_dir / "config.yaml").read_text())["seed"]
        seats: dict[str, Any] = {name: play(run_dir, seat, arguments.games) for seat, name in enumerate(SEATS)}
        seats |= {f"{name}, perfect": play(run_dir, seat, PERFECT_GAMES, perfect=True) for seat, name in enumerate(SEATS)}
        played.append({"seed": seed, "env_steps": summary["env_steps"], "git": summary["git"], **seats})
        print(json.dumps(played[-1]), flush=True)
    record = {"question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "runs": played}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
