"""Independent learning: a group optimizes alone. Its only exchange is the sum of gradients among replicas of itself.

To the others it is one-way: it publishes versions and pulls its own group's data, and reads nobody else's.
"""

from __future__ import annotations

from torch import Tensor

from marl_hpc.agents.interface import AgentInterface


class IndependentAgent(AgentInterface):
    """Tan 1993's independent learners; with parameter sharing where the group has several agents."""

    def rewarded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch
