"""Trained policies as their users hold them: loaded from a run's folder, without anything distributed.

One safetensors file a policy holds the flat parameters, and in its header what is needed to rebuild the network. `policies/` has what was
learned last; `population/policies/` has frozen members of populations as `<population>-<number>-<policy>.safetensors`, and in `kept.json`
who is there and what each player's population amounts to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from marl_hpc.actors import PolicyNetwork, build_policy
from marl_hpc.distributions import draw_noise
from marl_hpc.networks import load_flat, to_env
from marl_hpc.types import GroupSpec


class Policy:
    """One agent's policy, or the one policy of a team, or of agents that talk to each other. Takes one observation or a batch of them."""

    def __init__(
        self, network: PolicyNetwork, agent: str, seed: int | np.random.Generator | None = None, played: str = "greedy"
    ) -> None:
        """`played`: how it acts unless told otherwise: drawn | greedy | uniform, as in `populations.Member`."""
        self.network, self.agent, self.played = network.eval(), agent, played
        self.group = next(group for group in network.groups if agent in group.agents)
        self.index = self.group.agents.index(agent)
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def act(self, observation: Any, action_mask: Any = None, state: Any = None, *, greedy: bool | None = None) -> Any:
        """The action for `observation` [*shape] (or [batch, *shape]), as the environment takes it.

        `greedy` gives the most likely action, otherwise one is drawn; by default as the policy is `played`, which is greedy but for members of
        populations. One that is played uniformly is so either way. `action_mask` [size] forbids where false. A policy with a memory
        returns (action, state): give that `state` with the next observation, None at an episode's start. A team's joint policy, and that
        of agents that talk, takes and returns dicts: observations, masks (where there are any) and actions by agent. Whoever is missing
        there, or observes None, has left or waits for its turn: it does nothing, and its memory stays as it is. Raises ValueError when an
        observation has another shape, or is of an agent that isn't there.
        """
        joint = self.network.together
        observations = observation if joint else {self.agent: observation}
        masks = (action_mask or {}) if joint else {self.agent: action_mask}
        everybody = [a for g in self.network.groups for a in g.agents]
        if joint and (not isinstance(observation, dict) or not observation or set(observation) - set(everybody)):
            got = ", ".join(map(str, observation)) or "nobody's" if isinstance(observation, dict) else type(observation).__name__
            raise ValueError(
                "this policy acts for all its agents at once, as they are one policy or talk to each other: give a dict with the "
                f"observations of {', '.join(everybody)}, but for those who have left or wait; got {got}"
            )
        given = {agent: np.asarray(x, np.float32) for agent, x in observations.items() if x is not None}
        if not given:
            raise ValueError(f"nobody of {', '.join(everybody)} observes anything: an episode without agents is over")
        sizes = {self._batch(agent, x) for agent, x in given.items()}
        size = sizes.pop()
        inputs = {group.name: self._inputs(group, given, masks, size or 1) for group in self.network.groups}
        rows, units = self.network.memory_shape
        memory = torch.zeros(size or 1, rows, units, dtype=self._dtype) if state is None else state
        noise = None
        uniform = self.played == "uniform"
        self.network.epsilon = 1.0 if uniform else 0.0
        if uniform or not (self.played == "greedy" if greedy is None else greedy):
            noise = {
                g.name: torch.from_numpy(draw_noise(g.action_space, self.random, (size or 1, len(g.agents)))).to(self._dtype)
                for g in self.network.groups
            }
        actions, _, memory = self.network.act(inputs, memory, noise)
        chosen = {}
        for group in self.network.groups:
            taken = to_env(group.action_space, actions[group.name].numpy())
            for i, agent in enumerate(group.agents):
                if agent not in given:
                    continue
                one = taken[0, i] if size is None else taken[:, i]
                chosen[agent] = int(one) if size is None and group.action_space.kind == "discrete" else one
        answer = chosen if joint else chosen[self.agent]
        return (answer, memory) if units else answer

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _batch(self, agent: str, x: np.ndarray) -> int | None:
        """How many observations there are; None for a single one."""
        shape = next(group for group in self.network.groups if agent in group.agents).observation_shape
        if x.shape[x.ndim - len(shape) :] != shape or x.ndim > len(shape) + 1:
            raise ValueError(f"{agent} observes shape {shape}, or a batch of those; got {x.shape}")
        return None if x.ndim == len(shape) else len(x)

    def _inputs(self, group: GroupSpec, given: dict[str, np.ndarray], masks: dict[str, Any], size: int) -> dict[str, torch.Tensor]:
        """A network serves all agents of a group at once: each observation goes in at its agent's own place."""
        seen = torch.zeros((size, len(group.agents), *group.observation_shape), dtype=self._dtype)
        legal = torch.ones((size, len(group.agents), group.action_space.size), dtype=torch.bool)
        for i, agent in enumerate(group.agents):
            if agent in given:
                seen[:, i] = torch.from_numpy(given[agent]).to(self._dtype)
            if masks.get(agent) is not None:
                legal[:, i] = torch.as_tensor(np.asarray(masks[agent], bool))
        here = [agent in given or not self.network.together for agent in group.agents]
        active = torch.tensor(here).expand(seen.shape[:2])
        masked = any(mask is not None for mask in masks.values())
        return {"observation": seen, "active": active, **({"action_mask": legal} if masked else {})}


