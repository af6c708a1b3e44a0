"""A rollout worker: environments × policies, its own copy of them or an inference role's.

One step of its loop is one fragment: turn to the version that the schedule names, act T steps in B copies, insert. All randomness is
keyed by what it is for (seed, copy, fragment, …), so it doesn't matter which worker, or which layout of ranks, collects a fragment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from marl_hpc.config import Config
from marl_hpc.distributions import draw_noise
from marl_hpc.envs.part import PartBatch, cut_off, earned, everybodys, own, whole_of
from marl_hpc.keyed_random import ACTION, EPISODE, generator, integer
from marl_hpc.metrics import Clock
from marl_hpc.networks import to_env
from marl_hpc.paradigms import Plan
from marl_hpc.populations.schemes import BEST_RESPONSES, begins
from marl_hpc.roles.acting import Answer, Inference, Question, ask, dtype_of
from marl_hpc.roles.casting import Casting
from marl_hpc.roles.clients import DatasetClient, Stopping, World
from marl_hpc.roles.play import play, summary_of
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.fragments import MEMORY, allocate, pack
from marl_hpc.types import EnvBatch, InterfaceSpec, Step


class RolloutWorker:
    inference: Inference

    def __init__(
        self, config: Config, worker: int, team: int, teams: int, env: EnvBatch, evaluation_env: EnvBatch, plans: list[Plan],
        inference: Any, dataset: DatasetClient, schedule: Schedule, world: World, clock: Clock, casting: Casting | None = None,
    ) -> None:  # fmt: skip
        """Workers of a `team` step the same copies, each for its own agents (see `envs.part`); alone, a worker is a team. `casting`:
        where populations are, who plays whom."""
        self.config, self.worker, self.team, self.teams = config, worker, team, teams
        self.env, self.evaluation_env, self.plans = env, evaluation_env, plans
        self.inference, self.policies = inference, inference.policies
        self.dataset, self.schedule = dataset, schedule
        self.world, self.clock, self.casting = world, clock, casting
        self.wants_state = any(plan.interface.critic_sees == "state" for plan in plans)
        self.copies = [team * env.copies + b for b in range(env.copies)]  # their places among all copies of the run
        self.groups = whole_of(env).groups
        self.tells = not isinstance(env, PartBatch) or env.leads  # returns of episodes, for its team
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
            if self.casting is not None and self.config.population.lag:
                self.casting.ahead(self.schedule.stage(self.sequence))
            self.sequence += 1
        except Stopping:
            return False
        return not self.world.stopping

    def finish(self, version: int) -> bool:
        """Evaluate the final version, this worker's share of the episodes; always False."""
        final = self.inference.turn_to(version)
        assert final is None, "the final version is published before training is called finished"
        self.version = version
        if self.casting is not None:
            last = self.schedule.stage(version)
            for stage in range(max(0, last - self.config.population.lag), last + 1):
                self.casting.turn_to(stage)
        self.evaluate(version, self.config.evaluate.final_episodes)
        return False

    def restart(self, sequence: int) -> None:
        """New episodes in all copies, seeded by where in the run they start."""
        timeouts = self.config.timeouts
        if self.casting is not None:
            met = max(0, self.schedule.stage(sequence) - self.config.population.lag)
            self.casting.turn_to(met)
        with self.clock.computing("environment"), self.world.allowing(timeouts.start_s * timeouts.scale):
            self.origin = sequence
            self.episode = [0] * self.env.copies
            self.returns = np.zeros((self.env.copies, len(self.groups)))  # summed over a group's agents
            self.lengths = np.zeros(self.env.copies, int)
            self.env.reset(list(range(self.env.copies)), [self.episode_seed(b) for b in range(self.env.copies)])
            self.seen = self.env.observe()
            self.cast(range(self.env.copies))
            self.first = np.ones(self.env.copies, bool)  # an episode starts here
            self.memory = {
                name: torch.zeros(self.env.copies, *policy.memory_shape, dtype=dtype_of(policy))
                for name, policy in self.policies.items()
            }

    def episode_seed(self, b: int) -> int:
        return integer(self.config.seed, EPISODE, self.copies[b], self.origin, self.episode[b])

    def cast(self, copies: Sequence[int]) -> None:
        """Say who plays the episodes that these copies begin."""
        if self.casting is not None:
            keys = [(self.copies[b], self.origin, self.episode[b]) for b in copies]
            self.casting.begin(copies, [self.copies[b] for b in copies], keys, self.env.copies)

    def learns(self, interface: InterfaceSpec, group: str) -> np.ndarray | bool:
        """[B, N]: whose data of a group an interface learns from."""
        return True if self.casting is None else self.casting.learns(interface, group, len(self.env.spec.group(group).agents))

    def modes(self, group: str) -> np.ndarray:
        """[B, N]: who of a group acts by its best response in this episode."""
        assert self.casting is not None, "who acts in two ways is cast"
        return self.casting.modes(group, len(self.env.spec.group(group).agents))

    def collect(self, sequence: int) -> tuple[dict[str, dict[str, torch.Tensor]], torch.Tensor]:
        """A fragment: ({interface: {"rows": [T, B, row], policy/memory: [C, B, …]}}, episodes that ended in it [E, 2 + G])."""
        steps = self.config.rollout.fragment
        rows = {plan.interface.name: allocate(plan.interface, self.config.dtype, steps, self.env.copies) for plan in self.plans}
        row_of = [(plan.interface, group.name, rows[plan.interface.name]) for plan in self.plans for group in plan.interface.groups]
        memories: dict[str, list[torch.Tensor]] = {name: [] for name, policy in self.policies.items() if policy.memory_shape[1]}
        noise = self.draw(sequence, steps)
        epsilon = {
            name: plan.algorithm.exploration(plan.options, self.explored(sequence, plan.interface.line))
            for plan in self.plans
            for name in plan.interface.policies
        }
        ended: list[tuple[float, ...]] = []
        groups = self.groups
        sizes = np.array([len(group.agents) for group in groups])
        for t in range(steps):
            self.world.stamp()
            observation, mask, active = self.seen
            actions = {}
            with self.clock.computing("inference"):
                for interface, name, row in row_of:
                    row[f"{name}/observation"][t] = observation[name]
                    row[f"{name}/active"][t] = active[name] & self.learns(interface, name)
                    if name in mask:
                        row[f"{name}/action_mask"][t] = mask[name]
                for row in rows.values():
                    row["first"][t] = self.first
                for plan in self.plans:
                    for group in plan.interface.groups if plan.interface.modes else ():
                        rows[plan.interface.name][f"{group.name}/best_response"][t] = self.modes(group.name)
                for name in memories:
                    if t % self.chunk(name) == 0:
                        memories[name].append(self.memory[name].clone())
                answers = self.act({group: x[:, t] for group, x in noise.items()}, epsilon)
                for plan in self.plans:
                    for name, played in plan.interface.policies.items():
                        self.memory[name] = answers[name].memory
                        for group in played:
                            row, acted = rows[plan.interface.name], answers[name].actions[group.name].numpy()
                            row[f"{group.name}/action"][t] = acted
                            row[f"{group.name}/log_prob"][t] = answers[name].log_probs[group.name].numpy()
                            if plan.interface.line == 0:
                                actions[group.name] = to_env(group.action_space, acted)
            with self.clock.computing("environment"):
                self.note_state(rows, t, "state")
                after = self.env.step(actions)
                self.note_joint_actions(rows, t, actions, after)
                self.note_state(rows, t, "next_state")
                over = np.flatnonzero(after.over).tolist()
                self.lengths += 1
            for interface, name, row in row_of:
                row[f"{name}/next_observation"][t] = after.seen.observation[name]
                row[f"{name}/next_active"][t] = after.seen.active[name] & self.learns(interface, name)
                if name in mask:
                    row[f"{name}/next_action_mask"][t] = after.seen.action_mask[name]
                row[f"{name}/reward"][t] = after.reward[name]
                row[f"{name}/terminated"][t], row[f"{name}/truncated"][t] = after.terminated[name], after.truncated[name]
            self.returns += earned(self.env.spec, after)
            self.seen, self.first = after.seen, after.over
            if len(over):
                for b in over:
                    if self.tells:
                        ended.append(summary_of(self.returns[b], sizes, self.lengths[b]))
                    self.returns[b], self.lengths[b] = 0, 0
                    self.episode[b] += 1
                    for memory in self.memory.values():
                        memory[b] = 0
                with self.clock.computing("environment"):
                    self.env.reset(over, [self.episode_seed(b) for b in over])
                    self.seen = self.env.observe()
                self.cast(over)
        packed = {name: {"rows": pack(row)} for name, row in rows.items()}
        for plan in self.plans:
            own = {name: torch.stack(memories[name]) for name in plan.interface.policies if name in memories}
            packed[plan.interface.name] |= {f"{name}/{MEMORY}": x for name, x in own.items()}
        return packed, torch.tensor(ended, dtype=torch.float64).reshape(-1, 2 + len(groups))

    def env_steps(self, sequence: int) -> int:
        """Environment steps that have been learned from when this fragment is collected."""
        return self.schedule.env_steps(sequence)

    def explored(self, sequence: int, line: int) -> int:
        """Environment steps since exploration began: with every best response anew."""
        section, stage = self.config.population, self.schedule.stage(sequence)
        if section.name not in BEST_RESPONSES:
            stage = 0
        while stage and not begins(section, line, stage):
            stage -= 1
        return max(0, self.env_steps(sequence) - stage * self.schedule.stage_steps)

    def note_state(self, rows: dict[str, np.ndarray], t: int, field: str) -> None:
        if self.wants_state:
            state = self.env.state().reshape(self.env.copies, -1)
            for plan in self.plans:
                if plan.interface.critic_sees == "state":
                    rows[plan.interface.name][field][t] = state

    def note_joint_actions(self, rows: dict[str, np.ndarray], t: int, actions: dict[str, np.ndarray], after: Step) -> None:
        """What all agents of a group did, also those that other workers act for, and whether that was the end for all of them."""
        for plan in self.plans:
            if plan.interface.joint_agents:
                (group,) = plan.interface.groups
                row = rows[plan.interface.name]
                row["joint_action"][t] = everybodys(self.env, group.name, actions)
                row["over"][t], row["cut"][t] = after.over, cut_off(self.env, group.name, after)

    def chunk(self, policy: str) -> int:
        return next(plan.options.chunk for plan in self.plans if policy in plan.interface.policies)

    def draw(self, sequence: int, steps: int) -> dict[str, np.ndarray]:
        """Noise [B, T, N, A] of each group for one fragment."""
        streams = [generator(self.config.seed, ACTION, copy, sequence) for copy in self.copies]
        drawn = {g.name: np.stack([draw_noise(g.action_space, s, (steps, len(g.agents))) for s in streams]) for g in self.groups}
        return dict(own(self.env, drawn, 2))

    def act(self, noise: dict[str, np.ndarray], epsilon: dict[str, float]) -> dict[str, Answer]:
        """What each policy does about what is seen now. `noise` [B, N, A] is by group, `epsilon` by policy."""
        questions = {}
        for name, policy in self.policies.items():
            drawn = {group.name: torch.from_numpy(noise[group.name]).to(dtype_of(policy)) for group in policy.groups}
            questions[name] = ask(policy, self.seen, self.memory[name], drawn, epsilon[name])
        for plan in self.plans:
            for group in plan.interface.groups if plan.interface.modes else ():
                policy = next(name for name, groups in plan.interface.policies.items() if group in groups)
                questions[policy].inputs[group.name]["best_response"] = torch.from_numpy(self.modes(group.name))
        answers = self.inference.act(questions)
        if self.casting is not None:
            self.casting.replace(questions, answers)
        return answers

    def evaluate(self, version: int, episodes: int) -> None:
        """Play this worker's share of an evaluation's episodes and report them. Touches nothing that training draws from."""
        mine = [e for e in range(episodes) if e % self.teams == self.team]
        with self.clock.computing("evaluation"):
            results = play(
                self.evaluation_env,
                self.inference if self.casting is None else Foremost(self.inference, self.plans),
                mine,
                seed=self.config.seed,
                greedy=self.config.evaluate.greedy,
                alive=self.world.stamp,
            )
        rows = torch.tensor([(self.version, *row) for row in results if self.tells], dtype=torch.float64)
        self.dataset.insert_evaluation(version, self.worker, rows.reshape(-1, 3 + len(self.groups)))


class Foremost:
    """The policies of line 0 only, as an `Acting`: those that agents act by where nobody is cast."""

    def __init__(self, inference: Inference, plans: Sequence[Plan]) -> None:
        self.inference = inference
        names = [name for plan in plans if plan.interface.line == 0 for name in plan.interface.policies]
        self.policies = {name: inference.policies[name] for name in names}

    def act(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        return self.inference.act(questions)
