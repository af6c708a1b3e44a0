"""Multi-agent reinforcement learning for clusters, on plain PyTorch distributed.

Names are imported when first used: supervisors import this package too, and start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_hpc.agents import AgentInterface, AsynchronousAgent, IndependentAgent, NetworkedAgent, TeamAgent
    from marl_hpc.cli import run
    from marl_hpc.job import Summary
    from marl_hpc.policies import Mixture, Policy, load_mixture, load_policy

_NAMES = {
    "run": "marl_hpc.cli",
    "Summary": "marl_hpc.job",
    "load_policy": "marl_hpc.policies",
    "load_mixture": "marl_hpc.policies",
    "Mixture": "marl_hpc.policies",
    "Policy": "marl_hpc.policies",
    "AgentInterface": "marl_hpc.agents",
    "AsynchronousAgent": "marl_hpc.agents",
    "IndependentAgent": "marl_hpc.agents",
    "NetworkedAgent": "marl_hpc.agents",
    "TeamAgent": "marl_hpc.agents",
}
__all__ = [
    "AgentInterface",
    "AsynchronousAgent",
    "IndependentAgent",
    "Mixture",
    "NetworkedAgent",
    "Policy",
    "Summary",
    "TeamAgent",
    "load_mixture",
    "load_policy",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'marl_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
