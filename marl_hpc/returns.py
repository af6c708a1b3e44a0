"""Advantages and value statistics: pure math on tensors.

T time, B environment copies, N agents. `next_values[t]` belongs to the observation that the action of step t led to, so nothing
here ever looks across an episode's end.
"""

from __future__ import annotations

from collections.abc import Callable

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
    advantages, _, known = over_turns(
        "gae", rewards, values, next_values, terminated, done, gamma=gamma, lam=lam, active=active, continues=continues
    )
    return advantages, known


def vtrace(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, ratios: Tensor, *, gamma: float,
    lam: float, rho_bar: float = 1.0, c_bar: float = 1.0, active: Tensor | None = None, continues: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(value targets, advantages, which of them are known), all [T, B, N], of a policy π from data of another one, μ; in reward units.

    `ratios` [T, B, N] are π(a)/μ(a) of the actions that were taken; those of steps that aren't known count nowhere, NaN included. All
    else is as in `gae`, and t counts an agent's own turns here. With ρ_t = min(rho_bar, ratio_t), c_t = lam min(c_bar, ratio_t) and
    δ_t = r_t + γ V_{t+1} - V_t, the targets are

        vs_t = V_t + Σ_{k ≥ t} γ^(k-t) (Π_{t ≤ i < k} c_i) ρ_k δ_k

    (Espeholt et al. 2018, eq. 1 and remark 2); a turn that isn't known has vs_t = V_t. They are at rest at the value of a policy
    between μ and π, the paper's eq. 3, that is π's own where rho_bar is infinite; the paper assumes rho_bar ≥ c_bar.

    Advantages are r_t + γ (lam vs_{t+1} + (1 - lam) V_{t+1}) - V_t: with lam=1 those of section 4.2, and mixed as in rlax's
    `vtrace_td_error_and_advantage`, so that they are `gae`'s where all ratios are 1. The factor ρ_t of the policy gradient is left to
    whoever normalizes them before. Raises ValueError when the shapes differ.

    >>> one, zero = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    >>> targets, advantages, _ = vtrace(one, zero, zero, zero > 0, zero > 0, 0.5 * one, gamma=1.0, lam=1.0)
    >>> targets.flatten().tolist(), advantages.flatten().tolist()
    ([0.75, 0.5], [1.5, 1.0])
    """
    advantages, corrections, known = over_turns(
        "vtrace", rewards, values, next_values, terminated, done, gamma=gamma, lam=lam, active=active, continues=continues,
        ratios=ratios, bounds=(rho_bar, c_bar),
    )  # fmt: skip
    return values + corrections, advantages, known


def over_turns(
    caller: str, rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float,
    active: Tensor | None, continues: Tensor | None, ratios: Tensor | None = None, bounds: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(advantages, corrections of values, which of them are known), [T, B, N]: the recursion of `gae` and of `vtrace`, which say more.

    Without `ratios` both are the same. `bounds` are (rho_bar, c_bar).
    """
    given = {"rewards": rewards, "values": values, "next_values": next_values, "terminated": terminated, "done": done}
    shapes = {name: tuple(x.shape) for name, x in (given if ratios is None else given | {"ratios": ratios}).items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{caller} needs arguments of one shape [T, B, N]; got {shapes}")
    active = torch.ones_like(done) if active is None else active
    known = torch.ones_like(done[0]) if continues is None else continues | done[-1]
    advantages, all_known = torch.zeros_like(values), torch.zeros_like(active)
    corrections = advantages if ratios is None else torch.zeros_like(values)
    # what comes after the turn that is looked at: value at the next turn, rewards on the way there, the correction from there on
    value, reward, later = next_values[-1], torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for t in reversed(range(len(rewards))):
        value = torch.where(done[t], next_values[t].masked_fill(terminated[t], 0), value)
        reward = reward.masked_fill(done[t], 0) + rewards[t]
        later = later.masked_fill(done[t], 0)
        known = known | done[t]
        all_known[t] = active[t] & known
        difference, ahead = reward + gamma * value - values[t], gamma * lam * later
        advantages[t] = (difference + ahead).masked_fill(~all_known[t], 0)
        if ratios is not None:
            rho, c = (ratios[t].clamp_max(bound) for bound in bounds)
            corrections[t] = (rho * difference + c * ahead).masked_fill(~all_known[t], 0)
        later = torch.where(active[t], corrections[t], later)
        value = torch.where(active[t], values[t], value)
        reward = reward.masked_fill(active[t], 0)
        known = known | active[t]
    return advantages, corrections, all_known


class ValueNormalizer:
    """Running mean and standard deviation of value targets, one statistic per critic.

    An exponential moving average with bias correction, as in MAPPO's value normalization (Yu et al. 2022, section 5.1): the critic
    learns targets of mean 0 and deviation 1, its outputs are brought back to reward units before they are used. `decay` is per
    update (one per batch). Moments are kept in float64. With `agents` each of N agents has a critic and statistics of its own, and
    values are [..., N].
    """

    def __init__(self, decay: float = 0.99, agents: int | None = None) -> None:
        self.decay = decay
        shape = (3,) if agents is None else (3, agents)
        self.moments = torch.zeros(shape, dtype=torch.float64)  # weight, weighted mean, weighted mean of squares
        self.latest: Tensor | None = None  # (count, mean, sum of squared distances from it) of the last batch
        self.mixed: Callable[[Tensor], Tensor] | None = None  # the moments after each update, from them and those of neighbors

    def update(self, count_sum_squares: Tensor) -> None:
        """Take in one batch by its (count, sum, sum of squares), already summed over replicas. Empty batches change nothing."""
        count, total, squares = count_sum_squares.to(self.moments)
        some = count.clamp_min(1)
        mean = total / some
        if (count > 0).any():
            self.latest = torch.stack([count, mean, (squares - count * mean * mean).clamp_min(0)])
        batch = torch.stack([torch.ones_like(count), mean, squares / some])
        self.moments = torch.where(count > 0, self.decay * self.moments + (1 - self.decay) * batch, self.moments)
        if self.mixed is not None:
            self.moments = self.mixed(self.moments)

    def merge(self, count_mean_squares: Tensor) -> None:
        """`update` from (count, mean, sum of squared distances from it), as batches of different learners are sent."""
        count, mean, spread = count_mean_squares.to(self.moments)
        self.update(torch.stack([count, count * mean, spread + count * mean * mean]))

    @property
    def mean_std(self) -> tuple[Tensor, Tensor]:
        """[] or [N] each; 0 and 1 before the first batch."""
        weight, mean, squares = self.moments
        known = weight > 0
        mean, squares = mean / weight.where(known, 1.0), squares / weight.where(known, 1.0)
        return mean, (squares - mean * mean).clamp_min(1e-8).sqrt().where(known, 1.0)

    def normalize(self, values: Tensor) -> Tensor:
        mean, std = (x.to(values) for x in self.mean_std)
        return (values - mean) / std

    def denormalize(self, values: Tensor) -> Tensor:
        mean, std = (x.to(values) for x in self.mean_std)
        return values * std + mean
