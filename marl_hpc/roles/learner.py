"""A learner: sample, learn, publish, acknowledge, save. What it optimizes is its AgentInterfaces' business.

A rank may host several interfaces (groups of agents), and an interface may have replicas on several ranks. Learner 0 leads: it
decides when to end and writes what a person reads.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from statistics import fmean

from safetensors.torch import load_file, save_file
from torch import Tensor

from marl_hpc.agents import AgentInterface
from marl_hpc.agents.interface import describe_non_finite
from marl_hpc.config import Config
from marl_hpc.keyed_random import MINIBATCH, integer
from marl_hpc.metrics import Clock
from marl_hpc.roles.clients import Batch, DatasetClient, ParameterClient, Stopping, World
from marl_hpc.roles.growth import Growth
from marl_hpc.roles.recorder import Recorder
from marl_hpc.roles.replica import Replica
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage import checkpoint
from marl_hpc.storage.fragments import unpack


class Learner:
    def __init__(
        self, config: Config, index: int, replicas: list[Replica], parameters: ParameterClient, dataset: DatasetClient,
        schedule: Schedule, recorder: Recorder | None, run_dir: Path, world: World, clock: Clock, single: bool,
        growth: Growth | None = None,
    ) -> None:  # fmt: skip
        """`recorder` is the lead learner's, None elsewhere. `single`: the run has one interface, whose name metrics don't carry.
        `growth`: where populations are."""
        self.single, self.growth = single, growth
        self.config, self.index, self.replicas = config, index, replicas
        self.parameters, self.dataset, self.schedule = parameters, dataset, schedule
        self.recorder, self.run_dir, self.world, self.clock = recorder, run_dir, world, clock
        self.iteration = schedule.start
        self.saved: int | None = None

    def resume(self, folder: Path) -> None:
        """Take up every interface's state from a checkpoint."""
        for agent, _, _ in self.replicas:
            agent.load_parts([load_file(path) for path in files_of(folder, agent.interface.whole)])
        self.saved = self.iteration

    def run(self) -> bool:
        """Train until the budget is spent (True) or somebody asks to stop (False)."""
        self.start()
        while self.step():
            self.world.report(self.clock)
        return self.finish()

    def start(self) -> None:
        if self.growth is not None and self.iteration == 0:
            self.growth.begin(self.replicas)
        self.publish()

    @property
    def wants_data(self) -> bool:
        return self.iteration < self.schedule.iterations

    def step(self) -> bool:
        """One iteration; False when it is time to end."""
        k = self.iteration
        if k >= self.schedule.iterations:
            return False
        batches = self.collect(k)
        if self.ends(k, batches):
            return False
        before = [agent.state_copy() for agent, _, _ in self.replicas]
        metrics, samples, failed = self.learn(k, batches)
        metrics = self.agree(k, metrics, samples, failed, before)
        self.iteration = k + 1
        if self.growth is not None and self.schedule.ends_stage(k):
            self.growth.freeze(self.replicas, self.schedule.stage(k + 1), self.schedule.env_steps(k + 1))
        self.publish()
        for agent, part, _ in self.replicas:
            self.dataset.acknowledge(k, agent.interface.name, part)
        if self.recorder is not None:
            with self.clock.computing("record"):
                self.recorder.log(self.iteration, metrics, batches[0])
            self.recorder.collect_evaluations(self.dataset, self.iteration)
            if self.growth is not None:
                self.growth.record(self.recorder, self.schedule, self.iteration, wait=False)
        if self.schedule.saves_after(k):
            self.save()
        self.world.stamp()
        return True

    def collect(self, k: int) -> list[Batch]:
        """Every interface's fragments of an iteration, and where it has a replay table what that gives; [] when it is time to stop."""
        try:
            if self.growth is not None:
                self.growth.await_opponents(self.schedule.stage(k))
            return [
                self.dataset.sample(k, agent.interface.name, part, parts)._replace(drawn=self.draw(k, agent, part, parts))
                for agent, part, parts in self.replicas
            ]
        except Stopping:
            return []

    def learn(self, k: int, batches: list[Batch]) -> tuple[dict[str, float], dict[str, float], str]:
        """(metrics, of how many samples each is, what went wrong first). The other interfaces learn all the same: other learners may wait for their exchange."""
        metrics: dict[str, float] = {}
        samples: dict[str, float] = {}
        failed = ""
        for (agent, part, _), batch in zip(self.replicas, batches, strict=True):
            given, columns, total = batch.parts, batch.columns, self.schedule.steps // self.config.rollout.fragment
            if batch.drawn is not None:
                given = batch.drawn
            elif self.growth is not None:
                given, columns, total = self.growth.useful(agent.interface, given, columns, total)
            if not given:
                continue
            try:
                with self.clock.computing("learn"):
                    learned = agent.learn(
                        unpack(given, agent.interface, self.config.dtype),
                        columns,
                        total=total,
                        seed=integer(self.config.seed, MINIBATCH, k),
                        env_steps=self.schedule.env_steps(k),
                        alive=self.world.stamp,
                    )
            except FloatingPointError as error:
                failed = failed or str(error)
                continue
            if batch.drawn is not None and agent.algorithm.priorities is not None:
                shards, places = batch.drawn["shard"][0], batch.drawn["place"][0]
                self.dataset.set_priorities(agent.interface.name, shards, places, agent.algorithm.priorities)
            if part == 0:
                told = learned if self.single else prefixed(learned, agent.interface.whole)
                metrics |= told
                samples |= dict.fromkeys(told, agent.samples)
        return metrics, samples, failed

    def agree(
        self, k: int, metrics: dict[str, float], samples: dict[str, float], failed: str, before: list[dict[str, Tensor]]
    ) -> dict[str, float]:
        """All learners' metrics. Where one's numbers went wrong, all go back to how this iteration began and save that; raises
        FloatingPointError."""
        wrong, told = [failed], []
        for said, other, of in self.world.gather(f"metrics/{k}", [failed, metrics, samples]):
            wrong.append(said)
            told.append((other, of))
        metrics = {
            name: combined(name, [(other[name], of[name]) for other, of in told if name in other])
            for name in dict.fromkeys(n for other, _ in told for n in other)
        }
        if any(wrong):
            for (agent, _, _), state in zip(self.replicas, before, strict=True):
                agent.load_state(state)
            self.give_up(next(filter(None, wrong)))
        return metrics

    def give_up(self, text: str) -> None:
        if self.saved != self.iteration:
            self.save()
        self.world.gather(f"gave up/{self.iteration}", None)  # the first to raise ends the job
        raise FloatingPointError(f"{text} (iteration {self.iteration}, a checkpoint of its start is saved)")

    def draw(self, k: int, agent: AgentInterface, part: int, parts: int) -> dict[str, Tensor] | None:
        """From the interface's replay table; {} while it has too little, None where there is no table."""
        table = agent.algorithm.replay(agent.algorithm.config, agent.interface)
        if table is None:
            return None
        return self.dataset.draw(k, agent.interface.name, table, self.schedule.steps, part, parts)

    def ends(self, k: int, batches: list[Batch]) -> bool:
        """Whether this iteration isn't learned any more. All learners decide alike, and only once all have their batch: so nobody
        waits inside a collective for one whose data is late. Raises FloatingPointError on all when data isn't finite."""
        bad = [
            describe_non_finite(unpack(batch.parts, agent.interface, self.config.dtype), agent.interface)
            for (agent, _, _), batch in zip(self.replicas, batches, strict=False)
        ]
        mine = {"stop": self.world.stopping or not batches, "bad": next(filter(None, bad), "")}
        if self.recorder is not None:
            mine["finish"] = self.recorder.goal_reached()
        said = self.world.gather(f"iteration/{k}", mine)
        if wrong := next(filter(None, (vote["bad"] for vote in said)), ""):
            self.give_up(f"the environment gave {wrong}")
        return any(vote["stop"] or vote.get("finish", False) for vote in said)

    def publish(self) -> None:
        with self.clock.computing("publish"):
            for agent, part, _ in self.replicas:
                if part == 0:
                    for name, values in agent.policy_values().items():
                        self.parameters.publish(name, self.iteration, values)

    def finish(self) -> bool:
        """Save and, unless stopped, evaluate the final version."""
        stopped = any(self.world.gather("stopped", self.world.stopping))
        if self.saved != self.iteration:
            self.save()
        if not stopped:
            self.announce_end()
            stopped = not self.conclude()
        if stopped and self.growth is not None:
            self.growth.write_down()
        return not stopped

    def conclude(self) -> bool:
        """Wait for what the final version amounts to, and write that down; False where a stop comes first."""
        try:
            if self.recorder is not None:
                self.recorder.end(self.iteration)
            if self.growth is not None:
                self.growth.await_last(self.schedule.stage(self.iteration))
            if self.recorder is not None:
                self.recorder.collect_final(self.dataset, self.iteration)
                if self.growth is not None:
                    self.growth.record(self.recorder, self.schedule, self.iteration, wait=True)
        except Stopping:
            return False
        return True

    def announce_end(self) -> None:
        """Tell the workers that this version is the final one."""
        if self.recorder is not None:
            self.parameters.finish(self.iteration)

    def save(self) -> None:
        """One cut over all roles: every interface's first replica and every parameter shard write, then the lead completes it."""
        deadline_s = self.config.timeouts.checkpoint_s * self.config.timeouts.scale
        with self.clock.computing("checkpoint"), self.world.allowing(deadline_s):
            self.compare_replicas()
            steps = self.schedule.env_steps(self.iteration)
            folder = ""
            if self.recorder is not None:
                folder = str(checkpoint.begin(self.run_dir, steps))
            folder = Path(next(name for name in self.world.gather(f"checkpoint/{self.iteration}", folder) if name))
            files = {}
            for agent, part, _ in self.replicas:
                if part == 0:
                    path = folder / f"learner-{agent.interface.name}.safetensors"
                    save_file(agent.state(), path)
                    files[path.name] = checkpoint.checksum(path)
                    export(self.run_dir, agent, self.iteration)
            for written in self.world.gather(f"written/{self.iteration}", files):
                files |= written
            if self.recorder is not None:
                files |= self.parameters.save(folder, self.iteration, deadline_s)
                files |= self.dataset.save(folder, deadline_s)
                self.recorder.complete_checkpoint(folder, self.iteration, files)
            self.saved = self.iteration

    def compare_replicas(self) -> None:
        """Replicas of an interface hold the same bits after every update. Raises RuntimeError when they don't: averaging gradients of
        diverged replicas would train nobody."""
        mine = {
            agent.interface.name: hashlib.sha256(agent.parameters.values.detach().cpu().numpy().tobytes()).hexdigest()
            for agent, _, _ in self.replicas
        }
        digests: dict[str, set[str]] = {}
        for said in self.world.gather(f"digest/{self.iteration}", mine):
            for name, digest in said.items():
                digests.setdefault(name, set()).add(digest)
        diverged = [name for name, different in digests.items() if len(different) > 1]
        if diverged:
            raise RuntimeError(
                f"replicas of {', '.join(diverged)} differ at iteration {self.iteration}; are the nodes' libraries the same?"
            )


