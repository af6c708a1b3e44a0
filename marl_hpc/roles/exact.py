"""Populations on games that are written down whole: no data is collected and nothing is learned, best responses are computed.

The lead learner grows them, iteration by iteration, and writes down what it does; whoever else a launcher started waits for the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from marl_hpc.config import Config, ConfigError, Population, fingerprint
from marl_hpc.games import Game
from marl_hpc.metrics import Clock
from marl_hpc.populations import (
    Iteration,
    PayoffTable,
    PolicyId,
    PolicyPopulation,
    anytime_psro,
    fictitious_self_play,
    psro,
    self_play,
)
from marl_hpc.populations.schemes import configured
from marl_hpc.populations.suitability import check_solver
from marl_hpc.roles.clients import World
from marl_hpc.roles.population_folder import PopulationFolder
from marl_hpc.roles.recorder import Recorder
from marl_hpc.storage import checkpoint

STATE = "population.safetensors"
SAVE_EVERY_S = 30.0


def scheme(section: Population, game: Game) -> Callable[..., Iterator[Iteration]]:
    """What grows populations, with its options. Raises ConfigError for a meta-solver or an option that doesn't exist."""
    if section.name == "anytime_psro":
        grows = partial(anytime_psro, regret_steps=section.regret_steps)
    elif section.name == "psro":
        grows = partial(psro, meta_solver=configured(section))
    else:
        grows = {"self_play": self_play, "fictitious_play": fictitious_self_play}[section.name]
    return partial(grows, game, start=section.start or "pure", iterations=section.iterations, tolerance=section.tolerance)


class ExactLearner:
    """The lead learner of such a run; methods as of `roles.learner.Learner`."""

    wants_data = False

    def __init__(
        self, config: Config, game: Game, recorder: ExactRecorder, run_dir: Path, world: World, clock: Clock, resumed: Path | None
    ) -> None:  # fmt: skip
        self.config, self.game, self.recorder, self.world, self.clock = config, game, recorder, world, clock
        self.run_dir = run_dir
        players = range(game.players)
        self.population, self.table = PolicyPopulation(players), PayoffTable(players)
        self.mixtures: list[np.ndarray] | None = None  # of the last iteration
        if resumed is not None:
            self.load(resumed)
        self.iteration = max((member.iteration for member in self.population), default=0)
        self.folder = PopulationFolder(run_dir, self.iteration)
        self.last: Iteration | None = None
        self.saved_s = time.monotonic()

    def run(self) -> bool:
        self.start()
        while self.step():
            self.world.report(self.clock)
        return self.finish()

    def start(self) -> None:
        section = self.config.population
        options: dict[str, Any] = {"population": self.population, "seed": self.config.seed}
        options |= {"mixtures": self.mixtures} if section.name == "anytime_psro" else {"table": self.table}
        self.iterations = scheme(section, self.game)(**options)

    def step(self) -> bool:
        """One iteration; False when it is time to end."""
        if self.world.stopping:
            return False
        with self.clock.computing("best responses"):
            found = next(self.iterations, None)
        if found is None:
            return False
        self.last, self.mixtures = found, list(found.meta.mixtures)
        self.iteration = found.number + 1
        with self.clock.computing("record"):
            self.recorder.log_iteration(found)
            self.folder.add(found.number, found.meta.mixtures, nash_conv=found.nash_conv)
        if time.monotonic() - self.saved_s > SAVE_EVERY_S:
            self.save()
        self.world.stamp()
        return not self.recorder.goal_reached()

    def finish(self) -> bool:
        self.save()
        if self.world.stopping:
            return False
        self.folder.rank(self.table)
        if self.last is not None:
            self.folder.export(self.game, self.last.policies)
        return True

    def announce_end(self) -> None:
        """Nobody waits for it."""

    def save(self) -> None:
        with self.clock.computing("checkpoint"):
            folder = checkpoint.begin(self.run_dir, self.iteration)
            save_file(self.state(), folder / STATE)
            self.recorder.complete_checkpoint(folder, self.iteration, {STATE: checkpoint.checksum(folder / STATE)})
            self.folder.write(self.population, self.table)
        self.saved_s = time.monotonic()

    def state(self) -> dict[str, np.ndarray]:
        record = {f"population.{key}": x for key, x in self.population.state().items()}
        record |= {f"table.{key}": x for key, x in self.table.state().items()}
        record |= {f"values.{member.id}": self.population.values(member.id) for member in self.population}
        record |= {f"mixture.{player}": mixture for player, mixture in enumerate(self.mixtures or [])}
        return {key: np.ascontiguousarray(x) for key, x in record.items()}

    def load(self, folder: Path) -> None:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key, x in load_file(folder / STATE).items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = x
        self.population.load_state(parts["population"])
        self.table.load_state(parts["table"])
        for name, values in parts.get("values", {}).items():
            population, _, number = name.partition("/")
            self.population.restore(PolicyId(int(population), int(number)), values)
        self.mixtures = list(parts.get("mixture", {}).values()) or None  # a run may be stopped before its first iteration


