"""What a run's folder tells of its populations, as JSON that anybody reads: `population/` with who is in them, what they return against
one another, whom they answered iteration by iteration, and the behavior policy that OpenSpiel takes.

May import populations, games and storage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marl_hpc.games import Game, to_openspiel
from marl_hpc.populations import PayoffTable, PolicyPopulation, ranking
from marl_hpc.storage.checkpoint import write_atomically


class PopulationFolder:
    def __init__(self, run_dir: Path, iterations: int) -> None:
        """Opened by a run that goes on after so many iterations: later ones of an earlier attempt are dropped."""
        self.path = run_dir / "population"
        self.path.mkdir(exist_ok=True)
        self.history = self.path / "history.jsonl"
        lines = self.history.read_text().splitlines() if self.history.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["iteration"] < iterations]
        write_atomically(self.history, "".join(f"{line}\n" for line in kept))

    def add(self, iteration: int, mixtures: Sequence[np.ndarray], **numbers: float) -> None:
        """An iteration: what each player's population was mixed by, and what is known of that."""
        record = {"iteration": iteration, **numbers, "mixtures": [np.round(mixture, 6).tolist() for mixture in mixtures]}
        with open(self.history, "a") as file:
            file.write(json.dumps(record) + "\n")

    def write(self, population: PolicyPopulation, table: PayoffTable) -> None:
        """Who is there now, and what the table knows of them; cells that aren't done are null."""
        members = [{**member._asdict(), "id": str(member.id)} for member in population]
        write_atomically(
            self.path / "members.json", json.dumps({"populations": population.populations, "members": members}, indent=1)
        )
        known = table.known_payoffs()
        rounded = np.round(known, 6).astype(object)
        rounded[np.isnan(known)] = None
        write_atomically(self.path / "payoffs.json", json.dumps({"sizes": table.sizes, "payoffs": rounded.tolist()}))

    def rank(self, table: PayoffTable) -> None:
        """How members rank by what the table knows, see `populations.ranking`; nothing where there is no table."""
        if table.known_payoffs().size:
            write_atomically(self.path / "ranking.json", json.dumps(ranking(table)))

    def export(self, game: Game, policies: Sequence[np.ndarray]) -> None:
        """What all players play [I, A], each mixture as the behavior policy that it amounts to: {information state: [[action,
        probability], …]}, as `pyspiel.TabularPolicy` takes it."""
        write_atomically(self.path / "policy.json", json.dumps(to_openspiel(game, list(policies))))
