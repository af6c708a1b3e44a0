"""Who plays whom: in populations every copy of the environment is cast anew with each episode, some players with frozen policies.

A *player* is what a population has policies for: an agent, or a team of which all agents are played by one member. One player of a copy
learns, or all do; data of who is played by a frozen policy is marked as inactive, so that nobody learns from it. Before a stage begins,
rollout workers play whom the payoff table lacks.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl_hpc.actors import PolicyNetwork, build_policy
from marl_hpc.agents import TeamAgent
from marl_hpc.config import SIMULATED, Config, ConfigError, Population, needs_table
from marl_hpc.envs.openspiel_fast import CompiledBatch, whole_game
from marl_hpc.envs.vectorized import VectorizedBatch
from marl_hpc.games import Game, realization_plan
from marl_hpc.keyed_random import OPPONENT, PAYOFF_ACTION, generator
from marl_hpc.metrics import Clock
from marl_hpc.networks import load_flat
from marl_hpc.paradigms import Plan
from marl_hpc.populations import Lease, Member, PolicyId, content_hash, episode_seeds, exact_cells, profiles
from marl_hpc.populations.cells import sharing
from marl_hpc.populations.schemes import ALL_LEARN, LEARNS, Strategy, lines_of
from marl_hpc.populations.suitability import check_solver
from marl_hpc.roles.acting import Answer, Question, answer
from marl_hpc.roles.clients import ParameterClient
from marl_hpc.roles.play import episodes_of
from marl_hpc.roles.population import PopulationClient, Work
from marl_hpc.roles.tabulating import remembers_nothing, tabular, tabulates
from marl_hpc.roles.zero_sum import earned, zero_sum
from marl_hpc.types import EnvBatch, InterfaceSpec

Networks = dict[str, PolicyNetwork]
MATCHES = 16  # episodes that are simulated side by side


class Player(NamedTuple):
    population: int  # the place of its interface, the one of line 0
    places: dict[str, list[int]]  # of its agents, by group


def players_of(plans: Sequence[Plan]) -> list[Player]:
    """The players of these interfaces: their teams, and all agents that learn for themselves; in the order of their numbers where agents
    are called by some, as player_0."""
    found: list[tuple[list[Any], Player]] = []
    for population, plan in enumerate(plans):
        groups = plan.interface.groups if plan.interface.line == 0 else ()
        if not groups:
            continue
        if issubclass(plan.agent, TeamAgent):
            found.append(
                (natural(plan.interface.agents[0]), Player(population, {g.name: list(range(len(g.agents))) for g in groups}))
            )
        else:
            found += [(natural(agent), Player(population, {g.name: [i]})) for g in groups for i, agent in enumerate(g.agents)]
    return [player for _, player in sorted(found, key=lambda pair: pair[0])]


def populations_of(players: Sequence[Player]) -> tuple[int, ...]:
    """Each player's population, numbered in the order of players."""
    order = list(dict.fromkeys(player.population for player in players))
    return tuple(order.index(player.population) for player in players)


def natural(name: str) -> list[Any]:
    """
    >>> sorted(["player_10", "player_9"], key=natural)
    ['player_9', 'player_10']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def pin_name(member: PolicyId, policy: str) -> str:
    """What a member's policy is pinned as on the parameter shards."""
    return f"population/{member}/{policy}"


@dataclass
class Frozen:
    networks: Networks
    member: Member


