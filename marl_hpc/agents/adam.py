"""Adam on one flat buffer: torch's own fused kernel, called directly.

`torch.optim` wraps the same kernel, but its first use imports torch's compiler, seconds that every learner would wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """Kingma & Ba 2015, as torch.optim.Adam(fused=True) computes it; `values.grad` is read in place."""

    def __init__(
        self, values: Tensor, *, lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999), part: slice = slice(None)
    ) -> None:
        """`part` of a flat buffer `values`; the rest isn't touched."""
        self.buffer, self.part, self.lr, self.eps, self.betas = values, part, lr, eps, betas
        values = values.detach()[part]
        self.values = values
        self.mean = torch.zeros_like(values, requires_grad=False)
        self.square = torch.zeros_like(values, requires_grad=False)
        self.count = torch.zeros((), dtype=torch.float32, device=values.device)

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        assert self.buffer.grad is not None, "FlatParameters gives its buffer a gradient for good"
        gradient = self.buffer.grad[self.part]
        torch._fused_adam_(
            [self.values], [gradient], [self.mean], [self.square], [], [self.count],
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "count": self.count}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
