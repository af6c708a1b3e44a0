"""What a run's folder tells of its populations, as JSON that anybody reads: RUN/population/ has

- `history.jsonl`: a line an iteration, what each player's population was mixed by, and NashConv where it is known;
- `members.json`: who is in them, and where they come from;
- `payoffs.json`: what they return against one another, to the last bit, null where that isn't known;
- `ranking.json`: cross-play, Elo and α-Rank, where there are payoffs (see `populations.ranking`);
- `policy.json`: the behavior policy that the last mixtures amount to, as OpenSpiel takes it;
- `policies/`: learned members' policies for `load_policy` and `load_mixture` (see `marl_hpc.policies`);
- `simulated.jsonl`: batches of episodes that no checkpoint is sure to hold yet, by parameter shard 0 (see `storage.journal`).

History and what was simulated are written as a run goes on, members and payoffs when it is stopped, too, the others at its end. May import
populations, games, storage and policies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from marl_hpc.games import Game, to_openspiel
from marl_hpc.policies import export_policy
from marl_hpc.populations import Member, PayoffTable, PolicyPopulation, ranking
from marl_hpc.storage.checkpoint import write_atomically
from marl_hpc.types import GroupSpec


class MemberPolicy(NamedTuple):
    """One policy of a member, as `export_policy` takes it."""

    member: Member
    name: str
    groups: Sequence[GroupSpec]
    values: Tensor
    network: dict[str, Any]


class PopulationFolder:
    def __init__(self, run_dir: Path, iterations: int) -> None:
        """Opened by a run that goes on after so many iterations: later ones of an earlier attempt are dropped."""
        self.path = population_folder(run_dir)
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
        payoffs = known.astype(object)
        payoffs[np.isnan(known)] = None
        write_atomically(self.path / "payoffs.json", json.dumps({"sizes": table.sizes, "payoffs": payoffs.tolist()}))

    def rank(self, table: PayoffTable) -> None:
        """How members rank by what the table knows, see `populations.ranking`; nothing where there is no table."""
        if table.known_payoffs().size:
            write_atomically(self.path / "ranking.json", json.dumps(ranking(table)))

    def export(self, game: Game, policies: Sequence[np.ndarray]) -> None:
        """What all players play [I, A], each mixture as the behavior policy that it amounts to: {information state: [[action,
        probability], …]}, as `pyspiel.TabularPolicy` takes it."""
        write_atomically(self.path / "policy.json", json.dumps(to_openspiel(game, list(policies))))

    def keep(self, policies: Iterable[MemberPolicy], about: dict[str, Any]) -> None:
        """Write these policies, and `about` as kept.json. Files of others are removed."""
        folder = self.path / "policies"
        folder.mkdir(exist_ok=True)
        written = set()
        for member, name, groups, values, network in policies:
            path = folder / f"{member.id.population}-{member.id.number}-{name}.safetensors"
            aside = path.with_suffix(".tmp")
            export_policy(aside, groups, values, network, member.iteration, played=member.played)
            written.add(aside.replace(path))
        write_atomically(folder / "kept.json", json.dumps(about))
        for other in set(folder.glob("*.safetensors")) - written:
            other.unlink()


def population_folder(run_dir: Path) -> Path:
    """Made by whichever role comes first."""
    path = run_dir / "population"
    path.mkdir(exist_ok=True)
    return path
