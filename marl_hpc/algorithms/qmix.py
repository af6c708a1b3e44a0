"""QMIX (Rashid et al. 2018): the team's value is a monotonic function of its agents' values, by a network whose weights depend on the
state. Weights are made positive, so that each agent's best action is the team's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from marl_hpc.algorithms.dqn import DQNConfig
from marl_hpc.algorithms.vdn import VDN
from marl_hpc.networks import mlp


@dataclass(frozen=True, kw_only=True)
class QMIXConfig(DQNConfig):
    embedding: int = 32
    hypernetwork: int = 64  # hidden units of the networks that make the weights


class Mixer(nn.Module):
    """Values [..., N] and the state [..., S] to the team's value [..., 1]; ∂/∂values ≥ 0 (Rashid et al. 2018, section 4).

    Weights begin near those of a sum, whatever the scale of the state: values that begin far from all returns take long to forget.
    """

    def __init__(self, agents: int, state_size: int, config: QMIXConfig, seed: int) -> None:
        super().__init__()
        self.agents, self.embedding = agents, config.embedding
        generator = torch.Generator().manual_seed(seed)

        def hyper(outputs: int) -> nn.Sequential:
            return mlp([state_size, config.hypernetwork, outputs], "relu", 0.1, generator)

        self.first, self.last = hyper(agents * config.embedding), hyper(config.embedding)
        for network, mean in ((self.first, 1.0), (self.last, 1.0 / config.embedding)):
            nn.init.uniform_(cast(nn.Linear, network[-1]).bias, 0.5 * mean, 1.5 * mean, generator=generator)
        self.first_bias = mlp([state_size, config.embedding], "relu", 0.1, generator)
        self.last_bias = mlp([state_size, config.embedding, 1], "relu", 0.1, generator)

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        weights = self.first(state).abs().view(*values.shape[:-1], self.agents, self.embedding)
        hidden = nn.functional.elu((values.unsqueeze(-2) @ weights).squeeze(-2) + self.first_bias(state))
        return (hidden * self.last(state).abs()).sum(-1, True) + self.last_bias(state)


class QMIX(VDN):
    Config = QMIXConfig

    def build_mixer(self, seed: int) -> nn.Module:
        return Mixer(len(self.interface.agents), self.interface.state_size, self.config, seed)

    def mix(self, mixer: nn.Module, values: Tensor, state: Any) -> Tensor:
        return mixer(values, state)
