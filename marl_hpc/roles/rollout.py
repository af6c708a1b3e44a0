"""A rollout worker: environments × policies, its own copy of them or an inference role's.

One step of its loop is one fragment: turn to the version that the schedule names, act T steps in B copies, insert. All randomness is
keyed by what it is for (seed, copy, fragment, …), so it doesn't matter which worker, or which layout of ranks, collects a fragment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from marl_hpc.config import Config
from marl_hpc.distributions import draw_noise
from marl_hpc.keyed_random import ACTION, EPISODE, generator, integer
from marl_hpc.metrics import Clock
from marl_hpc.networks import to_env
from marl_hpc.paradigms import Plan
from marl_hpc.roles.acting import Answer, Inference, ask, dtype_of
from marl_hpc.roles.clients import DatasetClient, Stopping, World
from marl_hpc.roles.play import play, summary_of
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.fragments import MEMORY, allocate, pack
from marl_hpc.types import EnvBatch


class RolloutWorker:
    inference: Inference

    def __init__(
        self, config: Config, worker: int, workers: int, env: EnvBatch, evaluation_env: EnvBatch, plans: list[Plan],
        inference: Any, dataset: DatasetClient, schedule: Schedule, world: World, clock: Clock,
    ) -> None:  # fmt: skip
        self.config, self.worker, self.workers = config, worker, workers
        self.env, self.evaluation_env, self.plans = env, evaluation_env, plans
        self.inference, self.policies = inference, inference.policies
        self.dataset, self.schedule = dataset, schedule
        self.world, self.clock = world, clock
        self.wants_state = any(plan.interface.critic_sees == "state" for plan in plans)
        seen = [plan.interface for plan in plans if plan.interface.joint_agents]
        agents = {agent: (g.name, i) for g in env.spec.groups for i, agent in enumerate(g.agents)} if seen else {}
        self.joint_agents = {interface.name: [agents[agent] for agent in interface.joint_agents] for interface in seen}
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
                final = self.inference.turn_to(version)
                if final is not None:
                    return self.finish(final)
                self.version = version
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
        final = self.inference.turn_to(version)
        assert final is None, "the final version is published before training is called finished"
        self.version = version
        self.evaluate(version, self.config.evaluate.final_episodes)
        return False

    def restart(self, sequence: int) -> None:
        """New episodes in all copies, seeded by where in the run they start."""
        timeouts = self.config.timeouts
        with self.clock.computing("environment"), self.world.allowing(timeouts.start_s * timeouts.scale):
            self.origin = sequence
            self.episode = [0] * self.env.copies
            self.returns = np.zeros((self.env.copies, len(self.env.spec.groups)))  # summed over a group's agents
            self.lengths = np.zeros(self.env.copies, int)
            self.env.reset(list(range(self.env.copies)), [self.episode_seed(b) for b in range(self.env.copies)])
            self.seen = self.env.observe()
            self.first = np.ones(self.env.copies, bool)  # an episode starts here
            self.memory = {
                name: torch.zeros(self.env.copies, *policy.memory_shape, dtype=dtype_of(policy))
                for name, policy in self.policies.items()
            }

    def episode_seed(self, b: int) -> int:
        return integer(self.config.seed, EPISODE, self.copies[b], self.origin, self.episode[b])

    def collect(self, sequence: int) -> tuple[dict[str, dict[str, torch.Tensor]], torch.Tensor]:
        """A fragment: ({interface: {"rows": [T, B, row], policy/memory: [C, B, …]}}, episodes that ended in it [E, 2 + G])."""
        steps = self.config.rollout.fragment
        rows = {plan.interface.name: allocate(plan.interface, self.config.dtype, steps, self.env.copies) for plan in self.plans}
        row_of = {group.name: rows[plan.interface.name] for plan in self.plans for group in plan.interface.groups}
        memories: dict[str, list[torch.Tensor]] = {name: [] for name, policy in self.policies.items() if policy.memory_shape[1]}
        noise = self.draw(sequence, steps)
        epsilon = {
            name: plan.algorithm.exploration(plan.options, self.env_steps(sequence))
            for plan in self.plans
            for name in plan.interface.policies
        }
        ended: list[tuple[float, ...]] = []
        groups = self.env.spec.groups
        sizes = np.array([len(group.agents) for group in groups])
        for t in range(steps):
            self.world.stamp()
            observation, mask, active = self.seen
            actions = {}
            with self.clock.computing("inference"):
                for name, row in row_of.items():
                    row[f"{name}/observation"][t] = observation[name]
                    row[f"{name}/active"][t] = active[name]
                    if name in mask:
                        row[f"{name}/action_mask"][t] = mask[name]
                for row in rows.values():
                    row["first"][t] = self.first
                for name in memories:
                    if t % self.chunk(name) == 0:
                        memories[name].append(self.memory[name].clone())
                for name, answer in self.act({group: x[:, t] for group, x in noise.items()}, epsilon).items():
                    self.memory[name] = answer.memory
                    for group in self.policies[name].groups:
                        row, acted = row_of[group.name], answer.actions[group.name].numpy()
                        row[f"{group.name}/action"][t] = acted
                        row[f"{group.name}/log_prob"][t] = answer.log_probs[group.name].numpy()
                        actions[group.name] = to_env(group.action_space, acted)
                self.note_joint_actions(rows, t, actions)
            with self.clock.computing("environment"):
                self.note_state(rows, t, "state")
                after = self.env.step(actions)
                self.note_state(rows, t, "next_state")
                over = np.flatnonzero(after.over).tolist()
                self.lengths += 1
            for name, row in row_of.items():
                row[f"{name}/next_observation"][t] = after.seen.observation[name]
                row[f"{name}/next_active"][t] = after.seen.active[name]
                if name in mask:
                    row[f"{name}/next_action_mask"][t] = after.seen.action_mask[name]
                row[f"{name}/reward"][t] = after.reward[name]
                row[f"{name}/terminated"][t], row[f"{name}/truncated"][t] = after.terminated[name], after.truncated[name]
            self.returns += np.stack([after.reward[group.name].sum(1) for group in groups], 1)
            self.seen, self.first = after.seen, after.over
            if len(over):
                for b in over:
                    ended.append(summary_of(self.returns[b], sizes, self.lengths[b]))
                    self.returns[b], self.lengths[b] = 0, 0
                    self.episode[b] += 1
                    for memory in self.memory.values():
                        memory[b] = 0
                with self.clock.computing("environment"):
                    self.env.reset(over, [self.episode_seed(b) for b in over])
                    self.seen = self.env.observe()
        packed = {name: {"rows": pack(row)} for name, row in rows.items()}
        for plan in self.plans:
            own = {name: torch.stack(memories[name]) for name in plan.interface.policies if name in memories}
            packed[plan.interface.name] |= {f"{name}/{MEMORY}": x for name, x in own.items()}
        return packed, torch.tensor(ended, dtype=torch.float64).reshape(-1, 2 + len(groups))

    def env_steps(self, sequence: int) -> int:
        """Environment steps that have been learned from when this fragment is collected."""
        return self.schedule.env_steps(sequence)

    def note_state(self, rows: dict[str, np.ndarray], t: int, field: str) -> None:
        if self.wants_state:
            state = self.env.state().reshape(self.env.copies, -1)
            for plan in self.plans:
                if plan.interface.critic_sees == "state":
                    rows[plan.interface.name][field][t] = state

    def note_joint_actions(self, rows: dict[str, np.ndarray], t: int, actions: dict[str, np.ndarray]) -> None:
        for interface, places in self.joint_agents.items():
            rows[interface]["joint_action"][t] = np.stack([actions[group][:, i] for group, i in places], 1)

    def chunk(self, policy: str) -> int:
        return next(plan.options.chunk for plan in self.plans if policy in plan.interface.policies)

    def draw(self, sequence: int, steps: int) -> dict[str, np.ndarray]:
        """Noise [B, T, N, A] of each group for one fragment."""
        streams = [generator(self.config.seed, ACTION, copy, sequence) for copy in self.copies]
        return {
            g.name: np.stack([draw_noise(g.action_space, stream, (steps, len(g.agents))) for stream in streams])
            for g in self.env.spec.groups
        }

    def act(self, noise: dict[str, np.ndarray], epsilon: dict[str, float]) -> dict[str, Answer]:
        """What each policy does about what is seen now. `noise` [B, N, A] is by group, `epsilon` by policy."""
        questions = {}
        for name, policy in self.policies.items():
            drawn = {group.name: torch.from_numpy(noise[group.name]).to(dtype_of(policy)) for group in policy.groups}
            questions[name] = ask(policy, self.seen, self.memory[name], drawn, epsilon[name])
        return self.inference.act(questions)

    def evaluate(self, version: int, episodes: int) -> None:
        """Play this worker's share of an evaluation's episodes and report them. Touches nothing that training draws from."""
        mine = [e for e in range(episodes) if e % self.workers == self.worker]
        with self.clock.computing("evaluation"):
            results = play(
                self.evaluation_env,
                self.inference,
                mine,
                seed=self.config.seed,
                greedy=self.config.evaluate.greedy,
                alive=self.world.stamp,
            )
        rows = torch.tensor([(self.version, *row) for row in results], dtype=torch.float64)
        self.dataset.insert_evaluation(version, self.worker, rows.reshape(-1, 3 + len(self.env.spec.groups)))
