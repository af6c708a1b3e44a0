"""Neural fictitious self-play (Heinrich & Silver 2016): a best response by deep Q-learning, and the average of all best responses so far by
imitation. Needs population=nfsp, which draws for each player and episode which of the two acts.

Each player mostly plays its average policy, and now and then its best response to the others' average; what the best response does enters a
reservoir, a uniform sample of all that it ever did, which the average policy imitates. The average policy is what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from marl_hpc.actors import Actor, AverageActor
from marl_hpc.algorithms import Batch
from marl_hpc.algorithms.dqn import DQN, DQNConfig
from marl_hpc.config import ConfigError
from marl_hpc.types import InterfaceSpec, ReservoirConfig

IMITATED = "average/"  # fields that come from the reservoir, as dataset shards call them


@dataclass(frozen=True, kw_only=True)
class NFSPConfig(DQNConfig):
    epsilon_start: float = 0.1
    epsilon_end: float = 0.0
    average_lr: float = 5e-4
    average_batch: int = 256  # actions of best responses that a gradient step imitates
    reservoir: int = 1_000_000  # that are kept, over all shards


class NFSP(DQN):
    Config = NFSPConfig
    sums = ("count", "value", "q", "imitation")
    modes = True

    @classmethod
    def network(cls, config: Any, interface: InterfaceSpec) -> dict[str, Any]:
        return {
            **super().network(config, interface),
            "head": "stochastic",
            "dueling": False,
            "response_dueling": config.dueling,
            "average": True,
        }

    @classmethod
    def reservoir(cls, config: Any, interface: InterfaceSpec) -> ReservoirConfig:
        return ReservoirConfig(capacity=config.reservoir, batch=config.average_batch)

    @classmethod
    def check(cls, config: NFSPConfig, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        for key in ("average_lr", "average_batch", "reservoir"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"algorithm.{key}={getattr(config, key)} must be greater than 0")
        if config.gru:
            raise ConfigError(
                f"algorithm.gru={config.gru} with algorithm=nfsp: what best responses did is imitated step by step, in any order; set gru=0"
            )

    def responding(self, policy: Any) -> Actor:
        return cast(AverageActor, policy).response

    def parts(self) -> list[tuple[slice, float]]:
        (policy,) = (cast(AverageActor, policy) for policy in self.policies.values())
        average = sum(parameter.numel() for parameter in policy.network.parameters())
        return [(slice(0, average), self.config.average_lr), (slice(average, None), self.config.lr)]

    def loss(self, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The Q-function's, and the cross-entropy of the average policy, a mean that counts as many samples as the other has."""
        loss, sums = super().loss(minibatch)
        imitation = self.imitation(
            {name.removeprefix(IMITATED): x[0] for name, x in minibatch.items() if name.startswith(IMITATED)}
        )
        return loss + imitation * sums["count"], {**sums, "imitation": imitation.detach() * sums["count"]}

    def imitation(self, done: Mapping[str, Tensor]) -> Tensor:
        """Of actions [S] that best responses took: the mean of -log π(a | o) under the average policy."""
        (policy,) = (cast(AverageActor, policy) for policy in self.policies.values())
        size, agents = len(done["agent"]), len(policy.group.agents)
        rows = torch.arange(size)
        seen = done["observation"].new_zeros(size, agents, *done["observation"].shape[1:])
        seen[rows, done["agent"]] = done["observation"]
        mask = None
        if "action_mask" in done:
            mask = torch.ones(size, agents, done["action_mask"].shape[-1], dtype=torch.bool, device=seen.device)
            mask[rows, done["agent"]] = done["action_mask"]
        action = done["action"].new_zeros(size, agents, *done["action"].shape[1:])
        action[rows, done["agent"]] = done["action"]
        parameters = policy.average(seen, mask)
        return -policy.distributions[policy.group.name].log_prob(parameters, action)[rows, done["agent"]].mean()
