"""AgentInterface: trains one group of agents with batches from the dataset shards, and publishes versions of their policy.

What differs between paradigms is whom an interface exchanges with while it learns; everything else is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl_hpc.agents.adam import Adam
from marl_hpc.policies import export_policy
from marl_hpc.types import Exchange, GroupSpec


class AgentInterface(ABC):
    """One group's learner, or one replica of it; `exchange` sums over its replicas."""

    def __init__(
        self,
        algorithm: type,
        config: Any,
        group: GroupSpec,
        exchange: Exchange,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.group, self.exchange, self.device, self.dtype, self.seed = group, exchange, device, dtype, seed
        self.algorithm = algorithm(config, group, exchange, device=device, dtype=dtype, seed=seed)
        self.parameters = self.algorithm.parameters
        self.optimizer = Adam(self.parameters.values, lr=config.lr, eps=config.adam_eps)
        self.max_grad_norm = config.max_grad_norm
        self.network = {"hidden": list(config.hidden), "activation": config.activation, "agent_id": config.agent_id}
        self.updates = 0  # gradient steps

    @abstractmethod
    def learn(
        self, batch: dict[str, Tensor], columns: Tensor, total: int, seed: int, alive: Callable[[], None]
    ) -> dict[str, float]:
        """One batch of fields [T, B, N, …], whose copies are the `columns` [B] of `total`. Returns metrics of the whole batch.

        `alive` is called after every gradient step: a large network may need longer for a batch than a hung process gets.
        """

    def policy_values(self) -> Tensor:
        """A snapshot of the policy's flat parameters, on the CPU: what is published."""
        return self.parameters.values.detach()[: self.parameters.sizes[0]].to("cpu", copy=True)

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, for a checkpoint."""
        parts = {"optimizer": self.optimizer.state(), "algorithm": self.algorithm.state()}
        record = {f"{part}.{name}": x.detach().cpu() for part, state in parts.items() for name, x in state.items()}
        updates = torch.tensor(self.updates)
        return {**record, "values": self.parameters.values.detach().cpu(), "updates": updates}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state["values"].shape != self.parameters.values.shape:
            raise ValueError(
                f"the checkpoint of group {self.group.name!r} has {len(state['values'])} parameters, this network {len(self.parameters.values)}"
            )
        with torch.no_grad():
            self.parameters.values.copy_(state["values"])
        self.updates = int(state["updates"])
        for part, owner in (("optimizer.", self.optimizer), ("algorithm.", self.algorithm)):
            owner.load_state({name.removeprefix(part): x for name, x in state.items() if name.startswith(part)})

    def export(self, path: Path, version: int) -> None:
        """Write the policy for use without any of this."""
        export_policy(path, self.group, self.policy_values(), self.network, version)
