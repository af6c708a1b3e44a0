"""What crosses ranks: launchers, supervisors, the control store, RPC, collectives. Knows no reinforcement learning.

Only this package talks to torch.distributed. Import from its modules: those that supervisors use start without torch.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("ExchangePlan", "neighbor_allreduce"):
        from marl_hpc.comm import exchange_plan, neighbors

        return getattr(neighbors if name == "neighbor_allreduce" else exchange_plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
