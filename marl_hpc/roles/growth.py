"""How populations grow by what is learned: when a stage ends, a learner freezes its policies; the lead writes down what that comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from marl_hpc.config import Population, needs_table
from marl_hpc.games import Game, mixture_policy, nash_conv
from marl_hpc.populations import Member, PayoffTable, PolicyId, PolicyPopulation, content_hash
from marl_hpc.populations.schemes import Strategy, lines_of, number_of, plays_greedily, resets, what_learns
from marl_hpc.roles.casting import FrozenPolicies, Player, learning_in, pin_name, populations_of
from marl_hpc.roles.clients import ParameterClient
from marl_hpc.roles.population import PopulationClient
from marl_hpc.roles.population_folder import MemberPolicy, PopulationFolder
from marl_hpc.roles.recorder import Recorder
from marl_hpc.roles.replica import Replica
from marl_hpc.roles.schedule import Schedule
from marl_hpc.roles.tabulating import tabular
from marl_hpc.types import InterfaceSpec

MOST_KEPT = 100  # members whose policies are all exported at a run's end; of more, only those that somebody plays
PLAYED = 1e-6  # smaller shares of a mixture don't count


class Growth:
    def __init__(
        self, section: Population, populations: Mapping[str, int], parameters: ParameterClient, client: PopulationClient,
        players: Sequence[Player], places: Mapping[str, int], records: Records | None, seed: int,
    ) -> None:  # fmt: skip
        """`populations` by interface of line 0, `places` of those among all; `records` are the lead's."""
        self.players, self.places = players, places
        self.section, self.populations, self.seed, self.lines = section, populations, seed, lines_of(section)
        self.parameters, self.client, self.records = parameters, client, records
        self.settled = -1  # the last stage whose opponents are known

    def begin(self, replicas: Sequence[Replica]) -> None:
        """Add what populations start with."""
        start = self.section.start or "network"
        for agent, part, _ in replicas:
            if part == 0 and agent.interface.line == 0:
                values = agent.policy_values()
                if start != "network":
                    values = {name: torch.zeros_like(x) for name, x in values.items()}
                played = {"network": self.played, "uniform": "uniform", "pure": "greedy"}[start]
                self.add(agent.interface, 0, 0, values, f"start: {start}", played, None, 0, 0)

    @property
    def played(self) -> str:
        return "greedy" if plays_greedily(self.section) else "drawn"

    def freeze(self, replicas: Sequence[Replica], stage: int, env_steps: int) -> None:
        """Add what has been learned, when this stage begins, after so many environment steps of the run."""
        before = {member.id: member for member in self.client.members()} if stage > 1 else {}
        for agent, part, _ in replicas:
            line, own = agent.interface.line, self.populations[agent.interface.foremost]
            if part == 0:
                spent, parent = env_steps, self.first_parent(line)
                if stage > 1:
                    last = before[PolicyId(own, number_of(stage - 1, line, self.lines))]
                    alone = resets(self.section, line, stage - 1, self.seed)
                    parent = None if alone else last.id.number
                    spent += (0 if alone else last.env_steps) - last.run_steps
                number, made_by = number_of(stage, line, self.lines), what_learns(self.section, line, stage - 1)
                self.add(agent.interface, number, stage, agent.policy_values(), made_by, self.played, parent, spent, env_steps)
            if resets(self.section, line, stage, self.seed):
                agent.begin_anew(stage)

    def first_parent(self, line: int) -> int | None:
        """What a line began with: line 0 with what the population did, where that is its network; other lines with networks of their own."""
        return 0 if line == 0 and (self.section.start or "network") == "network" else None

    def useful(
        self, interface: InterfaceSpec, parts: Mapping[str, Tensor], columns: Tensor, total: int
    ) -> tuple[dict[str, Tensor], Tensor, int]:
        """What `AgentInterface.learn` takes, without copies [:, B] in which an interface never learns; of a replica's part it may be that
        none is left. Minibatches are of those of all replicas, as they are of one."""
        mine = [i for i, player in enumerate(self.players) if player.population == self.places[interface.foremost]]
        kept = torch.from_numpy(learning_in(total, len(self.players), self.lines, interface.line, mine, self.section))
        here = kept[columns]
        return {name: x[:, here] for name, x in parts.items()}, (kept.cumsum(0) - 1)[columns[here]], int(kept.sum())

    def await_opponents(self, stage: int) -> None:
        """Return when workers know whom to cast in a stage. Before that they collect nothing, which isn't to be taken for a slow
        environment: a payoff table may take far longer than fragments do."""
        if stage > self.settled:
            self.client.await_strategy(max(0, stage - self.section.lag))
            self.settled = stage

    def await_last(self, stage: int) -> None:
        """Return when what populations amount to is known at the end, in this stage."""
        self.client.await_strategy(stage)

    def add(
        self, interface: InterfaceSpec, number: int, stage: int, values: Mapping[str, Tensor], made_by: str, played: str,
        parent: int | None, env_steps: int, run_steps: int,
    ) -> None:  # fmt: skip
        name = PolicyId(self.populations[interface.foremost], number)
        for policy, flat in values.items():
            self.parameters.keep(pin_name(name, policy.removesuffix(f"+{interface.line}")), stage, flat)
        content = content_hash(np.concatenate([x.numpy() for x in values.values()]))
        self.client.admit(Member(name, parent, stage, env_steps, run_steps, made_by, played, content))

    def write_down(self) -> None:
        """Who is there now, and what is known of them: a run that is stopped leaves that, too."""
        if self.records is not None:
            self.records.write()

    def record(self, recorder: Recorder, schedule: Schedule, iteration: int, *, wait: bool) -> None:
        """Write down the stages up to this iteration whose strategies are known; all of them where it waits."""
        assert self.records is not None, "the lead has some"
        while self.records.next <= schedule.stage(iteration):
            found = self.client.strategy(self.records.next, wait=wait)
            if found is None:
                return
            recorder.log_population(schedule, self.records.next, self.records.note(found))
        if wait:
            self.records.close()


