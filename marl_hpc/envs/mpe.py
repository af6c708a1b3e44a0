"""The multi-agent particle environments (Lowe et al. 2017), from the package mpe2: one function a task.

Each takes the keyword arguments of the task's `parallel_env`, for example N, max_cycles, continuous_actions and local_ratio of
simple_spread. Rewards are mpe2's own: with simple_spread's default local_ratio=0.5 a random policy gets about -27 an episode of
25 steps (mean over agents), -53.4 with local_ratio=0.
"""

from __future__ import annotations

from marl_hpc.envs.family import task

RELEASES = {
    "simple": "simple_v3", "simple_adversary": "simple_adversary_v3", "simple_crypto": "simple_crypto_v3",
    "simple_push": "simple_push_v3", "simple_reference": "simple_reference_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4", "simple_spread": "simple_spread_v3", "simple_tag": "simple_tag_v3",
    "simple_world_comm": "simple_world_comm_v3", "simple_formation": "simple_formation_v1", "simple_line": "simple_line_v1",
    "collect_treasure": "collect_treasure_v1",
}  # fmt: skip

globals().update({name: task(f"mpe/{name}", f"mpe2.{release}", "mpe") for name, release in RELEASES.items()})
