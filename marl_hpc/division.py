"""Who has which agents of a run: in networked learning the agents of an environment are divided among the learners, and in the same way
among the rollout workers of a *team*, which step the same copies together. All else is as if there were more interfaces: one a part.

Every rank computes it alike. Without networked interfaces a team is one worker, and nothing is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from marl_hpc import paradigms
from marl_hpc.comm.collectives import Team
from marl_hpc.comm.graphs import Messages
from marl_hpc.config import Config
from marl_hpc.envs.part import Members, PartBatch
from marl_hpc.neighborhoods import Neighborhoods
from marl_hpc.paradigms import Plan
from marl_hpc.types import EnvBatch, EnvSpec, InterfaceSpec

Actions = dict[str, np.ndarray]  # by group [B, N, …]


class Division:
    def __init__(self, config: Config, spec: EnvSpec, team: int, learners: int) -> None:
        """`team`: how many learners, or workers of a team, the agents of networked interfaces are divided among."""
        self.spec, self.team = spec, team
        self.group: Any = None  # of the processes that have the other parts; default: all learners
        self.whole = paradigms.plan(config, spec)
        self.neighborhoods = {
            plan.interface.name: Neighborhoods(config.topology, spec, plan.interface.groups[0], team)
            for plan in self.whole
            if plan.interface.stacked
        }
        self.plans: list[Plan] = []
        self.places: dict[str, int] = {}  # in a team: who has an interface
        for plan in self.whole:
            around = self.neighborhoods.get(plan.interface.name)
            parts = [plan.interface] if around is None else [around.part(plan.interface, k) for k in range(team)]
            self.plans += [plan._replace(interface=part) for part in parts]
            self.places |= {part.name: k for k, part in enumerate(parts)}
        together = [plan.interface.name for plan in self.whole if not plan.interface.stacked]
        hosts = paradigms.hosts(together, learners)
        self.hosts = {name: hosts.get(name, [place]) for name, place in self.places.items()}  # learners of each interface

    def collected_by(self, worker: int) -> list[Plan]:
        """What a rollout worker acts for: its part of networked interfaces, and the first of a team all other interfaces."""
        return [plan for plan in self.plans if self.places[plan.interface.name] == worker % self.team]

    def bring(self, workers: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Of these workers those who act for each interface."""
        return {name: tuple(w for w in workers if w % self.team == place) for name, place in self.places.items()}

    def exchanges(self, learner: int, device: torch.device, deadline_s: float, group: Any = None) -> dict[str, Any]:
        """How a learner's parts of networked interfaces reach their neighbors; all learners call it alike. `group`: see `Neighborhoods`."""
        found = {}
        for plan in self.plans:
            around = self.neighborhoods.get(plan.interface.whole)
            if around is not None and self.places[plan.interface.name] == learner:
                found[plan.interface.name] = around.exchange(learner, device, deadline_s, group)
                if learner == 0:
                    print(f"{plan.interface.whole}: {around.describe()}", flush=True)
        return found

    def messages(self, interface: InterfaceSpec, index: int, deadline_s: float, hops: int = 1) -> Messages:
        """What the agents of a learner's or worker's part of an interface hear others by that are at most so many hops away."""
        return self.neighborhoods[interface.whole].messages(index % self.team, self.group, deadline_s, hops)

    def collecting(self, worker: int, workers: int, batches: list[EnvBatch], deadline_s: float) -> list[EnvBatch]:
        """A worker's part of these environments; all workers call it alike."""
        if self.team == 1:
            return batches
        team = Team(worker, workers, self.team, deadline_s)
        self.group = team.group
        leads = team.index == 0
        return [PartBatch(env, self.members(team.index), self.telling(team), leads=leads) for env in batches]

    def members(self, place: int) -> list[Members]:
        """The agents that a team's worker of this place acts for, among those of the environment."""
        found = []
        for plan in self.collected_by(place):
            around = self.neighborhoods.get(plan.interface.whole)
            for group in plan.interface.groups:
                if around is None:
                    found.append(Members(group, group.name, None))
                else:
                    found.append(Members(group, around.group.name, around.agents(place)))
        return found

    def telling(self, team: Team) -> Callable[[Actions], Actions]:
        """How workers of a team tell each other what their agents do: from one's actions those of all agents."""
        parts = [{of.whole: of for of in self.members(place)} for place in range(self.team)]

        def tell(actions: Mapping[str, np.ndarray]) -> Actions:
            found = {}
            copies = len(next(iter(actions.values())))
            for group in self.spec.groups:
                space, mine = group.action_space, parts[team.index].get(group.name)
                box = space.kind == "box"
                shape, kind = (space.shape, np.float32) if box else (space.action_shape, np.int64)
                own = np.zeros((copies, 0, *shape), kind) if mine is None else actions[mine.group.name].astype(kind)
                widths = [len(part[group.name].group.agents) if group.name in part else 0 for part in parts]
                told = team.gather(torch.from_numpy(np.ascontiguousarray(own)), widths)
                found[group.name] = np.empty((copies, len(group.agents), *shape), kind)
                for part, x in zip(parts, told, strict=True):
                    if (of := part.get(group.name)) is not None:
                        found[group.name][:, slice(None) if of.places is None else of.places] = x.numpy()
            return found

        return tell
