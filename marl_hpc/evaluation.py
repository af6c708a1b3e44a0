"""Statistics of evaluations: robust means and bootstrap intervals (Agarwal et al. 2021, "Deep RL at the edge of the statistical
precipice"). Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def interquartile_mean(returns: Any) -> Any:
    """Mean of the middle half along the last axis; where a quarter isn't a whole number, the edge values count by the rest.

    >>> float(interquartile_mean([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    ordered = np.sort(np.asarray(returns, float), axis=-1)
    n = ordered.shape[-1]
    position = np.arange(n)
    # weight of a value: how much of [i, i+1] lies inside [n/4, 3n/4]
    weight = np.clip(np.minimum(position + 1, 0.75 * n) - np.maximum(position, 0.25 * n), 0, 1)
    return (ordered * weight).sum(-1) / weight.sum()


def bootstrap_interval(
    returns: Any, statistic: Callable[..., Any] = interquartile_mean, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`, deterministic for a seed. `statistic` works along the last axis."""
    values = _checked(returns)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(statistic(values[draws]), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def probability_of_improvement(
    ours: Any, theirs: Any, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How likely a run of `ours` scores above one of `theirs`, and the percentile bootstrap interval over runs; a tie counts half.

    >>> probability_of_improvement([3.0, 4.0], [1.0, 2.0])
    (1.0, 1.0, 1.0)
    """
    x, y = _checked(ours), _checked(theirs)
    wins = (np.sign(x[:, None] - y[None]) + 1) / 2  # [ours, theirs]
    random = np.random.default_rng(seed)
    rows, columns = (random.integers(0, len(v), (resamples, len(v))) for v in (x, y))
    drawn = wins[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(wins.mean()), float(low), float(high)


def summarize(returns: Any, *, scale: str) -> dict[str, Any]:
    """What summary.json says of an evaluation. `interval` is the 95 % bootstrap interval of the IQM, `mean_interval` of the mean;
    `scale` says what a return sums or averages over. Raises ValueError when there is no return or one isn't finite."""
    values = _checked(returns)
    return {
        "return_mean": float(values.mean()),
        "return_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "iqm": float(interquartile_mean(values)),
        "interval": list(bootstrap_interval(values)),
        "mean_interval": list(bootstrap_interval(values, lambda x: np.mean(x, axis=-1))),
        "episodes": len(values),
        "return_scale": scale,
    }


def _checked(returns: Any) -> np.ndarray:
    values = np.asarray(returns, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected the finite returns of at least one episode, [episodes]; got shape {values.shape}: {values[:5]}")
    return values