class FrozenPolicies:
    """Members of populations, ready to act; those that were used last are kept."""

    def __init__(
        self,
        plans: Sequence[Plan],
        populations: Mapping[int, int],
        build: Callable[[Plan], Networks],
        parameters: ParameterClient,
        client: PopulationClient,
        limit: int,
    ) -> None:  # fmt: skip
        """`populations`: the place of each population's interface among `plans`."""
        self.plans, self.populations, self.build, self.limit = plans, populations, build, limit
        self.parameters, self.client = parameters, client
        self.members: dict[PolicyId, Member] = {}
        self.kept: OrderedDict[PolicyId, Frozen] = OrderedDict()

    def __getitem__(self, name: PolicyId) -> Frozen:
        if name in self.kept:
            self.kept.move_to_end(name)
            return self.kept[name]
        member, values = self.values(name)
        networks = self.build(self.plan(name.population))
        for policy, flat in values.items():
            load_flat(networks[policy], flat)
        self.kept[name] = Frozen(networks, member)
        while len(self.kept) > self.limit:
            self.kept.popitem(last=False)
        return self.kept[name]

    def plan(self, population: int) -> Plan:
        return self.plans[self.populations[population]]

    def values(self, name: PolicyId) -> tuple[Member, dict[str, torch.Tensor]]:
        """A member, and the flat parameters of its policies. Raises RuntimeError where they aren't what was frozen."""
        if name not in self.members:
            self.members = {member.id: member for member in self.client.members()}
        member, plan = self.members[name], self.plan(name.population)
        values = {policy: self.parameters.pinned(pin_name(name, policy))[1] for policy in plan.interface.policies}
        found = content_hash(np.concatenate([x.numpy() for x in values.values()]))
        if found != member.content:
            raise RuntimeError(f"the values of frozen policy {name} have changed: their SHA-256 isn't {member.content}")
        return member, values


