"""What a rank can be: learner, rollout worker, parameter shard or dataset shard. Roles hold handles of each other, never modules.

Leaves (learners, rollout workers) call core (parameter and dataset shards), never the other way round.
"""

from marl_hpc.roles.assign import Role, assign, count_roles

__all__ = ["Role", "assign", "count_roles"]
