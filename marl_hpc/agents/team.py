"""Team learning: the agents of one or more groups are optimized together, for what the team gets.

Under *centralized training, decentralized execution* each agent acts by what it sees itself, while the algorithm's critic or mixer
sees what all see; under *fully centralized* learning the team is one policy (see the table in `marl_hpc.paradigms`). Replicas of a
team sum their gradients; teams don't read each other's data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_hpc.agents.interface import AgentInterface


class TeamAgent(AgentInterface):
    def rewarded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """With `team_reward` mean or sum, every agent's reward is that of the step over all agents of the team (dead ones are part of
        it: a mean doesn't grow when agents die)."""
        kind = self.interface.team_reward
        if kind == "individual":
            return batch
        keys = [f"{group.name}/reward" for group in self.interface.groups]
        together = torch.cat([batch[key] for key in keys], -1)
        team = together.mean(-1, keepdim=True) if kind == "mean" else together.sum(-1, keepdim=True)
        return {**batch, **{key: team.expand_as(batch[key]) for key in keys}}
