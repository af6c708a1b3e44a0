"""What a rank does: join the world, take the role that the table gives it, run it.

`run_rank` is started by the rank's supervisor in a process forked for it. Read on in `roles/learner.py` and `roles/rollout.py`; the
gradient step is in `agents/independent.py`.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from marl_hpc import algorithms, envs, paradigms
from marl_hpc.actors import PolicyNetwork, build_policy
from marl_hpc.comm import collectives
from marl_hpc.comm.peers import LocalPeer, Peer
from marl_hpc.comm.store import StoreClient
from marl_hpc.comm.world import World, join, pin_threads
from marl_hpc.comm.zygote import Stamp
from marl_hpc.compose import from_record
from marl_hpc.config import Config, ConfigError
from marl_hpc.keyed_random import GROUP, integer
from marl_hpc.metrics import Clock
from marl_hpc.policies import load_networks
from marl_hpc.roles.acting import Inference, OwnPolicies
from marl_hpc.roles.clients import DatasetClient, InferenceClient, ParameterClient
from marl_hpc.roles.dataset import DatasetShard
from marl_hpc.roles.inference import InferenceServer
from marl_hpc.roles.learner import Learner, Replica
from marl_hpc.roles.parameter import ParameterShard
from marl_hpc.roles.play import play
from marl_hpc.roles.recorder import Recorder, summarize_episodes
from marl_hpc.roles.rollout import RolloutWorker
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.checkpoint import Manifest
from marl_hpc.storage.replay import table_for
from marl_hpc.types import EnvBatch, EnvSpec

DONE, STOPPED = 0, 75
EVALUATION_COPIES = 16


def run_rank(job: dict[str, Any], deadline: Stamp) -> int:
    """The rank's role, from start to end; returns its exit status. Its own exception is written down for the supervisors to show."""
    pin_threads()
    config = from_record(job["config"])
    device = torch.device(job["devices"][job["rank"]])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before NCCL is asked for anything
    print(f"{job['roles'][job['rank']]} starts: pid {os.getpid()}, generation {job['generation']}", flush=True)
    with join(job, deadline, cuda=device.type == "cuda") as world:
        return Rank(config, job, world).run()
    raise AssertionError("unreachable")