class ExactWorker:
    """A rollout worker with nothing to collect."""

    def __init__(self, world: Any, clock: Clock) -> None:
        self.world, self.clock = world, clock

    def run(self) -> None:
        while not (self.world.stopping or self.world.training_ended):
            with self.clock.waiting("the lead learner"):
                time.sleep(0.05)
            self.world.stamp()
            self.world.report(self.clock)

    def step(self) -> bool:
        return False

    def finish(self, version: int) -> bool:
        return False


class ExactRecorder(Recorder):
    """Writes down iterations instead of learner steps; there are no environment steps."""

    final: Iteration | None = None
    cpu_s = 0.0

    def log_iteration(self, found: Iteration) -> None:
        self.final, self.final_iteration = found, found.number + 1
        self.cpu_s += found.cpu_s
        metrics = {
            "population/nash_conv": found.nash_conv, "population/exploitability": found.nash_conv / len(found.sizes),
            "population/gap": found.gap, "population/gains": float(np.maximum(found.gains, 0).sum()), "population/cpu_s": self.cpu_s,
        }  # fmt: skip
        for player, (size, mixture) in enumerate(zip(found.sizes, found.meta.mixtures, strict=True)):
            metrics[f"population/size/player_{player}"] = float(size)
            metrics[f"population/support/player_{player}"] = float((mixture > 1e-9).sum())
        self.writer.write(self.wall_s, 0, found.number + 1, metrics)
        self.world.progress({
            "env_steps": found.number + 1, "budget": self.config.population.iterations, "updates": found.number + 1,
            "env_steps_per_s": 0.0, "left_s": 0.0, "train_return": None, "evaluate_return": None, "nash_conv": found.nash_conv,
        })  # fmt: skip

    def complete_checkpoint(self, folder: Path, iteration: int, files: dict[str, str]) -> None:
        manifest = checkpoint.Manifest(
            fingerprint=fingerprint(self.config), iteration=iteration, env_steps=0, agent_steps=0, learner_steps=iteration,
            wall_s=self.wall_s, files=files,
        )  # fmt: skip
        checkpoint.complete(folder, manifest, self.config.checkpoint.keep)

    @property
    def exit_reason(self) -> str:
        section, final = self.config.population, self.final
        if final is None:
            return "stopped" if self.world.stopping else f"population.iterations={section.iterations} were done before"
        if final.converged:
            return f"converged: best responses gain no more than population.tolerance={section.tolerance:g}"
        if not final.added:
            return "no best response that isn't there already"
        if final.number + 1 >= section.iterations:
            return f"population.iterations={section.iterations} done"
        seconds = self.config.budget.seconds
        return "stopped" if seconds is None or self.wall_s < seconds else f"budget.seconds={seconds:g} spent"

    def result(self) -> dict[str, Any]:
        found = self.final
        return {
            "env_steps": 0, "agent_steps": 0, "learner_steps": self.final_iteration, "wall_s": self.wall_s, "env_steps_per_s": 0.0,
            "evaluate": None, "exit_reason": self.exit_reason,
            "population": None if found is None else {
                "iterations": found.number + 1, "sizes": list(found.sizes), "nash_conv": found.nash_conv, "gap": found.gap,
                "converged": found.converged, "cpu_s": self.cpu_s,
            },
        }  # fmt: skip


def check(config: Config, game: Game | None) -> None:
    """Raise ConfigError where best responses can't be computed, or the scheme isn't made for such a game."""
    section = config.population
    if game is None:
        raise ConfigError(
            f"population.oracle=exact computes best responses in games that are written down whole, and env={config.env['name']} isn't one; "
            "choose one of openspiel_fast/…"
        )
    if section.name == "psro":
        # a game's tables may be symmetric although players have a population each
        check_solver(section, config.env["name"], game.players, symmetric=True, zero_sum=lambda: game.zero_sum)
    try:
        next(scheme(section, game)())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"population={section.name} with env={config.env['name']}: {error}") from error