class Records:
    """What the lead writes into the run's folder."""

    def __init__(
        self, section: Population, players: Sequence[Player], folder: PopulationFolder, frozen: FrozenPolicies, client: PopulationClient,
        game: Game | None, stage: int,
    ) -> None:  # fmt: skip
        """`game`: the game written down whole, where policies can be tabulated in it; `stage`: the first that isn't noted yet."""
        self.section, self.players, self.folder, self.frozen, self.client, self.game = (
            section,
            players,
            folder,
            frozen,
            client,
            game,
        )
        self.populations = populations_of(players)
        self.next = stage
        self.tables: dict[tuple[int, int], np.ndarray] = {}
        self.last: Strategy | None = None

    def note(self, strategy: Strategy) -> dict[str, float]:
        """Metrics of a stage's strategy."""
        metrics = {"population/size": float(len(strategy.mixtures[0]))}
        for player, mixture in enumerate(strategy.mixtures):
            metrics[f"population/support/player_{player}"] = float((mixture > PLAYED).sum())
        if self.game is not None:
            gap = nash_conv(self.game, self.policies(strategy.mixtures))
            metrics |= {"population/nash_conv": gap, "population/exploitability": gap / self.game.players}
        self.folder.add(self.next, strategy.mixtures, **{name.removeprefix("population/"): x for name, x in metrics.items()})
        self.next, self.last = self.next + 1, strategy
        return metrics

    def policies(self, mixtures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The behavior policy [I, A] of each player that its mixture amounts to, weighted by reach."""
        assert self.game is not None
        found = []
        for seat, mixture in enumerate(mixtures):
            played = np.flatnonzero(mixture > 0)
            found.append(mixture_policy(self.game, seat, np.stack([self.table(seat, int(k)) for k in played]), mixture[played]))
        return found

    def table(self, seat: int, number: int) -> np.ndarray:
        if (seat, number) not in self.tables:
            frozen = self.frozen[PolicyId(self.populations[seat], number)]
            assert self.game is not None
            self.tables[seat, number] = tabular(frozen.networks, self.players[seat].places, self.game, seat, frozen.member.played)
        return self.tables[seat, number]

    def write(self) -> tuple[PolicyPopulation, PayoffTable]:
        """Write who is there, and what they return against one another as far as that is known."""
        population = PolicyPopulation(self.populations)
        for member in self.client.members():
            population.admit(member)
        table = PayoffTable(self.populations)
        if needs_table(self.section):
            table.adopt(self.client.table())
        self.folder.write(population, table)
        return population, table

    def close(self) -> None:
        """Write who is there, and what all that amounts to."""
        population, table = self.write()
        self.folder.rank(table)
        last = self.last or self.client.strategy(self.next - 1, wait=True)
        assert last is not None
        self.keep(population, last.mixtures)
        if self.game is not None:
            self.folder.export(self.game, self.policies(last.mixtures))

    def keep(self, population: PolicyPopulation, mixtures: Sequence[np.ndarray]) -> None:
        """Export members for their users: all, or where these are more than MOST_KEPT those that mixtures play, and each population's
        newest."""
        names, rule = [member.id for member in population], "all members"
        if len(names) > MOST_KEPT:
            kept = {population.members(own)[-1].id for own in self.populations}
            for own, mixture in zip(self.populations, mixtures, strict=True):
                kept |= {PolicyId(own, int(number)) for number in np.flatnonzero(mixture > PLAYED)}
            rule = f"of {len(names)} members those with a share of the last mixtures, and the newest"
            names = [name for name in names if name in kept]
        players = [
            {"agents": self.agents(player), "population": own, "mixture": mixture.tolist()}
            for player, own, mixture in zip(self.players, self.populations, mixtures, strict=True)
        ]
        about = {"kept": rule, "members": [str(name) for name in names], "players": players}
        self.folder.keep((policy for name in names for policy in self.exported(name)), about)

    def agents(self, player: Player) -> list[str]:
        groups = self.frozen.plans[player.population].interface.groups
        return [group.agents[place] for group in groups for place in player.places.get(group.name, [])]

    def exported(self, name: PolicyId) -> Iterator[MemberPolicy]:
        """A member's policies."""
        plan = self.frozen.plan(name.population)
        network = plan.algorithm.network(plan.options, plan.interface)
        member, values = self.frozen.values(name)
        for policy, groups in plan.interface.policies.items():
            yield MemberPolicy(member, policy, groups, values[policy], network)