class Casting:
    """What a rollout worker casts its copies with."""

    def __init__(
        self, plans: Sequence[Plan], frozen: FrozenPolicies, client: PopulationClient, seed: int, game: Game | None, clock: Clock,
        alive: Callable[[], None], make: Callable[[int], EnvBatch], lease_s: float, anticipatory: float = 0.0,
    ) -> None:  # fmt: skip
        """`game`: where payoffs are computed; `make`: so many copies of the environment, to simulate them in; `lease_s`: how long others
        leave a worker what it simulates or computes without a word of it; `anticipatory`: how often a player acts by its best response,
        where it has two ways to act."""
        self.make, self.lease_s, self.renewed_s = make, lease_s, 0.0
        self.arena: EnvBatch | None = None
        self.anticipatory = anticipatory
        self.responds = np.zeros((0, 0), bool)  # [B, players]: by its best response
        self.plans, self.frozen, self.client, self.seed, self.game = plans, frozen, client, seed, game
        self.clock, self.alive = clock, alive
        self.players = players_of(plans)
        self.populations = populations_of(self.players)
        self.stage = -1
        self.strategy: Strategy | None = None
        self.settled: set[int] = set()  # stages whose payoffs are complete
        self.lines = 1 + max(plan.interface.line for plan in plans)
        self.cast = np.zeros((0, len(self.players)), np.int64)  # [B, players] members' numbers, or LEARNS - line
        self.trains = np.zeros((0, len(self.players)), bool)  # whose data is learned from
        self.plans_of: dict[tuple[int, PolicyId], np.ndarray] = {}  # realization plans by seat

    def turn_to(self, stage: int) -> None:
        """Cast by a stage's strategy from now on. As long as the payoff table isn't complete, play or compute what it lacks."""
        while stage != self.stage:
            work = self.client.work(stage, wait=True)
            if work.strategy is not None:
                self.stage, self.strategy = stage, work.strategy
            else:
                self.do(work)

    def ahead(self, stage: int) -> None:
        """Play or compute some of what the payoff table lacks for a stage, if there is something that nobody is at."""
        if stage not in self.settled:
            work = self.client.work(stage, wait=False)
            if work.strategy is not None:
                self.settled.add(stage)
            self.do(work)

    def do(self, work: Work) -> None:
        self.renewed_s = time.monotonic()
        with self.clock.computing("payoffs"):
            if work.lease is not None:
                self.client.report(work.lease, self.simulate(work.lease))
            elif work.cells is not None:
                self.client.fill(*self.compute(work.cells))

    def busy(self) -> None:
        """Show that this rank makes progress, and now and then those who gave it work: long batches aren't given to others, too."""
        self.alive()
        if time.monotonic() - self.renewed_s > self.lease_s / 4:
            self.client.renew()
            self.renewed_s = time.monotonic()

    def begin(self, copies: Sequence[int], numbers: Sequence[int], keys: Sequence[tuple[int, ...]], total: int) -> None:
        """Draw who plays the next episodes of these copies; `numbers` are their places among all `total` copies of the run, `keys` what an
        episode is known by."""
        strategy = self.strategy
        assert strategy is not None, "turn_to comes first"
        if len(self.cast) != total:
            self.cast = np.full((total, len(self.players)), LEARNS)
            self.trains = np.ones((total, len(self.players)), bool)
            self.responds = np.zeros((total, len(self.players)), bool)
        for copy, number, key in zip(copies, numbers, keys, strict=True):
            stream = generator(self.seed, OPPONENT, *key)
            line, player = turn(number, len(self.players), self.lines)
            if stream.random() < strategy.live[line]:
                self.cast[copy], self.trains[copy] = LEARNS, True
                self.responds[copy] = stream.random(len(self.players)) < self.anticipatory
                continue
            meeting = strategy.meetings[line][player]
            self.cast[copy] = meeting.profiles[stream.choice(len(meeting.weights), p=meeting.weights)]
            self.cast[copy, player] = LEARNS - line
            self.trains[copy] = np.arange(len(self.players)) == player

    def learns(self, interface: InterfaceSpec, group: str, agents: int) -> np.ndarray:
        """[B, N]: whose data of a group an interface learns from."""
        return self.spread((self.cast == LEARNS - interface.line) & self.trains, group, agents)

    def modes(self, group: str, agents: int) -> np.ndarray:
        """[B, N]: who of a group acts by its best response."""
        return self.spread(self.responds, group, agents)

    def spread(self, of_players: np.ndarray, group: str, agents: int) -> np.ndarray:
        """[B, players] to [B, N]."""
        found = np.zeros((len(of_players), agents), bool)
        for player, own in enumerate(self.players):
            if group in own.places:
                found[:, own.places[group]] = of_players[:, [player]]
        return found

    def replace(self, questions: Mapping[str, Question], answers: dict[str, Answer]) -> None:
        """Where others than the policies of line 0 play, put what they do in place of what `answers` say for those."""
        for plan_place, plan in enumerate(self.plans):
            mine = [i for i, player in enumerate(self.players) if player.population == plan_place]
            for number in np.setdiff1d(self.cast[:, mine], [LEARNS]).tolist():
                rows = np.flatnonzero((self.cast[:, mine] == number).any(1))
                for name in plan.interface.policies:
                    if number < LEARNS:
                        self.put(mine, number, rows, actions_of(answers[f"{name}+{LEARNS - number}"], rows), answers[name])
                        continue
                    frozen = self.frozen[PolicyId(self.populations[mine[0]], number)]
                    said = answer(frozen.networks[name], asked(questions[name], rows, frozen.member.played))
                    self.put(mine, number, rows, said.actions, answers[name])
                    self.remember(mine, number, rows, said.memory, answers[name], frozen.networks[name])

    def put(self, players: Sequence[int], number: int, rows: np.ndarray, actions: Mapping[str, Tensor], into: Answer) -> None:
        """What a policy does [rows, N, …] in the copies `rows`, where it plays one of these players."""
        for player in players:
            here, copies = self.playing(player, number, rows)
            for group, places in self.players[player].places.items():
                if group in actions:
                    into.actions[group][copies[:, None], torch.tensor(places)] = actions[group][here][:, places]

    def remember(
        self, players: Sequence[int], number: int, rows: np.ndarray, memory: Tensor, into: Answer, policy: PolicyNetwork
    ) -> None:
        """Its memory [rows, …] likewise: it stands in the place of that of line 0."""
        for player in players:
            here, copies = self.playing(player, number, rows)
            for group in policy.groups if policy.memory_shape[1] else ():
                places = torch.tensor(self.players[player].places.get(group.name, []), dtype=torch.int64)
                own = torch.arange(policy.memory_shape[0]) if policy.together else places
                if len(places):
                    into.memory[copies[:, None], own] = memory[here][:, own]

    def playing(self, player: int, number: int, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(where among `rows`, which copies) a policy plays this player."""
        here = torch.from_numpy(self.cast[rows, player] == number)
        return here, torch.from_numpy(rows)[here]

    def simulate(self, lease: Lease) -> np.ndarray:
        """Returns [E, players] of a lease's episodes: sums over steps, means over a player's agents."""
        if self.arena is None:
            self.arena = self.make(MATCHES)
            if isinstance(self.arena, VectorizedBatch | CompiledBatch):  # where a copy costs next to nothing
                self.arena = self.make(lease.episodes)
        env = self.arena
        whom = profiles(self.populations, lease.cell, lease.numbers)
        seeds = episode_seeds(self.seed, lease.cell, lease.numbers)
        before, self.cast = self.cast, np.zeros((env.copies, len(self.players)), np.int64)

        def start(copy: int, episode: int) -> tuple[int, np.random.Generator]:
            self.cast[copy] = whom[episode]
            return seeds[episode], generator(seeds[episode], PAYOFF_ACTION)

        try:
            places = [player.places for player in self.players]
            found = episodes_of(env, Match(self), range(len(whom)), start, lambda step: earned(step, places), alive=self.busy)
        finally:
            self.cast = before
        return np.array([returns for returns, _ in found])

    def compute(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """These cells exactly, as `PayoffTable.fill` takes them."""
        assert self.game is not None
        sizes = cells.max(0) + 1
        plans = [np.stack([self.plan_of(seat, number) for number in range(int(size))]) for seat, size in enumerate(sizes)]
        for population in set(self.populations):  # who shares one has the same policies, each in its seat
            seats = [seat for seat, own in enumerate(self.populations) if own == population]
            most = max(len(plans[seat]) for seat in seats)
            for seat in seats:
                plans[seat] = np.stack([self.plan_of(seat, number) for number in range(most)])
        found = exact_cells(self.game, plans, cells, self.populations)
        return found.cells, found.means, found.beats

    def plan_of(self, seat: int, number: int) -> np.ndarray:
        """A member's realization plan [S] in a seat."""
        assert self.game is not None
        name = PolicyId(self.populations[seat], number)
        if (seat, name) not in self.plans_of:
            self.busy()
            frozen = self.frozen[name]
            policy = tabular(frozen.networks, self.players[seat].places, self.game, seat, frozen.member.played)
            self.plans_of[seat, name] = realization_plan(self.game, seat, policy)
        return self.plans_of[seat, name]


def turn(number: int | np.ndarray, players: int, lines: int) -> tuple[Any, Any]:
    """(line, player) that learns in a copy of the environment where not all do, from its place among all copies."""
    return number // players % lines, number % players


def learning_in(total: int, players: int, lines: int, line: int, mine: Sequence[int], section: Population) -> np.ndarray:
    """[total] bool: the copies of the environment in which a line of these players may learn."""
    at, player = turn(np.arange(total), players, lines)
    everybody = line == 0 and (section.name in ALL_LEARN or (section.name in ("delta_uniform", "league") and section.live > 0))
    return (at == line) & (everybody | np.isin(player, mine))


class Match:
    """Frozen policies only, as an `Acting`."""

    def __init__(self, casting: Casting) -> None:
        self.casting = casting
        first = [casting.frozen[PolicyId(population, 0)] for population in dict.fromkeys(casting.populations)]
        self.policies: Networks = {name: network for frozen in first for name, network in frozen.networks.items()}

    def act(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        answers = {name: nothing_said(self.policies[name], question) for name, question in questions.items()}
        self.casting.replace(questions, answers)
        return answers


def actions_of(said: Answer, rows: np.ndarray) -> dict[str, Tensor]:
    return {group: x[torch.from_numpy(rows)] for group, x in said.actions.items()}


def nothing_said(policy: PolicyNetwork, question: Question) -> Answer:
    """An answer to be filled in."""
    actions, log_probs = {}, {}
    for group in policy.groups:
        lead, space = question.inputs[group.name]["active"].shape, group.action_space
        kind = question.memory.dtype if space.kind == "box" else torch.int64
        actions[group.name] = torch.zeros(*lead, *space.action_shape, dtype=kind)
        log_probs[group.name] = question.memory.new_zeros(lead)
    return Answer(actions, log_probs, question.memory.clone())


def asked(question: Question, rows: np.ndarray, played: str) -> Question:
    """The question about some copies, to a policy that is played like that."""
    places = torch.from_numpy(rows)
    inputs = {group: {name: x[places] for name, x in fields.items()} for group, fields in question.inputs.items()}
    noise = None if question.noise is None or played == "greedy" else {group: x[places] for group, x in question.noise.items()}
    return Question(inputs, question.memory[places], noise, 1.0 if played == "uniform" else 0.0)


def game_of(plans: Sequence[Plan], env: EnvBatch) -> Game | None:
    """The environment's game written down whole, where the policies of these interfaces can be tabulated in it. Raises ConfigError, with
    the reason, where it is a game that can't be written down."""
    with torch.device("meta"):
        networks = {
            name: build_policy(groups, plan.algorithm.network(plan.options, plan.interface))
            for plan in plans
            for name, groups in plan.interface.policies.items()
        }
    alone = all(sum(map(len, player.places.values())) == 1 for player in players_of(plans))
    if not alone or not remembers_nothing(networks):
        return None  # known before seconds are spent on the game
    game = whole_game(env)
    return game if tabulates(networks, game) else None


def check(config: Config, plans: Sequence[Plan], env: EnvBatch) -> None:
    """Raise ConfigError where these policies can't be in populations."""
    section, players = config.population, players_of(plans)
    spaces = [group.action_space.kind for plan in plans for group in plan.interface.groups]
    if section.start in ("uniform", "pure") and "box" in spaces:
        raise ConfigError(
            f"population.start={section.start} is about discrete actions, and env={config.env['name']} has continuous ones: set start=network"
        )
    if len(players) < 2:
        raise ConfigError(
            f"population={section.name} with one player: in env={config.env['name']} all agents are one team; choose another paradigm, or "
            "interfaces of several teams"
        )
    lines = lines_of(section)
    if section.name not in ALL_LEARN and config.rollout.envs % (len(players) * lines):
        of = (
            f"{len(players)}, the number of players"
            if lines == 1
            else f"{len(players) * lines}, {len(players)} players x {lines} policies"
        )
        raise ConfigError(
            f"rollout.envs={config.rollout.envs} with population={section.name}: one policy of a player learns in each copy of the "
            f"environment, in turns; set rollout.envs to a multiple of {of}"
        )
    if section.name == "anytime_psro" and len(players) != 2:
        raise ConfigError(
            f"population=anytime_psro with env={config.env['name']}: it is for two-player zero-sum games, and here are {len(players)} players; "
            "choose population=psro with another meta_solver"
        )
    if section.name == "anytime_psro" and not zero_sum(env, [player.places for player in players]):
        raise ConfigError(
            f"population=anytime_psro with env={config.env['name']}: it is for two-player zero-sum games, and here returns don't sum to a constant; "
            "choose population=psro with a population.meta_solver for general-sum games, such as coarse_correlated_equilibrium"
        )
    if section.payoffs == "exact":
        try:
            game = game_of(plans, env)
        except ConfigError as error:
            raise ConfigError(f"population.payoffs=exact with {error}: set payoffs=simulated") from error
        if game is None:
            raise ConfigError(
                f"population.payoffs=exact with env={config.env['name']}: payoffs are computed in games that are written down whole, such as "
                "openspiel_fast/…, of policies that act by what they see now; set payoffs=simulated, or algorithm.gru=0"
            )
    if needs_table(section):
        check_simulation(config, plans, env)
    if section.name in ("psro", "pipeline_psro"):
        check_solver(
            section,
            config.env["name"],
            len(players),
            symmetric=len(set(populations_of(players))) == 1,
            zero_sum=lambda: zero_sum(env, [player.places for player in players]),
        )


def check_simulation(config: Config, plans: Sequence[Plan], env: EnvBatch) -> None:
    """Raise ConfigError for options of simulated payoffs where payoffs are computed, and for episodes that aren't enough."""
    section, usual = config.population, Population()
    given = [f"population.{key}={getattr(section, key)}" for key in SIMULATED if getattr(section, key) != getattr(usual, key)]
    rotation = math.prod(math.factorial(len(group)) for group in sharing(populations_of(players_of(plans))))
    if not given and rotation <= section.max_episodes:
        return
    if section.payoffs != "simulated" and computes(plans, env):
        if given:
            raise ConfigError(
                f"{', '.join(given)}: about payoffs that are simulated, and those of env={config.env['name']} are computed: leave it out, or set "
                "population.payoffs=simulated"
            )
    elif rotation > section.max_episodes:
        raise ConfigError(
            f"population={section.name} with env={config.env['name']}: the episodes of a cell rotate over {rotation:,} ways to seat players who "
            f"share a population, more than population.max_episodes={section.max_episodes}: raise it, or set groups=separate"
            + (", or leave population.cross_play out" if section.cross_play else "")
        )


def computes(plans: Sequence[Plan], env: EnvBatch) -> bool:
    """Whether payoffs=auto computes them."""
    try:
        return game_of(plans, env) is not None
    except ConfigError:  # that the game can't be written down is an answer, not a mistake
        return False