class Rank:
    """Builds the role of one rank, or all of them where one process is the whole world."""

    def __init__(self, config: Config, job: dict[str, Any], world: World) -> None:
        self.config, self.job, self.world = config, job, world
        self.spec = EnvSpec.from_json(job["spec"])
        self.counts: dict[str, int] = job["counts"]
        self.run_dir = Path(job["run_dir"])
        self.start_s = config.timeouts.start_s * config.timeouts.scale
        self.clock = Clock()
        self.resumed = self.find_start()
        self.schedule = Schedule.of(
            config, self.counts["rollout"], *((self.resumed[1].iteration, self.resumed[1].env_steps) if self.resumed else ())
        )
        self.plans = paradigms.plan(config, self.spec)
        self.interfaces = paradigms.hosts([plan.interface.name for plan in self.plans], self.counts["learner"])

    def run(self) -> int:
        kind = self.world.role.partition("/")[0]
        code = {
            "learner": self.learn,
            "rollout": self.roll_out,
            "parameter": self.shard,
            "dataset": self.shard,
            "inference": self.infer,
            "inline": self.inline,
        }[kind]()
        self.world.report(self.clock, final=True)
        return code

    def find_start(self) -> tuple[Path, Manifest] | None:
        """The checkpoint that this generation starts from, as rank 0's supervisor names it."""
        start = self.world._wait(f"start/{self.world.generation}", "the start of this generation")
        return (Path(start["checkpoint"]), Manifest(**start["manifest"])) if start else None

    # the roles, each with handles of its peers

    def learn(self) -> int:
        parameters, dataset = self.world.peers("parameter"), self.world.peers("dataset")
        with self.world.allowing(self.start_s):
            learner = self.build_learner(self.world.index, parameters, dataset)
        return self.end_learning(learner, learner.run())

    def roll_out(self) -> int:
        parameters, dataset, inference = (self.world.peers(kind) for kind in ("parameter", "dataset", "inference"))
        with self.world.allowing(self.start_s):  # many copies of a slow environment take their time
            worker = self.build_worker(self.world.index, parameters, dataset, self.clock, inference)
        worker.run()
        return STOPPED if self.world.stopping and not self.world.training_ended else DONE

    def shard(self) -> int:
        kind, _, index = self.world.role.partition("/")
        ended = self.serve(self.build_parameter(int(index)) if kind == "parameter" else self.build_dataset(int(index)))
        while True:
            with self.clock.waiting("calls"):
                if ended.wait(1.0):
                    break
            self.world.stamp()
            self.world.report(self.clock)
        return STOPPED if self.world.stopping else DONE

    def infer(self) -> int:
        with self.world.allowing(self.start_s):  # a GPU's context, large policies
            server = self.build_inference(self.world.index, self.world.peers("parameter"), self.clock)
        ended = self.serve(server)
        while not ended.is_set():
            server.wait(1.0)
            server.step()
            self.world.stamp()
            self.world.report(self.clock)
        print(server.describe(), flush=True)
        return STOPPED if self.world.stopping else DONE

    def serve(self, role: ParameterShard | DatasetShard | InferenceServer) -> threading.Event:
        """Let peers call the role until a stop or the end of training closes it; set when training has ended and nobody needs it."""
        ended = threading.Event()

        def hear() -> None:
            role.close()
            if self.world.training_ended:
                ended.set()

        self.world.listeners.append(hear)
        if self.world.stopping or self.world.training_ended:
            hear()  # it came before anybody listened
        self.world.serve(role, role.handlers)
        return ended

    def inline(self) -> int:
        """All roles in this process, taking turns: what one calls, the other answers at once."""
        shards = {
            "parameter": [self.build_parameter(i) for i in range(self.counts["parameter"])],
            "dataset": [self.build_dataset(i) for i in range(self.counts["dataset"])],
        }
        peers: dict[str, list[Peer]] = {k: [LocalPeer(f"{k}/{i}", s) for i, s in enumerate(v)] for k, v in shards.items()}
        servers = [self.build_inference(i, peers["parameter"], Clock(), alone=True) for i in range(self.counts["inference"])]
        inference: list[Peer] = [LocalPeer(f"inference/{i}", server) for i, server in enumerate(servers)]
        clocks = [Clock() for _ in range(self.counts["rollout"])]
        with self.world.allowing(self.start_s * len(clocks)):
            learner = self.build_learner(0, peers["parameter"], peers["dataset"])
            workers = [
                self.build_worker(i, peers["parameter"], peers["dataset"], clock, inference) for i, clock in enumerate(clocks)
            ]
        learner.publish()
        learning = True
        while learning:
            for worker in workers if learner.iteration < self.schedule.iterations else []:
                worker.step()
            learning = learner.step()
            self.world.report(self.clock)
        if not self.world.stopping:
            learner.announce_end()
            for worker in workers:
                worker.finish(learner.iteration)
        return self.end_learning(learner, learner.finish())

    # building them

    def build_parameter(self, index: int) -> ParameterShard:
        return ParameterShard(index, tuple(name for plan in self.plans for name in plan.interface.policies))

    def build_dataset(self, index: int) -> DatasetShard:
        workers = tuple(w for w in range(self.counts["rollout"]) if w % self.counts["dataset"] == index)
        consumers = sum(len(hosts) for hosts in self.interfaces.values())
        found = {
            plan.interface.name: table_for(
                plan.algorithm.replay(plan.options, plan.interface), len(workers) / self.counts["rollout"]
            )
            for plan in self.plans
        }
        tables = {name: table for name, table in found.items() if table is not None}
        shard = DatasetShard(
            index, workers, consumers, self.config.rollout.max_lag + 1, self.schedule.start, tables, self.config.seed
        )
        if self.resumed and not shard.load(self.resumed[0]):
            print(f"dataset/{index}: the checkpoint has no replay for it (another number of shards?); it fills up anew", flush=True)
        return shard

    def build_learner(self, index: int, parameters: list[Peer], dataset: list[Peer]) -> Learner:
        config, world, clock = self.config, self.world, self.clock
        exchanges = collectives.replicas(
            self.interfaces, index, self.counts["learner"], config.timeouts.collective_s * config.timeouts.scale
        )
        device = torch.device(self.job["devices"][world.rank])
        replicas = []
        for place, plan in enumerate(self.plans):
            name = plan.interface.name
            hosts = self.interfaces[name]
            if index in hosts:
                agent = plan.agent(
                    plan.algorithm, plan.options, plan.interface, exchanges[name], device=device, dtype=getattr(torch, config.dtype),
                    seed=integer(config.seed, GROUP, place),
                )  # fmt: skip
                replicas.append(Replica(agent, hosts.index(index), len(hosts)))
        recorder = None
        if index == 0:
            recorder = Recorder(config, self.run_dir, self.spec, self.schedule, world, self.resumed[1] if self.resumed else None)
        learner = Learner(
            config, index, replicas, ParameterClient(parameters, world, clock), DatasetClient(dataset, world, clock, config.rollout.envs),
            self.schedule, recorder, self.run_dir, world, clock, len(self.plans) == 1,
        )  # fmt: skip
        if self.resumed:
            learner.resume(self.resumed[0])
        return learner

    def build_inference(self, index: int, parameters: list[Peer], clock: Clock, *, alone: bool = False) -> InferenceServer:
        device = torch.device(self.job["devices"][self.world.rank])
        policies = {name: policy.to(device) for name, policy in self.build_policies().items()}
        workers = len([w for w in range(self.counts["rollout"]) if w % self.counts["inference"] == index])
        client = ParameterClient(parameters, self.world, clock)
        return InferenceServer(index, policies, client, workers, self.config.inference, clock, alone=alone)

    def build_acting(self, index: int, parameters: list[Peer], inference: Sequence[Peer], clock: Clock) -> Inference:
        """What a rollout worker acts by."""
        if inference:
            peer = inference[index % len(inference)]
            return InferenceClient(peer, index, self.build_policies(outlines=True), self.world, clock)
        return OwnPolicies(self.build_policies(), ParameterClient(parameters, self.world, clock).pull)

    def build_worker(
        self, index: int, parameters: list[Peer], dataset: list[Peer], clock: Clock, inference: Sequence[Peer] = ()
    ) -> RolloutWorker:
        config, workers = self.config, self.counts["rollout"]
        share = -(-max(config.evaluate.episodes, config.evaluate.final_episodes) // workers)
        waves = -(-share // EVALUATION_COPIES)
        return RolloutWorker(
            config, index, workers, make_env(config, config.rollout.envs), make_env(config, -(-share // waves)),
            self.plans, self.build_acting(index, parameters, inference, clock),
            DatasetClient(dataset, self.world, clock, config.rollout.envs), self.schedule, self.world, clock,
        )  # fmt: skip

    def build_policies(self, *, outlines: bool = False) -> dict[str, PolicyNetwork]:
        """Every policy of the run; a version that is pulled fills them. `outlines` have shapes and no numbers."""
        dtype = getattr(torch, self.config.dtype)
        with torch.device("meta") if outlines else nullcontext():
            return {
                name: build_policy(groups, plan.algorithm.network(plan.options, plan.interface)).to(dtype)
                for plan in self.plans
                for name, groups in plan.interface.policies.items()
            }

    def end_learning(self, learner: Learner, finished: bool) -> int:
        """Leave word of the result, and let the others go."""
        if learner.recorder is not None:
            learner.recorder.writer.close()
            self.world.store.set("result", learner.recorder.result())
        self.world.gather("done", None)
        code = DONE if finished else STOPPED
        if learner.recorder is not None:
            self.world.end_training(code)
        return code


def make_env(config: Config, copies: int) -> EnvBatch:
    options = {key: value for key, value in config.env.items() if key != "name"}
    return envs.make(config.env["name"], copies=copies, groups=config.groups, **options)


def evaluate_run(run_dir: Path, options: list[str]) -> str:
    """The return of a run's exported policies over fresh episodes, as JSON. Raises ConfigError for an option that doesn't exist."""
    config = from_record(yaml.safe_load((run_dir / "config.yaml").read_text()))
    known: dict[str, Any] = {"episodes": 100, "greedy": config.evaluate.greedy, "seed": config.seed + 1}
    env = dict(config.env)
    for item in options:
        key, given, value = item.partition("=")
        if given and key.startswith("env."):
            env[key.removeprefix("env.")] = yaml.safe_load(value)
        elif given and key in known and isinstance(yaml.safe_load(value), type(known[key])):
            known[key] = yaml.safe_load(value)
        else:
            raise ConfigError(f"evaluate takes {', '.join(f'{k}=…' for k in known)} and env.KEY=…; got {item!r}")
    if known["episodes"] < 1:
        raise ConfigError(f"episodes={known['episodes']} must be 1 or more")
    batch = make_env(replace(config, env=env), min(EVALUATION_COPIES, known["episodes"]))
    try:
        policies = OwnPolicies(load_networks(run_dir))
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    results = play(batch, policies, range(known["episodes"]), seed=known["seed"], greedy=known["greedy"])
    record = summarize_episodes(np.array(results), [group.name for group in batch.spec.groups])
    return json.dumps({**record, **known, "environment": batch.spec.version}, indent=1)


def prepare(job: dict[str, Any], deadline: Stamp) -> int:
    """Check what needs torch or the environment to check, before any rank starts; the environment's spec goes to the store."""
    store = StoreClient(job["store"], bytes.fromhex(job["key"]))
    try:
        config = from_record(job["config"])
        algorithms.configure(config.algorithm)
        env = make_env(config, 1)
        paradigms.plan(config, env.spec)
        cuda = torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise ConfigError("device=cuda but torch sees no GPU here; use device=auto or device=cpu")
        store.set("prepared", {"spec": env.spec.to_json(), "cuda": cuda})
    except (ConfigError, TypeError) as error:
        store.set("prepared", {"wrong": str(error)})
    except Exception:
        store.set("prepared", {"failed": traceback.format_exc()})
    return DONE
