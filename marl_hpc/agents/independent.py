"""Independent learning: a group optimizes alone. Its only exchange is the sum of gradients among replicas of itself.

To the others it is one-way: it publishes versions and pulls its own group's data, and reads nobody else's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_hpc.agents.interface import AgentInterface


class IndependentAgent(AgentInterface):
    """Tan 1993's independent learners; with parameter sharing where the group has several agents."""

    def learn(self, batch: dict[str, Tensor], columns: Tensor, total: int, seed: int) -> dict[str, float]:
        batch = {name: x.to(self.device).contiguous() for name, x in batch.items()}
        history = []
        for minibatch in self.algorithm.minibatches(batch, columns, total, seed):
            history.append(self.gradient_step(minibatch))
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
                f"{describe_non_finite(minibatch)}; lower algorithm.lr or algorithm.max_grad_norm, or look at the environment's rewards"
            )
        gradient *= (self.max_grad_norm / (norm + 1e-6)).clamp_max(1)
        self.optimizer.step()
        self.updates += 1
        return parameters.sums.clone()


def describe_non_finite(minibatch: dict[str, Tensor]) -> str:
    """Which fields of a minibatch hold NaN or infinity."""
    bad = [name for name, x in minibatch.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    return f"not finite in the batch: {', '.join(bad)}" if bad else "the batch itself is finite"
