"""Advantages and value statistics: pure math on tensors.

T time, B environment copies, N agents. `next_values[t]` belongs to the observation that the action of step t led to, so nothing
here ever looks across an episode's end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float,
    active: Tensor | None = None, continues: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(generalized advantage estimates, which of them are known), both [T, B, N]; estimates in reward units.

    Arguments are [T, B, N]. An agent's transitions run over its own turns, the steps in which it is `active` (all, where not given):
    its reward is the sum from one turn up to the next, an ending by another's move included, and it bootstraps from `values` at its
    next turn. From `next_values` where its episode is truncated (Pardo et al. 2018) or the fragment ends; a terminated step
    bootstraps from nothing. `continues` [B, N]: whether it acts right after the fragment. Where it doesn't, its last turn is still
    open: the estimate of that one isn't known, and earlier ones bootstrap from its value. Source: Schulman et al. 2016, eq. 16.
    Raises ValueError when the shapes differ.

    >>> one, zero = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    >>> gae(one, zero, zero, zero > 0, zero > 0, gamma=1.0, lam=1.0)[0].flatten().tolist()
    [2.0, 1.0]
    """
    shapes = {name: tuple(x.shape) for name, x in
              (("rewards", rewards), ("values", values), ("next_values", next_values), ("terminated", terminated), ("done", done))}  # fmt: skip
    if len(set(shapes.values())) > 1:
        raise ValueError(f"gae needs arguments of one shape [T, B, N]; got {shapes}")
    active = torch.ones_like(done) if active is None else active
    known = torch.ones_like(done[0]) if continues is None else continues | done[-1]
    advantages, all_known = torch.zeros_like(values), torch.zeros_like(active)
    # what comes after the turn that is looked at: value at the next turn, rewards on the way there, the advantage from there on
    value, reward, later = next_values[-1], torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for t in reversed(range(len(rewards))):
        value = torch.where(done[t], next_values[t].masked_fill(terminated[t], 0), value)
        reward = reward.masked_fill(done[t], 0) + rewards[t]
        later = later.masked_fill(done[t], 0)
        known = known | done[t]
        estimate = reward + gamma * value - values[t] + gamma * lam * later
        all_known[t] = active[t] & known
        advantages[t] = estimate.masked_fill(~all_known[t], 0)
        later = torch.where(active[t], advantages[t], later)
        value = torch.where(active[t], values[t], value)
        reward = reward.masked_fill(active[t], 0)
        known = known | active[t]
    return advantages, all_known


class ValueNormalizer:
    """Running mean and standard deviation of value targets, one statistic per critic.

    An exponential moving average with bias correction, as in MAPPO's value normalization (Yu et al. 2022, section 5.1): the critic
    learns targets of mean 0 and deviation 1, its outputs are brought back to reward units before they are used. `decay` is per
    update (one per batch). Moments are kept in float64.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.moments = torch.zeros(3, dtype=torch.float64)  # weight, weighted mean, weighted mean of squares
        self.latest: Tensor | None = None  # (count, mean, sum of squared distances from it) of the last batch

    def update(self, count_sum_squares: Tensor) -> None:
        """Take in one batch by its (count, sum, sum of squares), already summed over replicas. Empty batches change nothing."""
        count, total, squares = count_sum_squares.to(self.moments)
        if count > 0:
            mean = total / count
            self.latest = torch.stack([count, mean, (squares - count * mean * mean).clamp_min(0)])
            batch = torch.stack([torch.ones_like(count), total / count, squares / count])
            self.moments = self.decay * self.moments + (1 - self.decay) * batch

    def merge(self, count_mean_squares: Tensor) -> None:
        """`update` from (count, mean, sum of squared distances from it), as batches of different learners are sent."""
        count, mean, spread = count_mean_squares.to(self.moments)
        self.update(torch.stack([count, count * mean, spread + count * mean * mean]))

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
