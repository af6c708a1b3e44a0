"""Networks, and the flat buffer that their parameters are on the wire.

T time, B copies, N agents of a group that share a network, D observation size, H numbers of memory. By default each agent sees its
index as a one-hot beside its observation. Pure torch: no files, no ranks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_hpc.types import ActionSpace, GroupSpec

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": nn.functional.elu}


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


class ImageEncoder(nn.Module):
    """Images [..., height, width, channels] (or channels first) of 0 … 255 to [..., size] features: three small convolutions."""

    def __init__(self, shape: tuple[int, ...], activation: str, generator: torch.Generator) -> None:
        super().__init__()
        self.last = shape[-1] <= shape[0]  # channels last
        channels, *extent = (shape[-1], *shape[:2]) if self.last else shape
        layers: list[nn.Module] = []
        for outputs in (16, 32, 32):
            layer = nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
            nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            layers += [layer, ACTIVATIONS[activation]()]
            channels, extent = outputs, [-(-n // 2) for n in extent]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.size = channels * math.prod(extent)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(0, -4) / 255
        return self.layers(x.movedim(-1, -3) if self.last else x).view(*image.shape[:-3], self.size)


class AgentNetwork(nn.Module):
    """Observations [..., N, *shape] of a group to outputs [..., N, A], one set of weights for all agents of the group.

    `network` holds hidden, activation, agent_id and gru: with gru=H > 0 a GRU of H units follows the hidden layers, and agents have a
    memory [..., N, H]. `extra` numbers [..., E], the same for all agents, or [..., N, E] may stand beside each observation: the state, for critics.
    """

    def __init__(
        self, group: GroupSpec, outputs: int, network: Mapping[str, Any], final_gain: float, seed: int, extra: int = 0
    ) -> None:
        super().__init__()
        self.agents = len(group.agents)
        self.dimensions = len(group.observation_shape)
        self.agent_id = bool(network["agent_id"]) and self.agents > 1
        self.units = int(network.get("gru", 0))
        self.burn_in = int(network.get("burn_in", 0))
        generator = torch.Generator().manual_seed(seed)
        hidden, activation = list(network["hidden"]), network["activation"]
        self.image = ImageEncoder(group.observation_shape, activation, generator) if group.image else None
        observed = self.image.size if self.image else math.prod(group.observation_shape)
        size = observed + (self.agents if self.agent_id else 0) + extra
        if self.units:
            self.body = nn.Sequential(mlp([size, *hidden], activation, math.sqrt(2), generator), ACTIVATIONS[activation]())
            self.cell = nn.GRUCell(hidden[-1], self.units)
            for name, parameter in self.cell.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.orthogonal_(parameter, generator=generator)
            self.head = mlp([self.units, outputs], activation, final_gain, generator)
        else:
            self.body = mlp([size, *hidden, outputs], activation, final_gain, generator)

    def forward(self, observation: Tensor, extra: Tensor | None = None) -> Tensor:
        """What the network says without a memory; with one, the features that go into it."""
        return self.body(self.inputs(observation, extra))

    def inputs(self, observation: Tensor, extra: Tensor | None) -> Tensor:
        if self.image is not None:
            x = self.image(observation)
        elif self.dimensions == 0:
            x = observation.unsqueeze(-1)
        else:
            x = observation.flatten(-self.dimensions) if self.dimensions != 1 else observation
        parts = [x]
        if self.agent_id:
            identity = torch.eye(self.agents, dtype=x.dtype, device=x.device)
            parts.append(identity.expand(*x.shape[:-2], self.agents, self.agents))
        if extra is not None:
            extra = extra.unsqueeze(-2) if extra.dim() < x.dim() else extra
            parts.append(extra.expand(*x.shape[:-1], extra.shape[-1]))
        return torch.cat(parts, -1) if len(parts) > 1 else x

    def step(self, observation: Tensor, memory: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: (outputs [..., N, A], memory [..., N, H]) from observations and the memory before."""
        x = self(observation, extra)
        if not self.units:
            return x, memory
        memory = self.cell(x.flatten(0, -2), memory.flatten(0, -2)).view(*x.shape[:-1], self.units)
        return self.head(memory), memory

    def unroll(
        self, observation: Tensor, memory: Tensor, first: Tensor, active: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, N, A] and the memory after each step [T, B, N, H], from the memory [B, N, H] before the first.

        Memory starts anew where `first` [T, B], and stays as it is for agents that aren't `active` [T, B, N]. No gradients flow back
        into the first `burn_in` steps, which only warm it up (Kapturowski et al. 2019).
        """
        x = self(observation, extra)
        if not self.units:
            return x, x.new_zeros(*x.shape[:-1], 0)
        memories = []
        for t, seen in enumerate(x.unbind()):  # whose gradient is put together once; x[t] would have one of x's size in each step
            memory = memory.masked_fill(first[t, :, None, None], 0)
            after = self.cell(seen.flatten(0, 1), memory.flatten(0, 1)).view_as(memory)
            memory = torch.where(active[t, ..., None], after, memory)
            if t < self.burn_in:
                memory = memory.detach()
            memories.append(memory)
        stacked = torch.stack(memories)
        return self.head(stacked), stacked


class StackedNetwork(nn.Module):
    """What `AgentNetwork` does, with a network of its own for each agent: one parameter, `rows` [N, P], agent i's network in row i.

    All agents' layers are one batched matrix product each, whatever N. Agents start equal, so that their average means something from
    the beginning. In a row weights stand layer by layer, a layer's weight [inputs, outputs] before its bias; with a GRU its
    gates (reset, update, new) side by side. Without hidden layers and a GRU it is linear. `free` numbers of each agent come with its
    outputs as they are: deviations.
    """

    def __init__(
        self,
        group: GroupSpec,
        outputs: int,
        network: Mapping[str, Any],
        final_gain: float,
        seed: int,
        extra: int = 0,
        free: int = 0,
        *,
        observed: int | None = None,
        remembered: int | None = None,
        beside: Sequence[tuple[int, int]] = (),
    ) -> None:
        """For networks that build on this one: `observed` numbers go into the hidden layers instead of an agent's observation,
        `remembered` into its memory instead of their output, and layers of the sizes `beside` stand in a row before the last one."""
        super().__init__()
        self.agents, self.dimensions = len(group.agents), len(group.observation_shape)
        self.units, self.burn_in = int(network.get("gru", 0)), int(network.get("burn_in", 0))
        self.activation, self.free = FUNCTIONS[network["activation"]], free
        generator = torch.Generator().manual_seed(seed)
        hidden = list(network["hidden"])
        sizes = [(math.prod(group.observation_shape) if observed is None else observed) + extra, *hidden]
        layers = [_layer(a, b, math.sqrt(2), generator) for a, b in pairwise(sizes)]
        self.inner = len(layers)
        if self.units:
            inputs = sizes[-1] if remembered is None else remembered
            layers += [_layer(size, 3 * self.units, 1.0, generator) for size in (inputs, self.units)]
        layers += [_layer(a, b, math.sqrt(2), generator) for a, b in beside]
        layers.append(_layer(self.units or sizes[-1], outputs, final_gain, generator))
        self.shapes = [part.shape for layer in layers for part in layer] + [torch.Size([1, free])] * bool(free)
        row = torch.cat([part.flatten() for layer in layers for part in layer] + [torch.zeros(free)])
        self.rows = nn.Parameter(row.expand(self.agents, -1).clone())

    def forward(self, observation: Tensor, extra: Tensor | None = None) -> Tensor:
        """[..., N, D] to [..., N, A] without a memory; with one, the features that go into it."""
        layers = self.layers()
        x = self.first(self.inputs(observation, extra), layers)
        return self.outward(x if self.units else self.last(x, layers), observation)

    def step(self, observation: Tensor, memory: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `AgentNetwork.step`."""
        layers = self.layers()
        x = self.first(self.inputs(observation, extra), layers)
        if not self.units:
            return self.outward(self.last(x, layers), observation), memory
        after = self.cell(x, inward(memory), layers)
        return self.outward(self.last(after, layers), observation), self.outward(after, observation)

    def unroll(
        self, observation: Tensor, memory: Tensor, first: Tensor, active: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `AgentNetwork.unroll`."""
        layers = self.layers()
        x = self.first(self.inputs(observation, extra), layers)
        if not self.units:
            out = self.outward(self.last(x, layers), observation)
            return out, out.new_zeros(*out.shape[:-1], 0)
        steps = x.view(self.agents, len(first), -1, x.shape[-1])
        present, memories = inward(memory), []
        for t, seen in enumerate(steps.unbind(1)):
            present = present.masked_fill(first[t, None, :, None], 0)
            present = torch.where(active[t].T.unsqueeze(-1), self.cell(seen, present, layers), present)
            if t < self.burn_in:
                present = present.detach()
            memories.append(present)
        stacked = torch.stack(memories, 1).flatten(1, 2)
        return self.outward(self.last(stacked, layers), observation), self.outward(stacked, observation)

    def layers(self) -> list[Tensor]:
        """Weights [N, inputs, outputs] and biases [N, 1, outputs]: views of the rows."""
        parts = self.rows.split([shape.numel() for shape in self.shapes], 1)
        return [part.view(self.agents, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def inputs(self, observation: Tensor, extra: Tensor | None) -> Tensor:
        """[N, samples, D]: agents first, as their weights."""
        x = observation.flatten(-self.dimensions) if self.dimensions > 1 else observation
        x = x.unsqueeze(-1) if self.dimensions == 0 else x
        if extra is not None:
            extra = extra.unsqueeze(-2) if extra.dim() < x.dim() else extra
            x = torch.cat([x, extra.expand(*x.shape[:-1], extra.shape[-1])], -1)
        return inward(x)

    def first(self, x: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """The hidden layers."""
        for i in range(self.inner):
            x = self.activation(torch.baddbmm(layers[2 * i + 1], x, layers[2 * i]))
        return x

    def last(self, x: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """The output layer, and free numbers behind it."""
        head = layers[-3:-1] if self.free else layers[-2:]
        x = torch.baddbmm(head[1], x, head[0])
        return torch.cat([x, layers[-1].expand(-1, x.shape[1], -1)], -1) if self.free else x

    def cell(self, x: Tensor, memory: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """A GRU's step (Cho et al. 2014), as torch.nn.GRUCell: [N, samples, H]."""
        i = 2 * self.inner
        given, kept = torch.baddbmm(layers[i + 1], x, layers[i]), torch.baddbmm(layers[i + 3], memory, layers[i + 2])
        (r, z, n), (hr, hz, hn) = given.chunk(3, -1), kept.chunk(3, -1)
        z = torch.sigmoid(z + hz)
        return (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * memory

    def outward(self, x: Tensor, like: Tensor) -> Tensor:
        """[N, samples, F] to [..., N, F]."""
        lead = like.shape[: like.dim() - self.dimensions - 1]
        return x.movedim(0, -2).reshape(*lead, self.agents, x.shape[-1])


def _layer(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An orthogonal weight [inputs, outputs] and a bias [1, outputs] of zeros."""
    weight = nn.init.orthogonal_(torch.empty(outputs, inputs), gain, generator=generator)
    return weight.T.contiguous(), torch.zeros(1, outputs)


def inward(x: Tensor) -> Tensor:
    """[..., N, F] to [N, samples, F]."""
    return x.flatten(0, -3).transpose(0, 1) if x.dim() > 2 else x.unsqueeze(1)


def network_of(
    group: GroupSpec, outputs: int, network: Mapping[str, Any], final_gain: float, seed: int, extra: int = 0, free: int = 0
) -> AgentNetwork | StackedNetwork:
    """One network for all agents of a group, or one for each where `network` says `stacked`."""
    if network.get("stacked", False):
        return StackedNetwork(group, outputs, network, final_gain, seed, extra, free)
    return AgentNetwork(group, outputs, network, final_gain, seed, extra)


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


class Targets:
    """Copies of modules that follow them at a distance."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.copies = [copy.deepcopy(module) for module in modules]
        self.followed: list[Tensor] = [p for module in modules for p in module.parameters()]
        self.following: list[Tensor] = [p for module in self.copies for p in module.parameters()]
        for p in self.following:
            p.requires_grad_(False)
            p.grad = None

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """Move by a share tau of the way; 1 copies."""
        torch._foreach_lerp_(self.following, self.followed, tau)

    def state(self) -> Tensor:
        """All their parameters in one buffer."""
        return torch.cat([p.flatten() for p in self.following])

    @torch.no_grad()
    def load_state(self, values: Tensor) -> None:
        for p, part in zip(self.following, values.split([p.numel() for p in self.following]), strict=True):
            p.copy_(part.view_as(p))


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
