"""How does a policy trained by self-play do at PettingZoo's tictactoe_v3 against a random player, seat by seat?

The best possible against random: wins 99.5 % as first and 93.9 % as second, and never loses.

    python benchmarks/tictactoe.py RUN… [--games 10000] [--output benchmarks/results/tictactoe.json]

RUN are folders of runs of `marl-hpc experiment=tictactoe/ppo`; policies play greedily. Every action is checked against the mask.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pettingzoo.classic import tictactoe_v3

import marl_hpc
from marl_hpc.summary import git_state, versions


def play(run_dir: Path, seat: int, games: int) -> dict[str, float]:
    """Shares of games won, drawn and lost in a seat, and how many illegal actions the policy chose."""
    env = tictactoe_v3.env()
    random = np.random.default_rng(seat)
    agents = env.possible_agents
    policy = marl_hpc.load_policy(run_dir, agents[seat])
    ended = {1: 0, 0: 0, -1: 0}
    illegal = 0
    for _ in range(games):
        env.reset()
        reward = 0
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
        seats = {name: play(run_dir, seat, arguments.games) for seat, name in enumerate(("first", "second"))}
        played.append({"seed": seed, "env_steps": summary["env_steps"], "git": summary["git"], **seats})
        print(json.dumps(played[-1]), flush=True)
    record = {"question": (__doc__ or "").splitlines()[0], "git": git_state(), "versions": versions(), "runs": played}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