class Part(NamedTuple):
    """Agents with networks of their own that one of several ranks had."""

    group: str  # that they are of
    places: np.ndarray  # [n] of the agents there
    parts: int  # how many ranks had agents of it


def export_policy(
    path: Path, groups: Sequence[GroupSpec], values: torch.Tensor, network: dict[str, Any], version: int, part: Part | None = None,
    played: str | None = None,
) -> None:  # fmt: skip
    """Write one policy; `values` is its flat parameter buffer, `played` as in `Policy`."""
    about: dict[str, Any] = {"groups": [group.to_json() for group in groups], "network": network, "version": version}
    if played is not None:
        about["played"] = played
    tensors = {"values": values.detach().cpu().contiguous()}
    if part is not None:
        about |= {"part_of": part.group, "parts": part.parts}
        tensors["places"] = torch.from_numpy(part.places)
    save_file(tensors, path, {"policy": json.dumps(about)})


class Player(NamedTuple):
    """Whom a population has policies for."""

    agents: tuple[str, ...]
    population: int
    mixture: tuple[float, ...]  # what each member is of what the population amounts to
    kept: tuple[int, ...]  # the members that have files
    rule: str  # who was kept, in words


class Mixture:
    """What a population amounts to: a member is drawn at an episode's start, and plays all of it."""

    def __init__(self, policies: Mapping[int, Policy], shares: Sequence[float], random: np.random.Generator) -> None:
        """`policies` by the members' numbers, and the `shares` by which they are drawn."""
        self.policies, self.shares = dict(policies), np.array(shares) / np.sum(shares)
        self.random = random
        self.member: int | None = None  # who plays

    def begin(self) -> int:
        """An episode begins: draw who plays it. Returns the member's number."""
        self.member = int(self.random.choice(list(self.policies), p=self.shares))
        return self.member

    def act(self, observation: Any, action_mask: Any = None, state: Any = None, *, greedy: bool | None = None) -> Any:
        """As `Policy.act`, of who plays this episode. Raises RuntimeError before the first one has begun."""
        if self.member is None:
            raise RuntimeError("nobody plays yet: call begin() at each episode's start, it draws a member")
        return self.policies[self.member].act(observation, action_mask, state, greedy=greedy)


def load_policy(run_dir: str | Path, agent: str, *, member: int | None = None, seed: int | None = None) -> Policy:
    """The policy that `agent` of a finished or stopped run plays; of a run with populations, the policy of a frozen `member`, by its number.

    `run_dir` is the run's folder; `seed` is for drawing actions. Raises FileNotFoundError when the run has exported nothing yet, or has no
    population; KeyError with the agents, or the members, that there are.
    """
    if member is not None:
        return load_members(run_dir, agent, [member], seed)[member]
    networks = load_networks(run_dir)
    for network in networks.values():
        if any(agent in group.agents for group in network.groups):
            return Policy(network, agent, seed)
    known = [a for network in networks.values() for group in network.groups for a in group.agents]
    raise KeyError(f"no agent {agent!r} in {run_dir}; agents: {', '.join(known)}")


def load_mixture(run_dir: str | Path, agent: str, *, seed: int | None = None) -> Mixture:
    """What the population that plays `agent` amounts to, by the last meta-strategy of a finished run.

    Players draw independently, also by equal seeds; where the meta-strategy correlates them, each by its own shares. Agents of one team are
    one player: with the same `seed` they are played by the same member in each episode. Raises as `load_policy` does.
    """
    player = load_player(run_dir, agent)
    shares = {number: player.mixture[number] for number in player.kept if player.mixture[number] > 0}
    policies = load_members(run_dir, agent, list(shares), stream(seed, "action", agent))
    return Mixture(policies, list(shares.values()), stream(seed, "member", player.agents[0]))


