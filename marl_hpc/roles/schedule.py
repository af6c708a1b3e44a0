"""When everything happens in a run, as arithmetic: which version a fragment is collected with, where environments restart, when to
save and to evaluate. Every role computes it alike, so nobody has to be told.

Iteration k consumes fragment k of every worker and makes version k+1; version 0 is the initial policy. A *segment* lasts from one
scheduled checkpoint to the next: environments restart at its start, so that a resumed run and the run that was never stopped are
the same run. Populations grow in *stages* of so many environment steps; a segment ends where a stage does, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from marl_hpc.config import Config, ConfigError, learns_population


@dataclass(frozen=True, kw_only=True)
class Schedule:
    steps: int  # environment steps of one iteration, over all workers and copies
    iterations: int  # that spend the budget, counted over all attempts
    save_every: int  # iterations
    evaluate_every: int  # iterations
    lag: int
    start: int = 0  # the iteration that this attempt starts with
    start_steps: int = 0  # environment steps learned before it; earlier attempts may have had other numbers of workers
    stage_steps: int = 0  # environment steps of a stage; 0: there is one

    @staticmethod
    def of(config: Config, workers: int, start: int = 0, start_steps: int = 0) -> Schedule:
        """Of so many workers, or teams of workers. Raises ConfigError where stages would be shorter than iterations."""
        steps = config.rollout.fragment * config.rollout.envs * workers
        if learns_population(config) and config.population.every_steps < steps:
            raise ConfigError(
                f"population.every_steps={config.population.every_steps} is less than an iteration, {steps} environment steps "
                f"({workers} x rollout.envs x rollout.fragment): raise it, or lower those"
            )
        return Schedule(
            steps=steps,
            iterations=start + max(0, -(-(config.budget.env_steps - start_steps) // steps)),
            save_every=max(1, config.checkpoint.every_steps // steps),
            evaluate_every=max(1, config.evaluate.every_steps // steps),
            lag=config.rollout.max_lag,
            start=start,
            start_steps=start_steps,
            stage_steps=config.population.every_steps if learns_population(config) else 0,
        )

    def env_steps(self, iteration: int) -> int:
        """Environment steps that have been learned from before this iteration, over all attempts."""
        return self.start_steps + (iteration - self.start) * self.steps

    def segment(self, fragment: int) -> int:
        """The iteration at which the environments of this fragment's segment restarted."""
        return max(self.start, fragment // self.save_every * self.save_every, self.stage_start(self.stage(fragment)))

    def version(self, fragment: int) -> int:
        """The policy version that collects this fragment: the newest but `lag`, never one from before the segment."""
        return max(self.segment(fragment), fragment - self.lag)

    def stage(self, iteration: int) -> int:
        """The stage of populations in which an iteration lies: so many policies have joined each of them by then."""
        return self.env_steps(iteration) // self.stage_steps if self.stage_steps else 0

    def stage_start(self, stage: int) -> int:
        """The first iteration of a stage, in this attempt."""
        return self.start + max(0, -(-(stage * self.stage_steps - self.start_steps) // self.steps))

    def ends_stage(self, iteration: int) -> bool:
        """Whether a stage ends with this iteration."""
        return self.stage(iteration + 1) > self.stage(iteration)

    def saves_after(self, iteration: int) -> bool:
        return (iteration + 1) % self.save_every == 0

    def evaluation(self, version: int) -> int | None:
        """The last version up to this one that is due for an evaluation; the final one has its own."""
        due = version // self.evaluate_every * self.evaluate_every
        return due if due > 0 else None
