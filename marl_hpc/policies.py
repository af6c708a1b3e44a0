"""A trained policy as its users hold it: loaded from a run folder's `policies/`, without anything distributed.

One safetensors file a policy holds the flat parameters, and in its header what is needed to rebuild the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def export_policy(path: Path, groups: Sequence[GroupSpec], values: torch.Tensor, network: dict[str, Any], version: int) -> None:
    """Write one policy; `values` is its flat parameter buffer."""
    about = {"groups": [group.to_json() for group in groups], "network": network, "version": version}
    save_file({"values": values.detach().cpu().contiguous()}, path, {"policy": json.dumps(about)})


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
    networks = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()["policy"])
            values = stored.get_tensor("values")
        network = build_policy([GroupSpec.from_json(group) for group in about["groups"]], about["network"]).to(values.dtype)
        load_flat(network, values)
        networks[file.stem] = network
    return networks
