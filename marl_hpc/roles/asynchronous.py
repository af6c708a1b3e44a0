"""Asynchronous training's learner and rollout worker: nobody keeps to a schedule, and what all count together is on parameter shard 0.

The learner takes the items that come first, learns, hands gradients in as it goes, and acknowledges. The worker acts with the newest
policies at each fragment's start. Learner 0 leads: it writes what a person reads, and checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from marl_hpc.agents.asynchronous import AsynchronousAgent, Ended
from marl_hpc.agents.interface import describe_non_finite
from marl_hpc.config import Config
from marl_hpc.keyed_random import MINIBATCH, integer
from marl_hpc.metrics import Clock
from marl_hpc.roles.clients import Batch, Stopping, World
from marl_hpc.roles.following import Following
from marl_hpc.roles.learner import export, prefixed
from marl_hpc.roles.recorder import AsynchronousRecorder
from marl_hpc.roles.rollout import RolloutWorker
from marl_hpc.roles.servers import DatasetServers, ParameterServers
from marl_hpc.storage import checkpoint
from marl_hpc.storage.fragments import unpack

FINAL = -1  # the final policies' evaluation


class Share(NamedTuple):
    """An interface on this rank. The first of its learners saves what isn't on the shards."""

    agent: AsynchronousAgent
    first: bool


class AsynchronousLearner:
    def __init__(
        self, config: Config, index: int, shares: list[Share], parameters: ParameterServers, dataset: DatasetServers, items: int,
        savers: list[int], recorder: AsynchronousRecorder | None, run_dir: Path, world: World, clock: Clock, single: bool,
    ) -> None:  # fmt: skip
        """A batch has `items` of the dataset shards' items. `savers` are the learners that write to checkpoints, the lead among them."""
        self.config, self.index, self.shares, self.items = config, index, shares, items
        self.parameters, self.dataset, self.savers = parameters, dataset, savers
        self.recorder, self.run_dir, self.world, self.clock, self.single = recorder, run_dir, world, clock, single
        self.learners = max(1, world.learners)
        self.batch = 0  # that this learner learns next
        self.status: dict[str, Any] = {}
        self.saves = 0  # checkpoints that this learner had a part in
        self.saved_steps = 0

    def resume(self, folder: Path) -> None:
        """Take up what isn't on the shards."""
        for agent, _ in self.shares:
            state = load_file(folder / f"learner-{agent.interface.name}.safetensors")
            agent.algorithm.load_state(state)

    def run(self) -> bool:
        """Train until the budget is spent (True) or somebody asks to stop (False)."""
        self.start()
        while self.step():
            self.world.report(self.clock)
        return self.finish()

    def start(self) -> None:
        self.dataset.enlist(self.index)
        for agent, _ in self.shares:
            agent.start()
        if self.recorder is not None:
            self.status = self.parameters.status()
            self.saved_steps, self.recorder.collected = self.status["env_steps"], self.status["collected"]

    def step(self) -> bool:
        """One batch of each interface; False when it is time to end."""
        metrics: dict[str, float] = {}
        batch = None
        for agent, _ in self.shares:
            if self.world.stopping:
                return False
            try:
                learned, batch = self.learn(agent)
            except (Stopping, Ended):
                return False
            except FloatingPointError as error:
                self.parameters.end(str(error))
                return False
            metrics |= learned if self.single else prefixed(learned, agent.interface.name)
        self.batch += 1
        if self.recorder is not None and batch is not None:
            self.record(metrics, batch)
        elif self.status["saving"] > self.saves and self.index in self.savers:
            self.save()
        self.world.stamp()
        return not self.status["final"] and not self.status["failed"]

    def learn(self, agent: AsynchronousAgent) -> tuple[dict[str, float], Batch]:
        name = agent.interface.name
        batch, items, steps = self.dataset.take(name, self.index, self.items, agent.version)
        started = agent.version
        place = self.batch * self.learners + self.index  # among all learners' batches
        seed = integer(self.config.seed, MINIBATCH, place)
        table = agent.algorithm.replay(agent.algorithm.config, agent.interface)
        if table is not None:
            batch = batch._replace(drawn=self.dataset.draw(place, name, table, steps, 0, 1))
        elif wrong := describe_non_finite(unpack(batch.parts, agent.interface, self.config.dtype), agent.interface):
            raise FloatingPointError(f"the environment gave {wrong}")
        given = batch.parts if batch.drawn is None else batch.drawn
        metrics: dict[str, float] = {}
        if given:
            with self.clock.computing("learn"):
                metrics = agent.learn(
                    unpack(given, agent.interface, self.config.dtype), batch.columns, total=len(batch.columns), seed=seed,
                    env_steps=self.status.get("env_steps", 0), alive=self.world.stamp,
                )  # fmt: skip
        if batch.drawn and agent.algorithm.priorities is not None:
            self.dataset.set_priorities(name, batch.drawn["shard"][0], batch.drawn["place"][0], agent.algorithm.priorities)
        self.dataset.done(name, self.index, items)
        self.status = self.parameters.learned(name, self.index, self.batch, steps)
        return metrics, batch._replace(versions=[started - version for version in batch.versions])

    def record(self, metrics: dict[str, float], batch: Batch) -> None:
        """The lead's part: metrics, evaluations, goals and checkpoints."""
        assert self.recorder is not None
        with self.clock.computing("record"):
            counts = self.parameters.counts()
            self.recorder.record(self.status, counts, self.dataset.counts(), metrics, batch)
        collected = self.recorder.collect(self.dataset, self.status["evaluation"])
        if collected > self.status["collected"]:
            self.parameters.unpin(collected)
        if self.recorder.goal_reached():
            self.parameters.end()
            self.status = self.parameters.status()
        elif self.status["env_steps"] - self.saved_steps >= self.config.checkpoint.every_steps and not self.status["final"]:
            self.save()

    def finish(self) -> bool:
        """Save and, unless stopped, evaluate the final versions. Raises FloatingPointError when somebody's numbers went wrong."""
        self.status = self.parameters.status()
        failed, stopped = self.status["failed"], not self.status["final"] and not self.status["failed"]
        if not stopped:
            self.dataset.end()
        self.parameters.leave(self.index)
        for agent, _ in self.shares:
            agent.take(self.parameters.latest(agent.interface.name), stepped=False)
        if self.recorder is not None:
            self.save(last=True)
        elif self.index in self.savers:
            while not self.save():  # the lead may have begun another one before
                pass
        if failed:
            self.world.gather("gave up", None)  # the first to raise ends the job
            raise FloatingPointError(f"{failed} (a checkpoint from before it is saved)")
        if stopped:
            return False
        if self.recorder is not None:
            try:
                self.recorder.collect_last(self.dataset, FINAL)
            except Stopping:
                return False
        return True

    @property
    def wants_data(self) -> bool:
        return not self.status.get("final")

    @property
    def iteration(self) -> int:
        return FINAL

    def announce_end(self) -> None:
        """Nothing to say: workers hear from the shards that training is over."""

    def save(self, last: bool = False) -> bool:
        """A checkpoint: the shards write one version, while updates wait; then learners what isn't on the shards. The lead says whether
        it is the `last`; returned is what it has said."""
        deadline_s = self.config.timeouts.checkpoint_s * self.config.timeouts.scale
        with self.clock.computing("checkpoint"), self.world.allowing(deadline_s):
            files: dict[str, str] = {}
            folder, held = "", {}
            if self.recorder is not None:
                held = self.parameters.hold()
                folder = str(checkpoint.begin(self.run_dir, held["env_steps"]))
                try:
                    files |= self.parameters.save(Path(folder), held["orders"], deadline_s)
                finally:
                    self.parameters.release(self.saves + 1)
            said = self.world.gather(f"saving/{self.saves}", [folder, last], self.savers)
            path, last = next((Path(name), final) for name, final in said if name)
            for agent, first in self.shares:
                if first:
                    own = path / f"learner-{agent.interface.name}.safetensors"
                    save_file({name: x.detach().cpu().contiguous() for name, x in agent.algorithm.state().items()}, own)
                    files[own.name] = checkpoint.checksum(own)
                    export(self.run_dir, agent.agent, agent.version)
            for written in self.world.gather(f"written/{self.saves}", files, self.savers):
                files |= written
            if self.recorder is not None:
                files |= self.dataset.save(path, deadline_s)
                self.recorder.complete(path, held, files)
                self.saved_steps = held["env_steps"]
            self.saves += 1
        return last


