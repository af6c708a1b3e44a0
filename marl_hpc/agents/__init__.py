"""AgentInterface and its ways to exchange. An interface trains its own agents; it never looks into another's data."""

from marl_hpc.agents.asynchronous import AsynchronousAgent
from marl_hpc.agents.independent import IndependentAgent
from marl_hpc.agents.interface import AgentInterface
from marl_hpc.agents.networked import NetworkedAgent
from marl_hpc.agents.team import TeamAgent

__all__ = ["AgentInterface", "AsynchronousAgent", "IndependentAgent", "NetworkedAgent", "TeamAgent"]
