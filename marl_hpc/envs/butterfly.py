"""PettingZoo's butterfly tasks: knights_archers_zombies (agents die), cooperative_pong and pistonball (images).

Options are the keyword arguments of each task's `parallel_env`. knights_archers_zombies observes vectors of 27 × 5 numbers by
default (obs_method=vector). The images of the others are large, and slow to draw.
"""

from __future__ import annotations

from marl_hpc.envs.family import task

RELEASES = {
    "knights_archers_zombies": "knights_archers_zombies_v11",
    "cooperative_pong": "cooperative_pong_v6",
    "pistonball": "pistonball_v6",
}

globals().update(
    {name: task(f"butterfly/{name}", f"pettingzoo.butterfly.{release}", "butterfly") for name, release in RELEASES.items()}
)
