"""What a rank does: join the world, take the role that the table gives it, run it.

`run_rank` is started by the rank's supervisor in a process forked for it. `building.py` makes it; read on in `roles/learner.py` and `roles/rollout.py`. The
gradient step is in `agents/interface.py`.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from marl_hpc import algorithms, paradigms
from marl_hpc.building import EVALUATION_COPIES, builder_of, make_env
from marl_hpc.comm.peers import LocalPeer, Peer
from marl_hpc.comm.store import StoreClient
from marl_hpc.comm.world import World, join, pin_threads
from marl_hpc.comm.zygote import Stamp
from marl_hpc.compose import from_record
from marl_hpc.config import Config, ConfigError, computes_population, learns_population
from marl_hpc.envs.openspiel_fast import whole_game
from marl_hpc.metrics import Clock
from marl_hpc.neighborhoods import check_graph
from marl_hpc.policies import load_networks
from marl_hpc.roles import casting, exact
from marl_hpc.roles.acting import OwnPolicies
from marl_hpc.roles.dataset import DatasetShard
from marl_hpc.roles.inference import InferenceServer
from marl_hpc.roles.learner import Learner
from marl_hpc.roles.parameter import ParameterShard
from marl_hpc.roles.play import play
from marl_hpc.roles.recorder import summarize_episodes
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.checkpoint import Manifest

DONE, STOPPED = 0, 75


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
        self.counts: dict[str, int] = job["counts"]
        self.start_s = config.timeouts.start_s * config.timeouts.scale
        self.clock = Clock()
        self.builder = builder_of(config)(config, job, world, self.clock, self.find_start())

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
            learner = self.builder.learner(self.world.index, parameters, dataset)
        return self.end_learning(learner, learner.run())

    def roll_out(self) -> int:
        parameters, dataset, inference = (self.world.peers(kind) for kind in ("parameter", "dataset", "inference"))
        with self.world.allowing(self.start_s):  # many copies of a slow environment take their time
            worker = self.builder.worker(self.world.index, parameters, dataset, self.clock, inference)
        worker.run()
        return STOPPED if self.world.stopping and not self.world.training_ended else DONE

    def shard(self) -> int:
        kind, _, index = self.world.role.partition("/")
        ended = self.serve(self.builder.parameter(int(index)) if kind == "parameter" else self.builder.dataset(int(index)))
        while True:
            with self.clock.waiting("calls"):
                if ended.wait(1.0):
                    break
            self.world.stamp()
            self.world.report(self.clock)
        return STOPPED if self.world.stopping else DONE

    def infer(self) -> int:
        with self.world.allowing(self.start_s):  # a GPU's context, large policies
            server = self.builder.inference(self.world.index, self.world.peers("parameter"), self.clock)
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
            "parameter": [self.builder.parameter(i) for i in range(self.counts["parameter"])],
            "dataset": [self.builder.dataset(i) for i in range(self.counts["dataset"])],
        }
        peers: dict[str, list[Peer]] = {k: [LocalPeer(f"{k}/{i}", s) for i, s in enumerate(v)] for k, v in shards.items()}
        servers = [self.builder.inference(i, peers["parameter"], Clock(), alone=True) for i in range(self.counts["inference"])]
        inference: list[Peer] = [LocalPeer(f"inference/{i}", server) for i, server in enumerate(servers)]
        clocks = [Clock() for _ in range(self.counts["rollout"])]
        with self.world.allowing(self.start_s * len(clocks)):
            learner = self.builder.learner(0, peers["parameter"], peers["dataset"])
            workers = [
                self.builder.worker(i, peers["parameter"], peers["dataset"], clock, inference) for i, clock in enumerate(clocks)
            ]
        learner.start()
        learning = True
        while learning:
            for worker in workers if learner.wants_data else []:
                worker.step()
            learning = learner.step()
            self.world.report(self.clock)
        if not self.world.stopping:
            learner.announce_end()
            for worker in workers:
                worker.finish(learner.iteration)
        return self.end_learning(learner, learner.finish())

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


def graph_lines(config: Config, learners: int) -> list[str]:
    """A line for each graph of networked agents: who would have how many of them, and how much crosses learners."""
    env = make_env(config, 1)
    stacked = [plan.interface for plan in paradigms.plan(config, env.spec) if plan.interface.stacked]
    graphs = [check_graph(config.topology, env.spec, interface.groups[0], learners) for interface in stacked]
    env.close()
    return [f"{interface.name}: {graph.describe()}" for interface, graph in zip(stacked, graphs, strict=True)]


def check_replay(config: Config, plans: list[paradigms.Plan]) -> None:
    """Options of replay need an interface that has some."""
    if any(plan.algorithm.replay(plan.options, plan.interface) for plan in plans):
        return
    for key in ("replay_bytes", "spill"):
        if getattr(config.dataset, key) is not None:
            raise ConfigError(
                f"dataset.{key}={getattr(config.dataset, key)} is about replay, and no interface has any: {', '.join(plan.algorithm.__name__ for plan in plans)} "
                "learn from each fragment once; leave it out"
            )


def prepare(job: dict[str, Any], deadline: Stamp) -> int:
    """Check what needs torch or the environment to check, before any rank starts; the environment's spec goes to the store."""
    store = StoreClient(job["store"], bytes.fromhex(job["key"]))
    try:
        config = from_record(job["config"])
        algorithms.configure(config.algorithm)
        env = make_env(config, 1)
        plans = paradigms.plan(config, env.spec)
        check_replay(config, plans)
        if computes_population(config):
            exact.check(config, whole_game(env))
        elif learns_population(config):
            casting.check(config, plans, env)
            Schedule.of(config, job["workers"])
        for plan in plans:
            if plan.interface.stacked:
                check_graph(config.topology, env.spec, plan.interface.groups[0], job["team"])
        cuda = torch.cuda.is_available()
        if config.device == "cuda" and not cuda:
            raise ConfigError("device=cuda but torch sees no GPU here; use device=auto or device=cpu")
        store.set("prepared", {"spec": env.spec.to_json(), "cuda": cuda})
    except (ConfigError, TypeError) as error:
        store.set("prepared", {"wrong": str(error)})
    except Exception:
        store.set("prepared", {"failed": traceback.format_exc()})
    return DONE
