"""A trained policy as its users hold it: loaded from a run folder's `policies/`, without anything distributed.

One safetensors file a policy holds the flat parameters, and in its header what is needed to rebuild the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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

    def __init__(self, network: PolicyNetwork, agent: str, seed: int | None = None) -> None:
        self.network, self.agent = network.eval(), agent
        self.group = next(group for group in network.groups if agent in group.agents)
        self.index = self.group.agents.index(agent)
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def act(self, observation: Any, action_mask: Any = None, state: Any = None, *, greedy: bool = True) -> Any:
        """The action for `observation` [*shape] (or [batch, *shape]), as the environment takes it.

        `greedy` gives the most likely action, otherwise one is drawn. `action_mask` [size] forbids where false. A policy with a memory
        returns (action, state): give that `state` with the next observation, None at an episode's start. A team's joint policy, and that
        of agents that talk, takes and returns dicts of all: observations, masks (where there are any) and actions by agent. Raises
        ValueError when an observation has another shape or is missing.
        """
        joint = self.network.together
        observations = observation if joint else {self.agent: observation}
        masks = (action_mask or {}) if joint else {self.agent: action_mask}
        if joint and (not isinstance(observation, dict) or {a for g in self.network.groups for a in g.agents} - set(observation)):
            raise ValueError(
                "this policy acts for all its agents at once, as they are one policy or talk to each other: give a dict with the "
                f"observations of {', '.join(a for g in self.network.groups for a in g.agents)}"
            )
        given = {agent: np.asarray(x, np.float32) for agent, x in observations.items()}
        sizes = {self._batch(agent, x) for agent, x in given.items()}
        size = sizes.pop()
        inputs = {group.name: self._inputs(group, given, masks, size or 1) for group in self.network.groups}
        rows, units = self.network.memory_shape
        memory = torch.zeros(size or 1, rows, units, dtype=self._dtype) if state is None else state
        noise = None
        if not greedy:
            noise = {
                g.name: torch.from_numpy(draw_noise(g.action_space, self.random, (size or 1, len(g.agents)))).to(self._dtype)
                for g in self.network.groups
            }
        actions, _, memory = self.network.act(inputs, memory, noise)
        chosen = {}
        for group in self.network.groups:
            taken = to_env(group.action_space, actions[group.name].numpy())
            for i, agent in enumerate(group.agents):
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
        active = torch.ones(seen.shape[:2], dtype=torch.bool)
        masked = any(mask is not None for mask in masks.values())
        return {"observation": seen, "active": active, **({"action_mask": legal} if masked else {})}


class Part(NamedTuple):
    """Agents with networks of their own that one of several ranks had."""

    group: str  # that they are of
    places: np.ndarray  # [n] of the agents there
    parts: int  # how many ranks had agents of it


def export_policy(
    path: Path, groups: Sequence[GroupSpec], values: torch.Tensor, network: dict[str, Any], version: int, part: Part | None = None
) -> None:
    """Write one policy; `values` is its flat parameter buffer."""
    about: dict[str, Any] = {"groups": [group.to_json() for group in groups], "network": network, "version": version}
    tensors = {"values": values.detach().cpu().contiguous()}
    if part is not None:
        about |= {"part_of": part.group, "parts": part.parts}
        tensors["places"] = torch.from_numpy(part.places)
    save_file(tensors, path, {"policy": json.dumps(about)})


def load_policy(run_dir: str | Path, agent: str, *, seed: int | None = None) -> Policy:
    """The policy that `agent` of a finished or stopped run plays.

    `run_dir` is the run's folder; `seed` is for drawing actions. Raises FileNotFoundError when the run has exported nothing yet,
    KeyError with the agents that there are.
    """
    networks = load_networks(run_dir)
    for network in networks.values():
        if any(agent in group.agents for group in network.groups):
            return Policy(network, agent, seed)
    known = [a for network in networks.values() for group in network.groups for a in group.agents]
    raise KeyError(f"no agent {agent!r} in {run_dir}; agents: {', '.join(known)}")


def load_networks(run_dir: str | Path) -> dict[str, PolicyNetwork]:
    """All policies of a run, by name. Raises FileNotFoundError when it has exported nothing yet."""
    folder = Path(run_dir) / "policies"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no exported policies; they are written at checkpoints and at the end of a run")
    found: dict[str, dict[tuple[int, int], list[Exported]]] = {}  # policy -> (version, parts) -> files
    for file in files:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()["policy"])
            places = stored.get_tensor("places") if "part_of" in about else None
            exported = Exported(about, stored.get_tensor("values"), places)
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
