"""When everything happens in a run, as arithmetic: which version a fragment is collected with, where environments restart, when to
save and to evaluate. Every role computes it alike, so nobody has to be told.

Iteration k consumes fragment k of every worker and makes version k+1; version 0 is the initial policy. A *segment* lasts from one
scheduled checkpoint to the next: environments restart at its start, so that a resumed run and the run that was never stopped are
the same run.
"""

from __future__ import annotations

from dataclasses import dataclass

from marl_hpc.config import Config


@dataclass(frozen=True, kw_only=True)
class Schedule:
    steps: int  # environment steps of one iteration, over all workers and copies
    iterations: int  # that spend the budget, counted over all attempts
    save_every: int  # iterations
    evaluate_every: int  # iterations
    lag: int
    start: int = 0  # the iteration that this attempt starts with
    start_steps: int = 0  # environment steps learned before it; earlier attempts may have had other numbers of workers

    @staticmethod
    def of(config: Config, workers: int, start: int = 0, start_steps: int = 0) -> Schedule:
        steps = config.rollout.fragment * config.rollout.envs * workers
        return Schedule(
            steps=steps,
            iterations=start + max(0, -(-(config.budget.env_steps - start_steps) // steps)),
            save_every=max(1, config.checkpoint.every_steps // steps),
            evaluate_every=max(1, config.evaluate.every_steps // steps),
            lag=config.rollout.max_lag,
            start=start,
            start_steps=start_steps,
        )

    def env_steps(self, iteration: int) -> int:
        """Environment steps that have been learned from before this iteration, over all attempts."""
        return self.start_steps + (iteration - self.start) * self.steps

    def segment(self, fragment: int) -> int:
        """The iteration at which the environments of this fragment's segment restarted."""
        return max(self.start, fragment // self.save_every * self.save_every)

    def version(self, fragment: int) -> int:
        """The policy version that collects this fragment: the newest but `lag`, never one from before the segment."""
        return max(self.segment(fragment), fragment - self.lag)

    def saves_after(self, iteration: int) -> bool:
        return (iteration + 1) % self.save_every == 0

    def evaluation(self, version: int) -> int | None:
        """The last version up to this one that is due for an evaluation; the final one has its own."""
        due = version // self.evaluate_every * self.evaluate_every
        return due if due > 0 else None
