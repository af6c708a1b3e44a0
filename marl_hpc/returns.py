"""Advantages and value statistics: pure math on tensors.

T time, B environment copies, N agents. `next_values[t]` belongs to the observation that the action of step t led to, so nothing
here ever looks across an episode's end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Generalized advantage estimates.

    All arguments [T, B, N]; returns [T, B, N], in reward units. A truncated step bootstraps from `next_values`, a terminated one
    doesn't (Pardo et al. 2018); the recursion is cut where `done` (terminated or truncated). The last step of the fragment
    bootstraps like a truncated one. Source: Schulman et al. 2016, eq. 16. Raises ValueError when the shapes differ.

    >>> one, zero = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    >>> gae(one, zero, zero, zero, zero, gamma=1.0, lam=1.0).flatten().tolist()
    [2.0, 1.0]
    """
    shapes = {name: tuple(x.shape) for name, x in
              (("rewards", rewards), ("values", values), ("next_values", next_values), ("terminated", terminated), ("done", done))}  # fmt: skip
    if len(set(shapes.values())) > 1:
        raise ValueError(f"gae needs arguments of one shape [T, B, N]; got {shapes}")
    deltas = rewards + gamma * next_values * (1 - terminated.to(rewards.dtype)) - values
    decay = gamma * lam * (1 - done.to(rewards.dtype))
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


class ValueNormalizer:
    """Running mean and standard deviation of value targets, one statistic per critic.

    An exponential moving average with bias correction, as in MAPPO's value normalization (Yu et al. 2022, section 5.1): the critic
    learns targets of mean 0 and deviation 1, its outputs are brought back to reward units before they are used. `decay` is per
    update (one per batch). Moments are kept in float64.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.moments = torch.zeros(3, dtype=torch.float64)  # weight, weighted mean, weighted mean of squares

    def update(self, count_sum_squares: Tensor) -> None:
        """Take in one batch by its (count, sum, sum of squares), already summed over replicas. Empty batches change nothing."""
        count, total, squares = count_sum_squares.to(self.moments)
        if count > 0:
            batch = torch.stack([torch.ones_like(count), total / count, squares / count])
            self.moments = self.decay * self.moments + (1 - self.decay) * batch

    @property
    def mean_std(self) -> tuple[float, float]:
        weight, mean, squares = self.moments.tolist()
        if weight == 0:
            return 0.0, 1.0
        mean, squares = mean / weight, squares / weight
        return mean, max(squares - mean * mean, 1e-8) ** 0.5

    def normalize(self, values: Tensor) -> Tensor:
        mean, std = self.mean_std
        return (values - mean) / std

    def denormalize(self, values: Tensor) -> Tensor:
        mean, std = self.mean_std
        return values * std + mean
