"""Optimizers on one flat buffer: torch's own fused kernels, called directly.

`torch.optim` wraps the same kernels, but its first use imports torch's compiler, seconds that every learner would wait for. State lies
in flat buffers beside the parameters, so that a parameter shard can hold the optimizer of its slice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Which optimizer, and its numbers; plain data, so that it can be sent to a shard."""

    name: str = "adam"
    lr: float
    eps: float = 1e-5
    weight_decay: float = 0.0
    momentum: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Optimizer(Protocol):
    def step(self, values: Tensor, gradient: Tensor, share: float = 1.0) -> None:
        """Change `values` [P] in place by their gradient [P], with this share of the learning rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it goes on from: buffers [P], and counts []; the same tensors each time, not copies."""
        ...


class Adam:
    """Kingma & Ba 2015, as torch.optim.Adam(fused=True) computes it; with weight decay AdamW (Loshchilov & Hutter 2019)."""

    def __init__(self, like: Tensor, spec: OptimizerSpec, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """`like` gives size, type and device of what will be optimized."""
        self.spec, self.betas = spec, betas
        self.kernel = torch._fused_adamw_ if spec.name == "adamw" else torch._fused_adam_
        self.mean = torch.zeros_like(like, requires_grad=False)
        self.square = torch.zeros_like(like, requires_grad=False)
        self.count = torch.zeros((), dtype=torch.float32, device=like.device)

    @torch.no_grad()
    def step(self, values: Tensor, gradient: Tensor, share: float = 1.0) -> None:
        self.count += 1
        self.kernel(
            [values], [gradient], [self.mean], [self.square], [], [self.count],
            lr=self.spec.lr * share, beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.spec.weight_decay, eps=self.spec.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "count": self.count}


class SGD:
    """Stochastic gradient descent, with momentum where it is asked for (as torch.optim.SGD computes it)."""

    def __init__(self, like: Tensor, spec: OptimizerSpec) -> None:
        self.spec = spec
        self.velocity = torch.zeros_like(like, requires_grad=False) if spec.momentum else None

    @torch.no_grad()
    def step(self, values: Tensor, gradient: Tensor, share: float = 1.0) -> None:
        if self.spec.weight_decay:
            gradient = gradient.add(values, alpha=self.spec.weight_decay)
        if self.velocity is not None:
            gradient = self.velocity.mul_(self.spec.momentum).add_(gradient)
        values.add_(gradient, alpha=-self.spec.lr * share)

    def state(self) -> dict[str, Tensor]:
        return {} if self.velocity is None else {"velocity": self.velocity}


OPTIMIZERS = {"adam": Adam, "adamw": Adam, "sgd": SGD}


def build(spec: OptimizerSpec, like: Tensor) -> Optimizer:
    return OPTIMIZERS[spec.name](like, spec)


def load_state(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    """Copy a state into an optimizer's buffers."""
    for name, tensor in optimizer.state().items():
        tensor.copy_(state[name])
