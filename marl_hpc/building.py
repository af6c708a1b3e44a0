"""From a configuration to the objects of each role, in every rank alike; see `train.Rank` for who asks for which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from marl_hpc import envs, paradigms
from marl_hpc.actors import PolicyNetwork, build_policy
from marl_hpc.agents.asynchronous import AsynchronousAgent
from marl_hpc.clocks import Clocks
from marl_hpc.comm import collectives
from marl_hpc.comm.peers import Peer
from marl_hpc.comm.transports import communicator_of
from marl_hpc.comm.world import World
from marl_hpc.config import Config, ConfigError, computes_population, fingerprint, learns_population, needs_table
from marl_hpc.division import Division
from marl_hpc.envs.openspiel_fast import whole_game
from marl_hpc.games import Game
from marl_hpc.keyed_random import GROUP, integer
from marl_hpc.messages import connect
from marl_hpc.metrics import Clock
from marl_hpc.populations.schemes import BEST_RESPONSES, begins
from marl_hpc.roles.acting import Inference, OwnVersions
from marl_hpc.roles.assign import nearest
from marl_hpc.roles.asynchronous import AsynchronousLearner, AsynchronousWorker, Share
from marl_hpc.roles.casting import Casting, FrozenPolicies, Player, game_of, players_of, populations_of
from marl_hpc.roles.clients import DatasetClient, InferenceClient, ParameterClient
from marl_hpc.roles.coordinator import Coordinator
from marl_hpc.roles.dataset import DatasetShard
from marl_hpc.roles.exact import ExactLearner, ExactRecorder, ExactWorker
from marl_hpc.roles.following import Following, FollowingClient, FollowingServer, OwnNewest
from marl_hpc.roles.growth import Growth, Records
from marl_hpc.roles.inference import InferenceServer, ScheduledServer
from marl_hpc.roles.learner import Learner
from marl_hpc.roles.optimizing import OptimizingShard
from marl_hpc.roles.parameter import ParameterShard, shard_files
from marl_hpc.roles.population import PopulationClient, PopulationShard
from marl_hpc.roles.population_folder import PopulationFolder, population_folder
from marl_hpc.roles.recorder import AsynchronousRecorder, Recorder
from marl_hpc.roles.replica import Replica
from marl_hpc.roles.rollout import RolloutWorker
from marl_hpc.roles.schedule import Schedule
from marl_hpc.roles.servers import DatasetServers, ParameterServers
from marl_hpc.roles.stream import StreamShard
from marl_hpc.storage.checkpoint import Manifest
from marl_hpc.storage.journal import Journal
from marl_hpc.storage.replay import ReplayTable, table_for
from marl_hpc.storage.reservoir import Reservoir
from marl_hpc.types import EnvBatch, EnvSpec, Exchange

EVALUATION_COPIES = 16


class Builder:
    """The roles of bulk synchronous training."""

    def __init__(
        self, config: Config, job: dict[str, Any], world: World, clock: Clock, resumed: tuple[Path, Manifest] | None
    ) -> None:
        self.config, self.job, self.world, self.clock, self.resumed = config, job, world, clock, resumed
        self.spec = EnvSpec.from_json(job["spec"])
        self.counts: dict[str, int] = job["counts"]
        self.run_dir = Path(job["run_dir"])
        self.team: int = job["team"]  # learners, or workers, among whom the agents of networked interfaces are divided
        self.teams = self.counts["rollout"] // self.team
        self.schedule = Schedule.of(config, self.teams, *((resumed[1].iteration, resumed[1].env_steps) if resumed else ()))
        self.division = Division(config, self.spec, self.team, self.counts["learner"])
        self.plans, self.interfaces = self.division.plans, self.division.hosts
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.nearest = self.shards_of_workers()

    @property
    def collective_s(self) -> float:
        """How long a collective may take."""
        return self.config.timeouts.collective_s * self.config.timeouts.scale

    def shards_of_workers(self) -> list[int]:
        """The dataset shard that each rollout worker writes to."""
        if self.world.role == "inline":
            return [worker % self.counts["dataset"] for worker in range(self.counts["rollout"])]
        of = dict(zip(self.job["roles"], self.job["hosts"], strict=True))
        workers, shards = ([of[f"{kind}/{i}"] for i in range(self.counts[kind])] for kind in ("rollout", "dataset"))
        return nearest(workers, shards)

    def parameter(self, index: int) -> Any:
        names = tuple(name for plan in self.plans for name in plan.interface.policies)
        checkpoint = self.resumed[0] if self.resumed else None
        arguments = index, names, self.config.rollout.transfer, self.counts["parameter"], checkpoint
        if index > 0 or not learns_population(self.config):
            return ParameterShard(*arguments)
        state = load_file(shard_files(checkpoint)[0]) if checkpoint else None
        journal = None
        if needs_table(self.config.population) and not self.computes_payoffs:
            journal = Journal(population_folder(self.run_dir) / "simulated.jsonl")
        return PopulationShard(
            *arguments, section=self.config.population, populations=populations_of(self.players), exact=self.computes_payoffs,
            seed=self.config.seed, lease_s=self.lease_s, state=state, journal=journal,
            made_for=f"{fingerprint(self.config)} {self.spec.version}",
        )  # fmt: skip

    @property
    def lease_s(self) -> float:
        """How long a worker may say nothing of a batch that it simulates: longer than a step, for which its supervisor waits, and a quarter
        of this, after which it says something between two steps. So who is alive never loses one."""
        return 2 * self.config.timeouts.step_s * self.config.timeouts.scale

    @cached_property
    def players(self) -> list[Player]:
        return players_of(self.plans)

    @cached_property
    def game(self) -> Game | None:
        """The environment's game written down whole, where these policies can be tabulated in it."""
        if not learns_population(self.config):
            return None
        env = make_env(self.config, 1)
        try:
            return game_of(self.plans, env)
        except ConfigError as error:  # who asks for exact payoffs was refused before any rank started
            print(f"payoffs are simulated, and NashConv isn't known: {error}", flush=True)
            return None

    @property
    def computes_payoffs(self) -> bool:
        return self.config.population.payoffs != "simulated" and self.game is not None

    def frozen(self, parameters: ParameterClient, client: PopulationClient) -> FrozenPolicies:
        places = dict(zip(populations_of(self.players), (player.population for player in self.players), strict=True))
        return FrozenPolicies(
            self.plans, places, lambda plan: self.policies([plan]), parameters, client, self.config.population.cache
        )

    def casting(self, index: int, parameters: list[Peer], clock: Clock) -> Casting | None:
        """Who plays whom in a rollout worker's copies, where there are populations."""
        if not learns_population(self.config):
            return None
        client = PopulationClient(parameters[0], f"rollout/{index}", self.world, clock)
        frozen = self.frozen(ParameterClient(parameters, self.world, clock, self.dtype), client)
        game = self.game if self.computes_payoffs else None
        anticipatory = self.config.population.anticipatory if self.config.population.name == "nfsp" else 0.0
        return Casting(
            self.plans, frozen, client, self.config.seed, game, clock, self.world.stamp, self.arena, self.lease_s, anticipatory
        )

    def arena(self, copies: int) -> EnvBatch:
        """Copies of the environment to simulate payoffs in; making them may take as long as at the start."""
        with self.world.allowing(self.config.timeouts.start_s * self.config.timeouts.scale):
            return make_env(self.config, copies)

    def growth(self, index: int, parameters: list[Peer], recorder: Recorder | None) -> Growth | None:
        """How a learner adds to populations, where there are some."""
        if not learns_population(self.config):
            return None
        section, values = self.config.population, ParameterClient(parameters, self.world, self.clock, self.dtype)
        client = PopulationClient(parameters[0], f"learner/{index}", self.world, self.clock)
        records = None
        if recorder is not None:
            noted = recorder.writer.stages
            folder = PopulationFolder(self.run_dir, noted)
            records = Records(section, self.players, folder, self.frozen(values, client), client, self.game, noted)
        populations = dict(zip((p.population for p in self.players), populations_of(self.players), strict=True))
        by_name = {self.plans[place].interface.name: number for place, number in populations.items()}
        places = {self.plans[place].interface.name: place for place in populations}
        return Growth(section, by_name, values, client, self.players, places, records, self.config.seed)

    def dataset(self, index: int) -> DatasetShard:
        consumers = sum(len(hosts) for hosts in self.interfaces.values())
        workers, tables = self.tables(index)
        shard = DatasetShard(
            index,
            workers,
            consumers,
            self.config.rollout.max_lag + 1,
            self.schedule.start,
            tables,
            self.config.seed,
            self.queue_bytes,
            self.division.bring(workers),
            self.begins_stage,
            self.reservoirs(workers),
        )
        return self.loaded(shard)

    def reservoirs(self, workers: Sequence[int]) -> dict[str, Reservoir]:
        """What a dataset shard to which these workers write has of the reservoirs of interfaces that imitate."""
        share = len(workers) / self.counts["rollout"]
        return {
            plan.interface.name: Reservoir(
                plan.algorithm.reservoir(plan.options, plan.interface), share, plan.interface, self.config.dtype
            )
            for plan in self.plans
            if plan.interface.modes
        }

    def begins_stage(self, iteration: int) -> bool:
        """Whether what agents learned from before this iteration is of no use any more: they begin to answer others."""
        section, stage = self.config.population, self.schedule.stage(iteration)
        answers = section.name in BEST_RESPONSES and (section.name != "anytime_psro" or begins(section, 0, stage))
        return answers and iteration > 0 and self.schedule.ends_stage(iteration - 1)

    @property
    def queue_bytes(self) -> float:
        limit = self.config.dataset.queue_bytes
        return math.inf if limit is None else limit

    def tables(self, index: int) -> tuple[tuple[int, ...], dict[str, ReplayTable]]:
        """(workers that write to a dataset shard, its part of the interfaces' replay tables)."""
        workers = tuple(worker for worker, shard in enumerate(self.nearest) if shard == index)
        share = len([worker for worker in workers if worker % self.team == 0]) / self.teams  # of a team the first inserts
        limits = self.config.dataset
        limit = math.inf if limits.replay_bytes is None else limits.replay_bytes
        spill = Path(limits.spill) if limits.spill else None
        found = {
            plan.interface.name: table_for(plan.algorithm.replay(plan.options, plan.interface), share, limit, spill)
            for plan in self.plans
        }
        return workers, {name: table for name, table in found.items() if table is not None}

    def loaded(self, shard: Any) -> Any:
        if self.resumed:
            shares = [self.nearest.count(k) / len(self.nearest) for k in range(self.counts["dataset"])]
            if left := shard.load(self.resumed[0], shares):
                print(f"dataset/{shard.index}: {left}", flush=True)
        return shard

    def agents(self, index: int, exchanges: Mapping[str, Exchange]) -> list[Any]:
        """The agents of the interfaces that a learner hosts, in order."""
        device = torch.device(self.job["devices"][self.world.rank])
        place = {plan.interface.name: i for i, plan in enumerate(self.division.whole)}
        return [
            plan.agent(
                plan.algorithm, plan.options, plan.interface, exchanges[plan.interface.name], device=device,
                dtype=self.dtype, seed=integer(self.config.seed, GROUP, place[plan.interface.whole]),
            )
            for plan in self.plans
            if index in self.interfaces[plan.interface.name]
        ]  # fmt: skip

    def learner(self, index: int, parameters: list[Peer], dataset: list[Peer]) -> Any:
        config, world, clock = self.config, self.world, self.clock
        exchanges = collectives.replicas(self.interfaces, index, self.counts["learner"], self.collective_s)
        device = torch.device(self.job["devices"][world.rank])
        exchanges |= self.division.exchanges(index, device, self.collective_s, self.communicator())
        if index == 0:
            for name, around in self.division.neighborhoods.items():  # for the console and the summary
                world.store.set(f"graph/{name}", {"text": f"{name}: {around.describe()}", **around.record()})
        replicas = []
        for agent in self.agents(index, exchanges):
            if agent.interface.neighbors:
                hears = self.division.messages(agent.interface, index, self.collective_s, agent.algorithm.hops)
                agent.algorithm.connect(hears)
            hosts = self.interfaces[agent.interface.name]
            replicas.append(Replica(agent, hosts.index(index), len(hosts)))
        recorder = self.recorder(Recorder) if index == 0 else None
        learner = Learner(
            config, index, replicas, ParameterClient(parameters, world, clock), self.data(dataset, clock),
            self.schedule, recorder, self.run_dir, world, clock, len(self.division.whole) == 1,
            self.growth(index, parameters, recorder),
        )  # fmt: skip
        if self.resumed:
            learner.resume(self.resumed[0])
        return learner

    def communicator(self) -> Any:
        """MPI's, of the learners, where they exchange by it; all of them call it alike."""
        if self.config.topology.transport != "mpi" or self.counts["learner"] == 1:
            return None
        return communicator_of([self.world.roles.index(f"learner/{i}") for i in range(self.counts["learner"])])

    def data(self, dataset: list[Peer], clock: Clock) -> DatasetClient:
        return DatasetClient(dataset, self.world, clock, self.config.rollout.envs, self.nearest, self.team)

    def recorder(self, kind: type) -> Any:
        return kind(self.config, self.run_dir, self.spec, self.schedule, self.world, self.resumed[1] if self.resumed else None)

    def worker(self, index: int, parameters: list[Peer], dataset: list[Peer], clock: Clock, inference: Sequence[Peer] = ()) -> Any:
        return RolloutWorker(
            *self.collecting(index),
            self.acting(index, parameters, inference, clock),
            self.data(dataset, clock),
            self.schedule,
            self.world,
            clock,
            self.casting(index, parameters, clock),
        )

    def collecting(self, index: int) -> tuple[Config, int, int, int, EnvBatch, EnvBatch, list[paradigms.Plan]]:
        """What a worker collects with: configuration, its number, its team's and how many there are, environments, interfaces."""
        config, workers = self.config, self.counts["rollout"]
        share = -(-max(config.evaluate.episodes, config.evaluate.final_episodes) // self.teams)
        waves = -(-share // EVALUATION_COPIES)
        batches = [make_env(config, copies) for copies in (config.rollout.envs, -(-share // waves))]
        env, evaluation_env = self.division.collecting(index, workers, batches, self.collective_s)
        return config, index, index // self.team, self.teams, env, evaluation_env, self.division.collected_by(index)

    def acting(self, index: int, parameters: list[Peer], inference: Sequence[Peer], clock: Clock) -> Inference:
        """What a rollout worker acts by."""
        if inference:
            peer = inference[index % len(inference)]
            return InferenceClient(peer, index, self.policies(outlines=True), self.world, clock)
        plans = self.division.collected_by(index)
        policies = self.policies(plans)
        for plan in plans:
            if plan.interface.neighbors:
                for name in plan.interface.policies:
                    connect(policies[name], self.division.messages(plan.interface, index, self.collective_s))
        return OwnVersions(policies, ParameterClient(parameters, self.world, clock, self.dtype, list(policies)).pull)

    def inference(self, index: int, parameters: list[Peer], clock: Clock, *, alone: bool = False) -> InferenceServer:
        client = ParameterClient(parameters, self.world, clock, self.dtype)
        return ScheduledServer(index, self.inferring(), client, self.workers_of(index), self.config.inference, clock, alone=alone)

    def inferring(self) -> dict[str, PolicyNetwork]:
        """What an inference role computes with."""
        device = torch.device(self.job["devices"][self.world.rank])
        return {name: policy.to(device) for name, policy in self.policies().items()}

    def workers_of(self, inference: int) -> int:
        """How many rollout workers ask an inference role."""
        return len([worker for worker in range(self.counts["rollout"]) if worker % self.counts["inference"] == inference])

    def policies(self, plans: Sequence[paradigms.Plan] | None = None, *, outlines: bool = False) -> dict[str, PolicyNetwork]:
        """Policies of these interfaces, by default of all; a version that is pulled fills them. `outlines` have shapes and no numbers."""
        with torch.device("meta") if outlines else nullcontext():
            return {
                name: build_policy(groups, plan.algorithm.network(plan.options, plan.interface)).to(self.dtype)
                for plan in (self.plans if plans is None else plans)
                for name, groups in plan.interface.policies.items()
            }


class AsynchronousBuilder(Builder):
    """The roles of asynchronous training."""

    def parameter(self, index: int) -> OptimizingShard:
        sync = self.config.sync
        staleness = math.inf if sync.name == "asp" else 2 if sync.staleness is None else sync.staleness
        clocks = {
            name: Clocks(hosts, staleness, math.inf if sync.iteration_s is None else sync.iteration_s)
            for name, hosts in self.interfaces.items()
        }
        coordinator = Coordinator(clocks, self.config.budget.env_steps, self.config.evaluate.every_steps) if index == 0 else None
        return OptimizingShard(
            index, self.counts["parameter"], coordinator, self.resumed[0] if self.resumed else None, self.config.rollout.transfer
        )

    def dataset(self, index: int) -> StreamShard:
        workers, tables = self.tables(index)
        learners = {name: len(hosts) for name, hosts in self.interfaces.items()}
        lag = self.config.sync.max_data_lag
        shard = StreamShard(
            index, workers, learners, self.config.rollout.max_lag + 1, self.queue_bytes, max_staleness=math.inf if lag is None else lag,
            tables=tables, seed=self.config.seed,
        )  # fmt: skip
        return self.loaded(shard)

    def learner(self, index: int, parameters: list[Peer], dataset: list[Peer]) -> AsynchronousLearner:
        config, world, clock = self.config, self.world, self.clock
        servers = ParameterServers(parameters, world, clock)
        alone = {name: collectives.Alone() for name in self.interfaces}
        sent = getattr(torch, config.dtype if config.sync.gradients == "float32" else config.sync.gradients)
        shares = [
            Share(AsynchronousAgent(agent, servers, index, sent), self.interfaces[agent.interface.name][0] == index)
            for agent in self.agents(index, alone)
        ]
        learner = AsynchronousLearner(
            config, index, shares, servers, DatasetServers(dataset, world, clock, config.rollout.envs, self.nearest), self.counts["rollout"],
            sorted({0, *(hosts[0] for hosts in self.interfaces.values())}),
            self.recorder(AsynchronousRecorder) if index == 0 else None, self.run_dir, world, clock, len(self.plans) == 1,
        )  # fmt: skip
        if self.resumed:
            learner.resume(self.resumed[0])
        return learner

    def worker(
        self, index: int, parameters: list[Peer], dataset: list[Peer], clock: Clock, inference: Sequence[Peer] = ()
    ) -> AsynchronousWorker:
        data = DatasetServers(dataset, self.world, clock, self.config.rollout.envs, self.nearest)
        return AsynchronousWorker(
            *self.collecting(index), self.following(index, parameters, inference, clock), data, self.schedule, self.world, clock
        )

    def following(self, index: int, parameters: list[Peer], inference: Sequence[Peer], clock: Clock) -> Following:
        """What a rollout worker acts by."""
        if inference:
            peer = inference[index % len(inference)]
            return FollowingClient(peer, index, self.policies(outlines=True), self.world, clock)
        return OwnNewest(self.policies(), self.members, ParameterServers(parameters, self.world, clock, self.dtype))

    def inference(self, index: int, parameters: list[Peer], clock: Clock, *, alone: bool = False) -> InferenceServer:
        servers = ParameterServers(parameters, self.world, clock, self.dtype)
        return FollowingServer(
            index, self.inferring(), self.members, servers, self.workers_of(index), self.config.inference, clock, alone=alone
        )

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The policies of each interface, in the order of its vector."""
        return {plan.interface.name: tuple(plan.interface.policies) for plan in self.plans}


class ExactBuilder(Builder):
    """The roles of populations whose best responses are computed; only the lead learner does anything."""

    def learner(self, index: int, parameters: list[Peer], dataset: list[Peer]) -> ExactLearner:
        game = whole_game(make_env(self.config, 1))
        assert game is not None, "checked before any rank starts"
        checkpoint = self.resumed[0] if self.resumed else None
        return ExactLearner(self.config, game, self.recorder(ExactRecorder), self.run_dir, self.world, self.clock, checkpoint)

    def worker(
        self, index: int, parameters: list[Peer], dataset: list[Peer], clock: Clock, inference: Sequence[Peer] = ()
    ) -> ExactWorker:
        return ExactWorker(self.world, clock)


def builder_of(config: Config) -> type[Builder]:
    if computes_population(config):
        return ExactBuilder
    return Builder if config.sync.name == "bsp" else AsynchronousBuilder


def make_env(config: Config, copies: int) -> EnvBatch:
    options = {key: value for key, value in config.env.items() if key != "name"}
    return envs.make(config.env["name"], copies=copies, groups=config.groups, **options)
