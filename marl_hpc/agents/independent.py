"""Independent learning: a group optimizes alone. Its only exchange is the sum of gradients among replicas of itself.

To the others it is one-way: it publishes versions and pulls its own group's data, and reads nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_hpc.agents.interface import AgentInterface


class IndependentAgent(AgentInterface):
    """Tan 1993's independent learners; with parameter sharing where the group has several agents."""

    def learn(
        self, batch: dict[str, Tensor], columns: Tensor, total: int, seed: int, alive: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        batch = {name: x.to(self.device).contiguous() for name, x in batch.items()}
        if bad := describe_non_finite(batch):
            raise FloatingPointError(f"{bad} of group {self.group.name!r} at gradient step {self.updates}; look at the environment")
        history = []
        for minibatch in self.algorithm.minibatches(batch, columns, total, seed):
            history.append(self.gradient_step(minibatch))
            alive()
        return self.algorithm.summarize(torch.stack(history))

    def gradient_step(self, minibatch: dict[str, Tensor]) -> Tensor:
        """Loss, backward, sum over replicas, clip, step. Returns the minibatch's sums over all replicas."""
        parameters = self.parameters
        parameters.message.zero_()
        loss, sums = self.algorithm.loss(minibatch)
        loss.backward()
        parameters.sums.copy_(torch.stack([sums[name] for name in self.algorithm.sums]))
        self.exchange.sum_(parameters.message)  # gradient and sums in one message
        gradient = parameters.values.grad
        gradient /= parameters.sums[self.algorithm.sums.index("count")].clamp_min(1)
        norm = gradient.norm()  # clipped after the reduction: every replica scales alike
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient of group {self.group.name!r} is {float(norm)} at gradient step {self.updates}: "
                f"{describe_non_finite(minibatch) or 'its batch is finite'}; lower algorithm.lr or algorithm.max_grad_norm"
            )
        gradient *= (self.max_grad_norm / (norm + 1e-6)).clamp_max(1)
        self.optimizer.step()
        self.updates += 1
        return parameters.sums.clone()


def describe_non_finite(batch: dict[str, Tensor]) -> str:
    """Which fields of a batch [..., N, …] hold NaN or infinity, or nothing."""
    bad = [name for name, x in batch.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    return f"NaN or infinity in {', '.join(bad)}" if bad else ""
