"""A rollout worker: environments × policies, with inference on its own copy of the policies.

One step of its loop is one fragment: pull the version that the schedule names, act T steps in B copies, insert. All randomness is
keyed by what it is for (seed, copy, fragment, …), so it doesn't matter which worker, or which layout of ranks, collects a fragment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from marl_hpc.config import Config
from marl_hpc.keyed_random import ACTION, EPISODE, generator, integer
from marl_hpc.metrics import Clock
from marl_hpc.networks import Actor, draw_noise, load_flat, to_env
from marl_hpc.roles.clients import DatasetClient, ParameterClient, Stopping, World
from marl_hpc.roles.play import play
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.fragments import allocate, pack
from marl_hpc.types import EnvBatch


class RolloutWorker:
    def __init__(
        self, config: Config, worker: int, workers: int, env: EnvBatch, evaluation_env: EnvBatch, actors: dict[str, Actor],
        parameters: ParameterClient, dataset: DatasetClient, schedule: Schedule, world: World, clock: Clock,
    ) -> None:  # fmt: skip
        self.config, self.worker, self.workers = config, worker, workers
        self.env, self.evaluation_env, self.actors = env, evaluation_env, actors
        self.parameters, self.dataset, self.schedule = parameters, dataset, schedule
        self.world, self.clock = world, clock
        self.dtype = getattr(torch, config.dtype)
        self.copies = [worker * env.copies + b for b in range(env.copies)]  # their places among all copies of the run
        self.sequence: int | None = None
        self.version: int | None = None
        self.evaluated = schedule.evaluation(schedule.start - 1) or 0

    def run(self) -> None:
        while self.step():
            self.world.report(self.clock)

    def step(self) -> bool:
        """Collect and insert one fragment; False when there is nothing more to collect."""
        try:
            joined = self.sequence is None
            if self.sequence is None:
                self.sequence = self.dataset.next_sequence(self.worker)
            if self.sequence >= self.schedule.iterations:
                return self.finish(self.schedule.iterations)
            version = self.schedule.version(self.sequence)
            if version != self.version:
                pulled = self.parameters.pull(version)
                if isinstance(pulled, int):
                    return self.finish(pulled)
                self.load(pulled, version)
            due = self.schedule.evaluation(version)
            if due is not None and due > self.evaluated:
                self.evaluate(due, self.config.evaluate.episodes)
                self.evaluated = due
            if joined or self.sequence == self.schedule.segment(self.sequence):
                self.restart(self.sequence)
            rows, episodes = self.collect(self.sequence)
            self.dataset.insert(self.worker, self.sequence, rows, episodes, version)
            self.sequence += 1
        except Stopping:
            return False
        return not self.world.stopping

    def finish(self, version: int) -> bool:
        """Evaluate the final version, this worker's share of the episodes; always False."""
        pulled = self.parameters.pull(version)
        assert isinstance(pulled, dict), "the final version is published before training is called finished"
        self.load(pulled, version)
        self.evaluate(version, self.config.evaluate.final_episodes)
        return False

    def load(self, policies: dict[str, torch.Tensor], version: int) -> None:
        for name, values in policies.items():
            load_flat(self.actors[name], values)
        self.version = version

    def restart(self, sequence: int) -> None:
        """New episodes in all copies, seeded by where in the run they start."""
        timeouts = self.config.timeouts
        with self.clock.computing("environment"), self.world.allowing(timeouts.start_s * timeouts.scale):
            self.origin = sequence
            self.episode = [0] * self.env.copies
            self.returns = np.zeros(self.env.copies)
            self.lengths = np.zeros(self.env.copies, int)
            self.env.reset(list(range(self.env.copies)), [self.episode_seed(b) for b in range(self.env.copies)])
            self.seen = self.env.observe()

    def episode_seed(self, b: int) -> int:
        return integer(self.config.seed, EPISODE, self.copies[b], self.origin, self.episode[b])

    def collect(self, sequence: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A fragment: ({group: packed rows [T, B, row]}, episodes that ended in it [E, 2])."""
        steps, groups = self.config.rollout.fragment, self.env.spec.groups
        rows = {g.name: allocate(g, self.config.dtype, steps, self.env.copies) for g in groups}
        noise = self.draw(sequence, steps)
        ended: list[tuple[float, int]] = []
        agents = len(self.env.spec.agents)
        for t in range(steps):
            self.world.stamp()
            observation, mask, active = self.seen
            actions = {}
            with self.clock.computing("inference"):
                for name, row in rows.items():
                    row["observation"][t] = observation[name]
                    row["active"][t] = active[name]
                    if name in mask:
                        row["action_mask"][t] = mask[name]
                    row["action"][t], row["log_prob"][t] = self.act(name, row["observation"][t], mask.get(name), noise[name][:, t])
                    actions[name] = to_env(self.env.spec.group(name).action_space, row["action"][t])
            with self.clock.computing("environment"):
                after = self.env.step(actions)
                over = np.flatnonzero(after.over).tolist()
                self.lengths += 1
            for name, row in rows.items():
                row["next_observation"][t] = after.seen.observation[name]
                row["reward"][t], row["terminated"][t], row["truncated"][t] = (
                    after.reward[name], after.terminated[name], after.truncated[name],
                )  # fmt: skip
                self.returns += after.reward[name].sum(1) / agents
            self.seen = after.seen
            if len(over):
                for b in over:
                    ended.append((self.returns[b], self.lengths[b]))
                    self.returns[b], self.lengths[b] = 0, 0
                    self.episode[b] += 1
                with self.clock.computing("environment"):
                    self.env.reset(over, [self.episode_seed(b) for b in over])
                    self.seen = self.env.observe()
        packed = {name: pack(row) for name, row in rows.items()}
        return packed, torch.tensor(ended, dtype=torch.float64).reshape(-1, 2)

    def draw(self, sequence: int, steps: int) -> dict[str, np.ndarray]:
        """Noise [B, T, N, A] of each group for one fragment."""
        streams = [generator(self.config.seed, ACTION, copy, sequence) for copy in self.copies]
        return {
            g.name: np.stack([draw_noise(g.action_space, stream, (steps, len(g.agents))) for stream in streams])
            for g in self.env.spec.groups
        }

    @torch.no_grad()
    def act(self, name: str, observation: np.ndarray, mask: np.ndarray | None, noise: np.ndarray) -> tuple[Any, Any]:
        """(actions [B, N, …], their log-probabilities [B, N]) of one group."""
        actor = self.actors[name]
        parameters = actor(torch.from_numpy(observation), None if mask is None else torch.from_numpy(mask))
        action = actor.sample(parameters, torch.from_numpy(noise).to(self.dtype))
        return action.numpy(), actor.log_prob(parameters, action).numpy()

    def evaluate(self, version: int, episodes: int) -> None:
        """Play this worker's share of an evaluation's episodes and report them. Touches nothing that training draws from."""
        mine = [e for e in range(episodes) if e % self.workers == self.worker]
        with self.clock.computing("evaluation"):
            results = play(
                self.evaluation_env,
                self.actors,
                mine,
                seed=self.config.seed,
                greedy=self.config.evaluate.greedy,
                alive=self.world.stamp,
            )
        rows = [(episode_return, length, self.version) for episode_return, length in results]
        self.dataset.insert_evaluation(version, self.worker, torch.tensor(rows, dtype=torch.float64).reshape(-1, 3))