def files_of(folder: Path, interface: str) -> list[Path]:
    """What the learners of an interface wrote into a checkpoint: one file, or one each where its agents were divided among them."""
    whole = folder / f"learner-{interface}.safetensors"
    if whole.is_file():
        return [whole]
    parts = {path.stem.rpartition("-")[2]: path for path in folder.glob(f"learner-{glob.escape(interface)}-*.safetensors")}
    return [parts[str(k)] for k in range(len(parts)) if str(k) in parts]


def export(run_dir: Path, agent: AgentInterface, version: int) -> None:
    """The policies as their users load them; beside those of line 0 others are members of populations only."""
    if agent.interface.line:
        return
    folder = run_dir / "policies"
    folder.mkdir(exist_ok=True)
    for name in agent.interface.policies:
        path = folder / f"{name}.safetensors"
        aside = path.with_suffix(".tmp")
        agent.export(name, aside, version)
        aside.replace(path)


def combined(name: str, told: list[tuple[float, float]]) -> float:
    """One number of several learners' (number, samples): all that was sent; of ranks and deviations the most; else the mean over samples,
    since of agents that are divided among learners each tells of its own.

    >>> combined("exchange/bytes", [(8.0, 1.0), (4.0, 1.0)]), combined("exchange/a/ranks", [(1.0, 1.0), (2.0, 1.0)])
    (12.0, 2.0)
    >>> combined("loss/value", [(1.0, 30.0), (2.0, 10.0)])
    1.25
    """
    numbers, samples = zip(*told, strict=True)
    if name.startswith("exchange/") and not name.endswith("/ranks"):
        return sum(numbers)
    if name.endswith(("/ranks", "/first_ratio_deviation")):
        return max(numbers)
    return fmean(numbers, samples if sum(samples) else None)


def prefixed(metrics: dict[str, float], interface: str) -> dict[str, float]:
    """`loss/policy` of interface `a` becomes `loss/a/policy`."""
    return {
        f"{kind}/{interface}/{name}": value for (kind, _, name), value in ((key.partition("/"), v) for key, v in metrics.items())
    }
