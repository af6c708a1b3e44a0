"""The package magent2: many agents on a grid, who die. One function a task.

Options are the keyword arguments of each task's `parallel_env`, for example map_size and max_cycles of battle. By default all agents
with equal spaces share one policy, so both armies of battle do; a mapping agent: group parts them.
"""

from __future__ import annotations

from marl_hpc.envs.family import task

RELEASES = {
    "battle": "battle_v4", "battlefield": "battlefield_v5", "combined_arms": "combined_arms_v6", "gather": "gather_v5",
    "adversarial_pursuit": "adversarial_pursuit_v4", "tiger_deer": "tiger_deer_v4",
}  # fmt: skip

globals().update(
    {name: task(f"magent2/{name}", f"magent2.environments.{release}", "magent2") for name, release in RELEASES.items()}
)
