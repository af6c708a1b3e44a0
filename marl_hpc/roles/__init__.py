"""What a rank can be: learner, rollout worker, parameter shard, dataset shard or inference role. Roles hold handles of each other, never
modules.

Leaves (learners, rollout workers) call core (shards and inference roles), never the other way round.
"""

from marl_hpc.roles.assign import Role, assign, count_roles

__all__ = ["Role", "assign", "count_roles"]
