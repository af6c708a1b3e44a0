"""PettingZoo's SISL tasks (Gupta et al. 2017): pursuit (7 × 7 × 3 numbers) and multiwalker (continuous, needs Box2D).

Options are the keyword arguments of each task's `parallel_env`, for example n_pursuers and max_cycles of pursuit.
"""

from __future__ import annotations

from marl_hpc.envs.family import task

RELEASES = {"pursuit": "pursuit_v5", "multiwalker": "multiwalker_v9"}

globals().update({name: task(f"sisl/{name}", f"pettingzoo.sisl.{release}", "sisl") for name, release in RELEASES.items()})
