"""PettingZoo's classic games, one function a task: turn-based, with masks of legal moves; rock-paper-scissors (rps) is simultaneous.

Options are the keyword arguments of each game's `env`, for example board_size of go.
"""

from __future__ import annotations

from marl_hpc.envs.family import task

RELEASES = {
    "tictactoe": "tictactoe_v3", "connect_four": "connect_four_v3", "leduc_holdem": "leduc_holdem_v4",
    "texas_holdem": "texas_holdem_v4", "texas_holdem_no_limit": "texas_holdem_no_limit_v6", "rps": "rps_v2",
    "chess": "chess_v6", "go": "go_v5", "hanabi": "hanabi_v5",
}  # fmt: skip

globals().update(
    {
        name: task(f"classic/{name}", f"pettingzoo.classic.{release}", "classic", "parallel_env" if name == "rps" else "env")
        for name, release in RELEASES.items()
    }
)
