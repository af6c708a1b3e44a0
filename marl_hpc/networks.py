"""Networks and the distributions that they parameterize, and the flat buffer that a policy is on the wire.

N agents of a group share the network; by default each sees its index as a one-hot beside its observation. D observation size,
A size of the distribution's parameters. Pure torch: no files, no ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from marl_hpc.types import ActionSpace, GroupSpec

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def mlp(sizes: list[int], activation: str, final_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with orthogonal initialization (Saxe et al. 2014), gain √2 inside as PPO implementations use."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs)
        last = i == len(sizes) - 2
        nn.init.orthogonal_(layer.weight, final_gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class AgentNetwork(nn.Module):
    """Observations [..., N, *shape] of a group to outputs [..., N, A], one set of weights for all agents of the group."""

    def __init__(
        self, group: GroupSpec, outputs: int, hidden: Iterable[int], activation: str, agent_id: bool, final_gain: float, seed: int
    ) -> None:
        super().__init__()
        self.agents = len(group.agents)
        self.dimensions = len(group.observation_shape)
        self.agent_id = agent_id and self.agents > 1
        size = math.prod(group.observation_shape) + (self.agents if self.agent_id else 0)
        generator = torch.Generator().manual_seed(seed)
        self.body = mlp([size, *hidden, outputs], activation, final_gain, generator)

    def forward(self, observation: Tensor) -> Tensor:
        x = observation.flatten(-self.dimensions) if self.dimensions != 1 else observation
        if self.dimensions == 0:
            x = observation.unsqueeze(-1)
        if self.agent_id:
            identity = torch.eye(self.agents, dtype=x.dtype, device=x.device)
            x = torch.cat([x, identity.expand(*x.shape[:-2], self.agents, self.agents)], -1)
        return self.body(x)


class Actor(nn.Module):
    """A group's stochastic policy: categorical over discrete actions, Gaussian with a state-independent deviation over boxes.

    Box actions live in [-1, 1] per dimension here and are stretched to the space's limits by `to_env`; unbounded boxes pass as is.
    """

    def __init__(self, group: GroupSpec, hidden: Iterable[int], activation: str, agent_id: bool, seed: int) -> None:
        super().__init__()
        self.space = group.action_space
        outputs = self.space.n if self.space.kind == "discrete" else math.prod(self.space.shape)
        self.network = AgentNetwork(group, outputs, hidden, activation, agent_id, 0.01, seed)
        if self.space.kind == "box":
            self.log_std = nn.Parameter(torch.full((outputs,), -0.5))

    def forward(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Distribution parameters [..., N, A]: log-probabilities where discrete, means where box."""
        outputs = self.network(observation)
        if self.space.kind == "box":
            return outputs
        if action_mask is not None:
            outputs = outputs.masked_fill(~action_mask, torch.finfo(outputs.dtype).min)
        return outputs.log_softmax(-1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """An action [..., N] (discrete, int64) or [..., N, A] (box) from `noise` [..., N, A]: uniform in (0, 1), or normal.

        Discrete: the Gumbel-max trick (Maddison et al. 2014), so that the draw is decided by the noise alone.
        """
        if self.space.kind == "discrete":
            return (parameters - torch.log(-torch.log(noise))).argmax(-1)
        return parameters + noise * self.log_std.exp()

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely action."""
        return parameters.argmax(-1) if self.space.kind == "discrete" else parameters

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """[..., N], of what `sample` gave."""
        if self.space.kind == "discrete":
            return parameters.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)
        z = (action - parameters) * (-self.log_std).exp()
        return (-0.5 * (z * z + math.log(2 * math.pi)) - self.log_std).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """[..., N], in nats."""
        if self.space.kind == "discrete":
            return -(parameters.exp() * parameters).sum(-1)
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(parameters.shape[:-1])


def draw_noise(space: ActionSpace, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise [*shape, A] for `Actor.sample`, float64."""
    if space.kind == "discrete":
        # neither 0 nor 1, also after rounding to float32: their Gumbel noise would be infinite and could beat a mask
        return np.clip(generator.random((*shape, space.n)), 2.0**-24, 1 - 2.0**-24)
    return generator.standard_normal((*shape, math.prod(space.shape)))


def to_env(space: ActionSpace, action: np.ndarray) -> np.ndarray:
    """Actions as the environment takes them: box actions clipped to [-1, 1] and stretched to the limits.

    A dimension that is bounded on one side only is clipped there, and not stretched.

    >>> space = ActionSpace(kind="box", shape=(1,), low=(0.0,), high=(4.0,))
    >>> to_env(space, np.array([[-2.0], [0.5]])).tolist()
    [[0.0], [3.0]]
    """
    if space.kind != "box":
        return action
    low, high = np.asarray(space.low or -np.inf), np.asarray(space.high or np.inf)
    bounded = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):
        stretched = low + (np.clip(action, -1, 1) + 1) * 0.5 * (high - low)
    action = np.where(bounded, stretched, np.clip(action, low, high))
    return action.reshape(*action.shape[:-1], *space.shape).astype(np.float32)


class FlatParameters:
    """Modules whose parameters, and their gradients, are views into one contiguous buffer each.

    One buffer is one message: gradients are exchanged, and versions are published, without gathering pieces. `slots` reserves
    numbers behind the gradient for sums that travel with it. Modules keep their order, so the first module's parameters are the
    first `sizes[0]` numbers.
    """

    def __init__(self, modules: list[nn.Module], *, device: torch.device | str, dtype: torch.dtype, slots: int = 0) -> None:
        for module in modules:
            module.to(device=device, dtype=dtype)
        self.sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
        total = sum(self.sizes)
        self.values = nn.Parameter(torch.empty(total, device=device, dtype=dtype))
        self.message = torch.zeros(total + slots, device=device, dtype=dtype)
        self.values.grad = self.message[:total]
        offset = 0
        for module in modules:
            for parameter in module.parameters():
                span = slice(offset, offset + parameter.numel())
                self.values.data[span] = parameter.data.flatten()
                parameter.data = self.values.data[span].view(parameter.shape)
                parameter.grad = self.message[span].view(parameter.shape)
                offset = span.stop
        self.sums = self.message[total:]


def load_flat(module: nn.Module, values: Tensor) -> None:
    """Copy a flat buffer into a module's parameters, in their order. Raises ValueError when the sizes differ."""
    expected = sum(p.numel() for p in module.parameters())
    if values.numel() != expected:
        raise ValueError(
            f"a flat buffer of {values.numel()} numbers for a module of {expected}; were other hidden sizes configured?"
        )
    offset = 0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(values[offset : offset + parameter.numel()].view(parameter.shape))
            offset += parameter.numel()
