"""AgentInterface and its ways to exchange. An interface trains one group of agents; it never looks into another's data."""

from marl_hpc.agents.independent import IndependentAgent
from marl_hpc.agents.interface import AgentInterface

__all__ = ["AgentInterface", "IndependentAgent"]
