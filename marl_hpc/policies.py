"""A trained policy as its users hold it: loaded from a run folder's `policies/`, without anything distributed.

One safetensors file a group holds the flat parameters, and in its header what is needed to rebuild the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from marl_hpc.networks import Actor, draw_noise, load_flat, to_env
from marl_hpc.types import GroupSpec


class Policy:
    """One agent's policy. `act` takes one observation or a batch of them."""

    def __init__(self, actor: Actor, group: GroupSpec, agent: str, seed: int | None = None) -> None:
        self.actor, self.group, self.agent = actor.eval(), group, agent
        self.index = group.agents.index(agent)
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def act(self, observation: Any, action_mask: Any = None, state: Any = None, *, greedy: bool = True) -> int | np.ndarray:
        """The action for `observation` [*shape] (or [batch, *shape]), as the environment takes it.

        `greedy` gives the most likely action, otherwise one is drawn. `action_mask` [n] forbids where false. `state` is the memory
        of a recurrent policy; these policies have none. Raises ValueError when the observation has another shape.
        """
        x = np.asarray(observation, np.float32)
        shape = self.group.observation_shape
        if x.shape[x.ndim - len(shape) :] != shape or x.ndim > len(shape) + 1:
            raise ValueError(f"{self.agent} observes shape {shape}, or a batch of those; got {x.shape}")
        single = x.ndim == len(shape)
        x = x[None] if single else x
        # the network serves all agents of a group at once: this agent's observation goes in at its own place
        seen = torch.zeros((len(x), len(self.group.agents), *shape), dtype=next(self.actor.parameters()).dtype)
        seen[:, self.index] = torch.from_numpy(x)
        mask = None
        if action_mask is not None:
            mask = torch.ones((*seen.shape[:2], self.group.action_space.n), dtype=torch.bool)
            mask[:, self.index] = torch.as_tensor(np.asarray(action_mask, bool))
        parameters = self.actor(seen, mask)
        if greedy:
            action = self.actor.mode(parameters)
        else:
            noise = draw_noise(self.group.action_space, self.random, (len(x), len(self.group.agents)))
            action = self.actor.sample(parameters, torch.from_numpy(noise).to(seen.dtype))
        chosen = to_env(self.group.action_space, action[:, self.index].numpy())
        if single:
            return int(chosen[0]) if self.group.action_space.kind == "discrete" else chosen[0]
        return chosen


def build_actor(group: GroupSpec, network: dict[str, Any]) -> Actor:
    return Actor(group, network["hidden"], network["activation"], network["agent_id"], seed=0)


def export_policy(path: Path, group: GroupSpec, values: torch.Tensor, network: dict[str, Any], version: int) -> None:
    """Write one group's policy; `values` is its flat parameter buffer."""
    about = {"group": group.to_json(), "network": network, "version": version}
    save_file({"values": values.detach().cpu().contiguous()}, path, {"policy": json.dumps(about)})


def load_policy(run_dir: str | Path, agent: str, *, seed: int | None = None) -> Policy:
    """The policy that `agent` of a finished or stopped run plays.

    `run_dir` is the run's folder; `seed` is for drawing actions. Raises FileNotFoundError when the run has exported nothing yet,
    KeyError with the agents that there are.
    """
    folder = Path(run_dir) / "policies"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no exported policies; they are written at checkpoints and at the end of a run")
    known: list[str] = []
    for file in files:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()["policy"])
            group = GroupSpec.from_json(about["group"])
            known += group.agents
            if agent in group.agents:
                values = stored.get_tensor("values")
                actor = build_actor(group, about["network"]).to(values.dtype)
                load_flat(actor, values)
                return Policy(actor, group, agent, seed)
    raise KeyError(f"no agent {agent!r} in {run_dir}; agents: {', '.join(known)}")
