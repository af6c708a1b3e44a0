"""Critics: the value of what agents see, by what a paradigm lets them see in training.

`own` observations (independent and networked learning; agents that talk hear each other here too, by messages of the critics' own), the
team's `state` beside the own observation or instead of it (centralized training), or the `joint` observation of a team that is one
policy. T time, B copies, N agents of all groups of an interface; the joint critic has one value for the team, N = 1. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_hpc.messages import CommunicatingNetwork
from marl_hpc.networks import AgentNetwork, StackedNetwork, network_of
from marl_hpc.types import ActionSpace, GroupSpec, InterfaceSpec

Batch = Mapping[str, Tensor]  # "group/field" [T, B, N, …], and "first" [T, B], "state" and "next_state" [T, B, S]


class Critic(nn.Module):
    """V for each agent. `shared`: one network over the state alone, with the agent's place in the team beside it; otherwise one
    network for each group, over the state and the agents' own observations.

    Critics of agents that talk differ from NeurComm's (Chu et al. 2020): there V(h_i, a_N(i)) takes the policy's memory h_i and what
    neighbors do in this step, so that advantages don't count that as luck. Here a critic has a memory and messages of its own, hears
    neighbors' observations and hidden states, and sees nobody's actions: V is a value of what is seen, after a fragment's last step too.
    """

    def __init__(self, interface: InterfaceSpec, network: Mapping[str, Any], seeds: Iterator[int], shared: bool) -> None:
        super().__init__()
        self.interface = interface
        self.sees = "alone" if shared and interface.critic_sees == "state" else interface.critic_sees
        ends = np.cumsum([len(g.agents) for g in interface.groups]).tolist()
        self.places = {g.name: slice(end - len(g.agents), end) for g, end in zip(interface.groups, ends, strict=True)}
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
        self.talks = network.get("messages", "none") != "none"
        self.networks: list[AgentNetwork | StackedNetwork] = [
            CommunicatingNetwork(view, self.outputs(view), network, 1.0, next(seeds))
            if self.talks
            else network_of(view, self.outputs(view), network, 1.0, next(seeds), self.extra(view))
            for view in views
        ]
        self.registered = nn.ModuleList(self.networks)

    def outputs(self, view: GroupSpec) -> int:
        return 1

    def extra(self, view: GroupSpec) -> int:
        """How many numbers stand beside the observations of a network."""
        return self.interface.state_size if self.sees == "state" else 0

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


class ActionCritic(Critic):
    """Q for each agent, by what the paradigm lets the critic see: the agent's own action, and in centralized training what the other
    agents of the team do, those that act.

    Of a discrete agent it is given for each of its own choices, [..., N, A]: so averages over its choices are exact, and what a
    relaxed choice would change is known and not extrapolated. With several choices at once Q is the sum of those of the parts. The
    action of a box goes in beside the others': [..., N, 1].
    """

    rest: Tensor

    def __init__(self, interface: InterfaceSpec, network: Mapping[str, Any], seeds: Iterator[int], shared: bool) -> None:
        self.takes = {g.name: g.action_space.kind == "box" for g in interface.groups}
        self.gives = {g.name: 1 if self.takes[g.name] else g.action_space.size for g in interface.groups}
        super().__init__(interface, network, seeds, shared)
        sizes = [g.action_space.size for g in interface.groups for _ in g.agents]
        self.team = interface.critic_sees != "own"
        # [N, all actions]: 0 where an action is the agent's own, which stands apart
        self.register_buffer("rest", 1 - torch.block_diag(*[torch.ones(1, size) for size in sizes]), persistent=False)

    def outputs(self, view: GroupSpec) -> int:
        return max(self.gives[g.name] for g in self.seen_by(view))

    def extra(self, view: GroupSpec) -> int:
        everyone = sum(g.action_space.size for g in self.interface.groups for _ in g.agents)
        return super().extra(view) + self.own_size(view) + (everyone if self.interface.critic_sees != "own" else 0)

    def own_size(self, view: GroupSpec) -> int:
        return max(g.action_space.size if self.takes[g.name] else 0 for g in self.seen_by(view))

    def seen_by(self, view: GroupSpec) -> tuple[GroupSpec, ...]:
        """The groups whose agents one network judges."""
        return self.interface.groups if self.sees == "alone" else tuple(g for g in self.interface.groups if g.name == view.name)

    def forward(
        self,
        batch: Batch,
        actions: Mapping[str, Tensor],
        prefix: str = "",
        *,
        own: Mapping[str, Tensor] | None = None,
        memory: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """{group: Q [..., N, A or 1]} of `actions`, encoded [..., N, E], of all groups; `own` are the agents' own ones where those differ
        from what the others take them to do. `prefix` is "next_" for what actions led to; `memory` [..., N, H] that before the step."""
        values, start = {}, 0
        for network, view in zip(self.networks, self.views, strict=True):
            observation, extra, _ = self.inputs(batch, view, prefix, actions, own or actions)
            stop = start + len(view.agents)
            before = observation.new_zeros(0) if memory is None else memory[..., start:stop, :]
            q = network.step(observation, before, extra)[0] if self.units else network(observation, extra)
            for g in self.seen_by(view):
                place = self.places[g.name].start - (0 if self.sees == "alone" else self.places[view.name].start)
                values[g.name] = q[..., place : place + len(g.agents), : self.gives[g.name]]
            start = stop
        return values

    def memories(self, batch: Batch, actions: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """The memory [L, S, N, H] before and after each step of sequences [L, S], which begin without any; None where it has none."""
        if not self.units:
            return None, None
        memories = []
        for network, view in zip(self.networks, self.views, strict=True):
            observation, extra, active = self.inputs(batch, view, "", actions, actions)
            start = observation.new_zeros(*active.shape[1:], self.units)
            memories.append(network.unroll(observation, start, batch["first"], active, extra)[1])
        after = torch.cat(memories, -2)
        before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
        return before.masked_fill(batch["first"][..., None, None], 0), after

    def inputs(
        self, batch: Batch, view: GroupSpec, prefix: str, actions: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(observations [..., N, D], what stands beside each [..., N, E], who acts [..., N]) as one network takes them."""
        observation, state, active = self.see(batch, view, prefix)
        beside = [] if state is None else [state.unsqueeze(-2).expand(*active.shape, state.shape[-1])]
        if self.team:
            acting = self.acting(batch, prefix)
            places = slice(0, None) if self.sees == "alone" else self.places[view.name]
            joint = [
                (actions[g.name] * acting[..., self.places[g.name], None]).flatten(active.dim() - 1) for g in self.interface.groups
            ]
            together = torch.cat(joint, -1).unsqueeze(-2)
            beside.append(together * self.rest[places])
        if size := self.own_size(view):
            parts = [own[g.name] if self.takes[g.name] else torch.zeros_like(own[g.name]) for g in self.seen_by(view)]
            beside.append(torch.cat([nn.functional.pad(x[..., :size], (0, max(0, size - x.shape[-1]))) for x in parts], -2))
        return observation, torch.cat(beside, -1) if beside else None, active

    def acting(self, batch: Batch, prefix: str = "") -> Tensor:
        """Who acts [..., N]; after the last step of an episode that was cut off, those who would have gone on."""
        acting = torch.cat([batch[f"{g.name}/{prefix}active"] for g in self.interface.groups], -1)
        if prefix and self.interface.turns == 1:
            truncated = torch.cat([batch[f"{g.name}/truncated"] for g in self.interface.groups], -1)
            acting = acting | (truncated & ~acting.any(-1, True))
        return acting
