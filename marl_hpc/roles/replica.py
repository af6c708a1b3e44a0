"""An interface on a learner's rank."""

from __future__ import annotations

from typing import NamedTuple

from marl_hpc.agents import AgentInterface


class Replica(NamedTuple):
    """Replica `part` of `parts`."""

    agent: AgentInterface
    part: int
    parts: int