class AsynchronousWorker(RolloutWorker):
    inference: Following  # type: ignore[assignment]
    dataset: DatasetServers  # type: ignore[assignment]

    def step(self) -> bool:
        """Collect and insert one fragment; False when there is nothing more to collect."""
        try:
            if self.sequence is None:
                self.sequence = self.dataset.next_sequence(self.worker)
                self.restart(self.sequence)
                self.evaluated = self.refresh()["collected"]
            status = self.refresh()
            if status["final"]:
                return self.finish(FINAL)
            if status["evaluation"] > self.evaluated:
                for number in range(self.evaluated + 1, status["evaluation"] + 1):
                    self.evaluate_pinned(f"evaluation/{number}", number, self.config.evaluate.episodes)
                self.evaluated = status["evaluation"]
                self.refresh()
            rows, episodes = self.collect(self.sequence)
            self.dataset.insert_versioned(self.worker, self.sequence, rows, episodes, self.versions)
            self.sequence += 1
        except Stopping:
            return False
        return not self.world.stopping

    def refresh(self) -> dict[str, Any]:
        """Turn to the newest policies; where training stands."""
        self.versions, status = self.inference.newest()
        self.trained = status["env_steps"]
        return status

    def evaluate_pinned(self, pin: str, number: int, episodes: int) -> None:
        self.inference.turn_to_pin(pin)
        self.version = number
        self.evaluate(number, episodes)

    def env_steps(self, sequence: int) -> int:
        return self.trained

    def finish(self, version: int) -> bool:
        self.evaluate_pinned("final", version, self.config.evaluate.final_episodes)
        return False
