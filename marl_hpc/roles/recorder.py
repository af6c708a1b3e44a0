"""What the lead learner writes down: metrics, evaluations, checkpoints' manifests, and the result of the run."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marl_hpc.config import Config, fingerprint
from marl_hpc.evaluation import summarize
from marl_hpc.metrics import MetricsWriter
from marl_hpc.roles.clients import Batch, DatasetClient, World
from marl_hpc.roles.schedule import Schedule
from marl_hpc.storage.checkpoint import Manifest, complete
from marl_hpc.types import EnvSpec

SCALE = "sum over steps, mean over agents"
GROUP_SCALE = "sum over steps, mean over the group's agents"


def summarize_episodes(episodes: Any, groups: list[str]) -> dict[str, Any]:
    """`evaluation.summarize` of rows [E, 2 + G] as `play` gives them, with each group's own under `groups` where there are several."""
    record = summarize(episodes[:, 0], scale=SCALE)
    if len(groups) > 1:
        own = {group: summarize(episodes[:, 2 + i], scale=GROUP_SCALE) for i, group in enumerate(groups)}
        record["groups"] = own
    return record


class Recorder:
    def __init__(
        self, config: Config, run_dir: Path, spec: EnvSpec, schedule: Schedule, world: World, resumed: Manifest | None
    ) -> None:
        self.config, self.run_dir, self.schedule, self.world = config, run_dir, schedule, world
        self.agents, self.groups = len(spec.agents), [group.name for group in spec.groups]
        self.earlier_s = resumed.wall_s if resumed else 0.0  # of the attempts before this one
        self.writer = MetricsWriter(run_dir, schedule.start, config.logger.name, asdict(config))
        self.started = self.last = time.monotonic()
        self.due = schedule.start // schedule.evaluate_every * schedule.evaluate_every  # the next evaluation to collect
        self.due = self.due if self.due == schedule.start and self.due > 0 else self.due + schedule.evaluate_every
        self.evaluate: dict[str, Any] | None = None
        self.population: dict[str, Any] | None = None
        self.final_iteration = schedule.start
        self.final_wall_s: float | None = None

    @property
    def wall_s(self) -> float:
        """Training time over all attempts."""
        return self.earlier_s + (self.final_wall_s or time.monotonic() - self.started)

    def goal_reached(self) -> bool:
        budget = self.config.budget
        if budget.seconds is not None and self.wall_s >= budget.seconds:
            return True
        goal = budget.return_mean
        return goal is not None and self.evaluate is not None and self.evaluate["return_mean"] >= goal

    @property
    def exit_reason(self) -> str:
        if self.final_iteration >= self.schedule.iterations:
            return f"budget.env_steps={self.config.budget.env_steps} spent"
        if self.config.budget.seconds is not None and self.wall_s >= self.config.budget.seconds:
            return f"budget.seconds={self.config.budget.seconds:g} spent"
        return f"budget.return_mean={self.config.budget.return_mean} reached"

    def log(self, iteration: int, metrics: dict[str, float], batch: Batch) -> None:
        """One line for an iteration that has been learned."""
        now = time.monotonic()
        metrics = dict(metrics)
        metrics |= self._of_episodes(batch)
        metrics["throughput/env_steps_per_s"] = self.schedule.steps / (now - self.last)
        metrics["staleness/mean"] = sum(iteration - 1 - version for version in batch.versions) / len(batch.versions)
        self.last = now
        self.final_iteration = iteration
        env_steps = self.schedule.env_steps(iteration)
        self.writer.write(self.wall_s, env_steps, iteration, metrics)
        elapsed = now - self.started
        rate = (iteration - self.schedule.start) * self.schedule.steps / elapsed
        self.world.progress({
            "env_steps": env_steps, "budget": self.schedule.env_steps(self.schedule.iterations), "updates": iteration,
            "env_steps_per_s": rate, "left_s": max(0.0, (self.schedule.iterations - iteration) * self.schedule.steps / rate),
            "train_return": metrics.get("train/return_mean"),
            "evaluate_return": self.evaluate["return_mean"] if self.evaluate else None,
        })  # fmt: skip

    def collect_evaluations(self, dataset: DatasetClient, iteration: int) -> None:
        """Log evaluations that have come in, in order, without waiting for any."""
        while self.due <= iteration:
            episodes = dataset.evaluation(self.due, wait=False)
            if episodes is None:
                return
            self._log_evaluation(episodes)
            self.due += self.schedule.evaluate_every

    def end(self, iteration: int) -> None:
        """Nothing is learned any more."""
        self.final_wall_s = time.monotonic() - self.started
        self.final_iteration = iteration

    def collect_final(self, dataset: DatasetClient, iteration: int) -> None:
        """Wait for the final version's evaluation."""
        episodes = dataset.evaluation(iteration, wait=True)
        assert episodes is not None
        self._log_evaluation(episodes)

    def _log_evaluation(self, episodes: Any) -> None:
        version = int(episodes[0, 0])
        self._write_evaluation(episodes, self.schedule.env_steps(version), version)

    def _write_evaluation(self, episodes: Any, steps: int, version: int) -> None:
        """One line for an evaluation of the policies that `steps` environment steps and `version` learner steps made."""
        self.evaluate = {
            **summarize_episodes(episodes[:, 1:], self.groups),
            "env_steps": steps,
            "greedy": self.config.evaluate.greedy,
        }
        if self.is_written(steps, version):
            return
        low, high = self.evaluate["mean_interval"]
        self.writer.evaluated.add(version)
        self.writer.write(
            self.wall_s, steps, version,
            {
                "evaluate/return_mean": self.evaluate["return_mean"], "evaluate/return_iqm": self.evaluate["iqm"],
                "evaluate/return_low": low, "evaluate/return_high": high, "evaluate/episodes": float(len(episodes)),
                "evaluate/episode_length": float(episodes[:, 2].mean()), **self._by_group("evaluate", episodes[:, 3:]),
            },
        )  # fmt: skip

    def log_population(self, schedule: Schedule, stage: int, metrics: dict[str, float]) -> None:
        """One line for the strategy of a stage, at its beginning."""
        iteration = schedule.stage_start(stage)
        self.population = {"stage": stage, **{name.removeprefix("population/"): x for name, x in metrics.items()}}
        self.writer.write(self.wall_s, schedule.env_steps(iteration), iteration, metrics)

    def is_written(self, steps: int, version: int) -> bool:
        """Whether an earlier attempt has written this evaluation."""
        return version in self.writer.evaluated

    def _of_episodes(self, batch: Batch) -> dict[str, float]:
        """Of the episodes that ended in a batch, if any."""
        if not len(batch.episodes):
            return {}
        return {
            "train/return_mean": float(batch.episodes[:, 0].mean()),
            "train/episode_length": float(batch.episodes[:, 1].mean()),
            **self._by_group("train", batch.episodes[:, 2:]),
        }

    def _by_group(self, kind: str, returns: Any) -> dict[str, float]:
        if len(self.groups) == 1:
            return {}
        return {f"{kind}/return_mean/{group}": float(returns[:, i].mean()) for i, group in enumerate(self.groups)}

    def complete_checkpoint(self, folder: Path, iteration: int, files: dict[str, str]) -> None:
        env_steps = self.schedule.env_steps(iteration)
        manifest = Manifest(
            fingerprint=fingerprint(self.config), iteration=iteration, env_steps=env_steps, agent_steps=env_steps * self.agents,
            learner_steps=iteration, wall_s=self.wall_s, files=files,
        )  # fmt: skip
        complete(folder, manifest, self.config.checkpoint.keep)
        self.final_iteration = iteration

    def result(self) -> dict[str, Any]:
        """The training's part of summary.json."""
        env_steps = self.schedule.env_steps(self.final_iteration)
        return {
            "env_steps": env_steps,
            "agent_steps": env_steps * self.agents,
            "learner_steps": self.final_iteration,
            "wall_s": self.wall_s,
            "env_steps_per_s": (self.final_iteration - self.schedule.start) * self.schedule.steps / (self.wall_s - self.earlier_s),
            "evaluate": self.evaluate,
            "exit_reason": self.exit_reason,
            **({} if self.population is None else {"population": self.population}),
        }


