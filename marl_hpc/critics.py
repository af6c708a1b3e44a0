"""Critics: the value of what agents see, by what a paradigm lets them see in training.

`own` observations (independent learning), the team's `state` beside the own observation or instead of it (centralized training), or
the `joint` observation of a team that is one policy. T time, B copies, N agents of all groups of an interface; the joint critic has
one value for the team, N = 1. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from marl_hpc.networks import AgentNetwork
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

Batch = Mapping[str, Tensor]  # "group/field" [T, B, N, …], and "first" [T, B], "state" and "next_state" [T, B, S]


class Critic(nn.Module):
    """V for each agent. `shared`: one network over the state alone, with the agent's place in the team beside it; otherwise one
    network for each group, over the state and the agents' own observations."""

    def __init__(self, interface: InterfaceSpec, network: Mapping[str, Any], seeds: Iterator[int], shared: bool) -> None:
        super().__init__()
        self.interface = interface
        self.sees = "alone" if shared and interface.critic_sees == "state" else interface.critic_sees
        extra = interface.state_size if self.sees == "state" else 0
        choice = ActionSpace(kind="discrete", n=1)
        if self.sees == "alone":
            views = [
                GroupSpec(name="team", agents=interface.agents, observation_shape=(interface.state_size,), action_space=choice)
            ]
        elif self.sees == "joint":
            size = sum(len(g.agents) * math.prod(g.observation_shape) for g in interface.groups)
            views = [GroupSpec(name="team", agents=("team",), observation_shape=(size,), action_space=choice)]
        else:
            views = [replace(g, action_mask=False) for g in interface.groups]
        self.views = views
        self.networks: list[AgentNetwork] = [AgentNetwork(view, 1, network, 1.0, next(seeds), extra) for view in views]
        self.registered = nn.ModuleList(self.networks)

    @property
    def units(self) -> int:
        return self.networks[0].units

    def unroll(self, batch: Batch, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """(values [T, B, N], memory after each step [T, B, N, H]) from the memory [B, N, H] before the first step."""
        values, memories = [], []
        start = 0
        for network, view in zip(self.networks, self.views, strict=True):
            observation, extra, active = self.see(batch, view, "")
            stop = start + len(view.agents)
            before = observation.new_zeros(*active.shape[1:], self.units) if memory is None else memory[:, start:stop]
            value, after = network.unroll(observation, before, batch["first"], active, extra)
            values.append(value.squeeze(-1))
            memories.append(after)
            start = stop
        return torch.cat(values, -1), torch.cat(memories, -2)

    def after(self, batch: Batch, memory: Tensor) -> Tensor:
        """Values [..., N] of what the actions led to, from the memory [..., N, H] after the step."""
        values, start = [], 0
        for network, view in zip(self.networks, self.views, strict=True):
            observation, extra, _ = self.see(batch, view, "next_")
            stop = start + len(view.agents)
            values.append(network.step(observation, memory[..., start:stop, :], extra)[0].squeeze(-1))
            start = stop
        return torch.cat(values, -1)

    def see(self, batch: Batch, view: GroupSpec, prefix: str) -> tuple[Tensor, Tensor | None, Tensor]:
        """(observations [..., N, D], the state beside them, who acts [..., N]) as one network takes them."""
        groups = self.interface.groups
        active = batch[f"{groups[0].name}/active"]
        lead = active.dim() - 1
        if self.sees == "joint":
            joint = torch.cat([batch[f"{g.name}/{prefix}observation"].flatten(lead) for g in groups], -1)
            return joint.unsqueeze(-2), None, torch.ones_like(active[..., :1])
        if self.sees == "alone":
            state = batch[f"{prefix}state"].unsqueeze(-2)
            return state.expand(*state.shape[:-2], len(view.agents), state.shape[-1]), None, self.acting(batch)
        extra = batch[f"{prefix}state"] if self.sees == "state" else None
        return batch[f"{view.name}/{prefix}observation"], extra, batch[f"{view.name}/active"]

    def acting(self, batch: Batch) -> Tensor:
        return torch.cat([batch[f"{g.name}/active"] for g in self.interface.groups], -1)


class ActionCritic(nn.Module):
    """Q of each of an agent's own choices, given the state, its observation, who it is, and what the other agents of the team chose.

    One feed-forward network for each group; discrete actions. Agents that don't act count as having chosen nothing.
    """

    def __init__(self, interface: InterfaceSpec, network: Mapping[str, Any], seeds: Iterator[int]) -> None:
        super().__init__()
        self.interface = interface
        self.sizes = [g.action_space.size for g in interface.groups for _ in g.agents]
        extra = interface.state_size + sum(self.sizes)
        plain = {**network, "gru": 0}
        self.networks: list[AgentNetwork] = [
            AgentNetwork(replace(g, action_mask=False), g.action_space.size, plain, 1.0, next(seeds), extra)
            for g in interface.groups
        ]
        self.registered = nn.ModuleList(self.networks)

    def forward(self, batch: Batch, chosen: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """{group: Q [..., N, A]}; `chosen` are the actions [..., N] of all groups, `prefix` is "next_" for what actions led to."""
        encoded = []
        for g in self.interface.groups:
            one_hot = nn.functional.one_hot(chosen[g.name].long(), g.action_space.n) * batch[f"{g.name}/{prefix}active"].unsqueeze(
                -1
            )
            encoded += list(one_hot.unbind(-2))
        state, values, place = batch[f"{prefix}state"], {}, 0
        for network, g in zip(self.networks, self.interface.groups, strict=True):
            others = []
            for i in range(len(g.agents)):
                rest = [torch.zeros_like(x) if j == place + i else x for j, x in enumerate(encoded)]
                others.append(torch.cat(rest, -1))
            place += len(g.agents)
            beside = torch.stack(others, -2).to(state.dtype)
            extra = torch.cat([state.unsqueeze(-2).expand(*beside.shape[:-1], state.shape[-1]), beside], -1)
            values[g.name] = network(batch[f"{g.name}/{prefix}observation"], extra)
        return values
