"""Value decomposition networks (Sunehag et al. 2018): the team's value is the sum of its agents'."""

from __future__ import annotations

from typing import Any

from marl_hpc.algorithms.dqn import DQN
from marl_hpc.config import ConfigError
from marl_hpc.types import InterfaceSpec


class VDN(DQN):
    team = True

    @classmethod
    def check(cls, config: Any, interface: InterfaceSpec, fragment: int) -> None:
        super().check(config, interface, fragment)
        if interface.team_reward == "individual":
            raise ConfigError(f"algorithm={cls.__name__.lower()} learns one value for the team: team_reward must be mean or sum")