class AsynchronousRecorder(Recorder):
    """Of asynchronous training: environment steps and batches are counted by parameter shard 0, over all learners and attempts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.env_steps = self.begun = self.schedule.start_steps
        self.batches = self.schedule.start
        self.collected = 0  # evaluations, in multiples of evaluate.every_steps

    def is_written(self, steps: int, version: int) -> bool:
        return steps in self.writer.evaluated_at

    @property
    def exit_reason(self) -> str:
        if self.env_steps >= self.config.budget.env_steps:
            return f"budget.env_steps={self.config.budget.env_steps} spent"
        if self.config.budget.seconds is not None and self.wall_s >= self.config.budget.seconds:
            return f"budget.seconds={self.config.budget.seconds:g} spent"
        return f"budget.return_mean={self.config.budget.return_mean} reached"

    def record(
        self,
        status: dict[str, Any],
        counts: dict[str, dict[str, Any]],
        data: list[dict[str, Any]],
        metrics: dict[str, float],
        batch: Batch,
    ) -> None:
        """One line for a batch that the lead has learned; `batch.versions` are its items' ages in versions."""
        now = time.monotonic()
        before, self.env_steps = self.env_steps, status["env_steps"]
        self.batches = min(course["learned"] for course in counts.values())
        delays = [delay for course in counts.values() for delay in course["delays"]]
        dropped = sum(sum(course["dropped"].values()) for course in counts.values())
        passed_over = sum(sum(shard["passed_over"].values()) for shard in data)
        metrics = {
            **metrics, **self._of_episodes(batch),
            "throughput/env_steps_per_s": (self.env_steps - before) / (now - self.last),
            "staleness/mean": sum(batch.versions) / len(batch.versions), "staleness/max": float(max(batch.versions)),
            "gradients/applied": float(sum(course["updates"] for course in counts.values())),
            "gradients/dropped": float(dropped), "gradients/spread": float(max(map(spread, counts.values()))),
            "dataset/passed_over": float(passed_over),
            "dataset/queued": float(sum(sum(shard["queued"].values()) for shard in data)),
        }  # fmt: skip
        if delays:
            metrics |= {"gradients/delay_mean": sum(delays) / len(delays), "gradients/delay_max": float(max(delays))}
        self.last = now
        self.writer.write(self.wall_s, self.env_steps, self.batches, metrics)
        rate = (self.env_steps - self.begun) / (now - self.started)
        self.world.progress({
            "env_steps": self.env_steps, "budget": self.config.budget.env_steps, "updates": self.batches, "env_steps_per_s": rate,
            "left_s": max(0.0, (self.config.budget.env_steps - self.env_steps) / max(rate, 1e-9)),
            "train_return": metrics.get("train/return_mean"),
            "evaluate_return": self.evaluate["return_mean"] if self.evaluate else None,
        })  # fmt: skip

    def collect(self, dataset: DatasetClient, newest: int) -> int:
        """Log evaluations that have come in, in order, without waiting for any; the last one that has, in multiples of
        `evaluate.every_steps`."""
        while self.collected < newest:
            episodes = dataset.evaluation(self.collected + 1, wait=False)
            if episodes is None:
                break
            self.collected += 1
            self._write_evaluation(episodes, self.collected * self.config.evaluate.every_steps, self.batches)
        return self.collected

    def collect_last(self, dataset: DatasetClient, final: int) -> None:
        """Wait for the evaluation of the final policies."""
        self.final_wall_s = time.monotonic() - self.started
        episodes = dataset.evaluation(final, wait=True)
        assert episodes is not None
        self._write_evaluation(episodes, self.env_steps, self.batches)

    def complete(self, folder: Path, held: dict[str, Any], files: dict[str, str]) -> None:
        self.env_steps, self.batches = held["env_steps"], held["learned"]
        manifest = Manifest(
            fingerprint=fingerprint(self.config), iteration=self.batches, env_steps=self.env_steps,
            agent_steps=self.env_steps * self.agents, learner_steps=self.batches, wall_s=self.wall_s, files=files,
        )  # fmt: skip
        complete(folder, manifest, self.config.checkpoint.keep)

    def result(self) -> dict[str, Any]:
        """The training's part of summary.json."""
        return {
            "env_steps": self.env_steps,
            "agent_steps": self.env_steps * self.agents,
            "learner_steps": self.batches,
            "wall_s": self.wall_s,
            "env_steps_per_s": (self.env_steps - self.begun) / (self.wall_s - self.earlier_s),
            "evaluate": self.evaluate,
            "exit_reason": self.exit_reason,
        }


def spread(course: dict[str, Any]) -> int:
    """How many iterations lie between an interface's first and last learner."""
    clocks = course["clocks"].values()
    return max(clocks, default=0) - min(clocks, default=0)