def stream(seed: int | None, *names: str) -> np.random.Generator:
    """Random numbers known by a seed and names; by chance without a seed."""
    return np.random.default_rng(None if seed is None else [seed, *"/".join(names).encode()])


def load_player(run_dir: str | Path, agent: str) -> Player:
    """Who `agent` is in a run's populations. Raises FileNotFoundError where there are none, KeyError with the agents that there are."""
    folder = Path(run_dir) / "population"
    if not folder.is_dir():
        raise FileNotFoundError(f"{run_dir} has no population; runs with population=… do")
    if not (folder / "policies" / "kept.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no members' policies: they are written at the end of a run, and population.oracle=exact has none to write "
            "(policy.json is what its populations amount to)"
        )
    about = json.loads((folder / "policies" / "kept.json").read_text())
    for player in about["players"]:
        if agent in player["agents"]:
            kept = (name.split("/") for name in about["members"])
            numbers = tuple(int(number) for population, number in kept if int(population) == player["population"])
            return Player(tuple(player["agents"]), player["population"], tuple(player["mixture"]), numbers, about["kept"])
    known = (name for player in about["players"] for name in player["agents"])
    raise KeyError(f"no agent {agent!r} in the populations of {run_dir}; agents: {', '.join(known)}")


def load_members(
    run_dir: str | Path, agent: str, members: Sequence[int], seed: int | np.random.Generator | None = None
) -> dict[int, Policy]:
    """The policies of these members, by number, that play `agent`."""
    player = load_player(run_dir, agent)
    folder, found = Path(run_dir) / "population" / "policies", {}
    for number in members:
        if not 0 <= number < len(player.mixture):
            raise KeyError(
                f"population {player.population}, which plays {agent!r}, has no member {number}; members: 0 … {len(player.mixture) - 1}"
            )
        if number not in player.kept:
            raise KeyError(
                f"member {number} of population {player.population} wasn't kept ({player.rule}); kept: {', '.join(map(str, player.kept))}"
            )
        files = sorted(folder.glob(f"{player.population}-{number}-*.safetensors"))
        policies = [x for x in map(read, files) if any(agent in group["agents"] for group in x.about["groups"])]
        if not policies:
            raise FileNotFoundError(f"{folder} lacks the policy of member {number} for {agent!r}, which its kept.json names")
        found[number] = Policy(together(agent, policies), agent, seed, policies[0].about["played"])
    return found


def load_networks(run_dir: str | Path) -> dict[str, PolicyNetwork]:
    """All policies of a run, by name. Raises FileNotFoundError when it has exported nothing yet."""
    folder = Path(run_dir) / "policies"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no exported policies; they are written at checkpoints and at the end of a run")
    found: dict[str, dict[tuple[int, int], list[Exported]]] = {}  # policy -> (version, parts) -> files
    for file in files:
        exported = read(file)
        about = exported.about
        same = found.setdefault(about.get("part_of", file.stem), {})
        same.setdefault((about["version"], about.get("parts", 1)), []).append(exported)
    networks = {}
    for name, versions in found.items():
        whole = [key for key, parts in versions.items() if len(parts) == key[1]]
        if not whole:
            raise FileNotFoundError(
                f"{folder} holds parts of {name!r} of different versions: the run ended while it wrote them; resume it, or take a checkpoint"
            )
        networks[name] = together(name, versions[max(whole)])
    return networks


class Exported(NamedTuple):
    """What a file holds."""

    about: dict[str, Any]
    values: torch.Tensor
    places: torch.Tensor | None


def read(file: Path) -> Exported:
    with safe_open(file, "pt") as stored:
        about = json.loads(stored.metadata()["policy"])
        places = stored.get_tensor("places") if "part_of" in about else None
        return Exported(about, stored.get_tensor("values"), places)


def together(name: str, parts: Sequence[Exported]) -> PolicyNetwork:
    """A policy from its file, or from those of all ranks that had agents of it."""
    about, values, _ = parts[0]
    groups = [GroupSpec.from_json(group) for group in about["groups"]]
    if parts[0].places is not None:
        order = torch.cat([part.places for part in parts if part.places is not None])
        agents = [agent for part in parts for agent in part.about["groups"][0]["agents"]]
        rows = torch.cat([part.values.view(len(part.about["groups"][0]["agents"]), -1) for part in parts])
        back = order.argsort()
        groups = [replace(groups[0], name=name, agents=tuple(agents[i] for i in back.tolist()))]
        values = rows[back].flatten()
    network = build_policy(groups, about["network"]).to(values.dtype)
    load_flat(network, values)
    return network
