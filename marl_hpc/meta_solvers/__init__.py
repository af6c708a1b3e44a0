"""Meta-solvers: who plays whom, from the payoffs of a population's strategies against one another.

A meta-solver is a plain function `solver(payoffs, **options) -> MetaStrategy` of payoffs [players, |S_1|, …, |S_n|]; see
`normal_form` for what it returns. `META_SOLVERS` maps names to functions, and a name with a colon is imported. Pure NumPy and SciPy,
which is imported inside the functions that need it: may import config only.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable

from marl_hpc.config import ConfigError
from marl_hpc.meta_solvers.normal_form import MetaStrategy, cce_gap, ce_gap, expected_payoffs, nash_gap

__all__ = ["META_SOLVERS", "MetaSolver", "MetaStrategy", "cce_gap", "ce_gap", "expected_payoffs", "nash_gap", "resolve"]

MetaSolver = Callable[..., MetaStrategy]
META_SOLVERS: dict[str, str | MetaSolver] = {
    "nash": "marl_hpc.meta_solvers.zero_sum:nash",
    "rectified_nash": "marl_hpc.meta_solvers.zero_sum:rectified_nash",
    "uniform": "marl_hpc.meta_solvers.dynamics:uniform",
    "fictitious_play": "marl_hpc.meta_solvers.dynamics:fictitious_play",
    "projected_replicator_dynamics": "marl_hpc.meta_solvers.dynamics:projected_replicator_dynamics",
    "regret_matching": "marl_hpc.meta_solvers.dynamics:regret_matching",
    "alpha_rank": "marl_hpc.meta_solvers.alpha_rank:alpha_rank",
    "correlated_equilibrium": "marl_hpc.meta_solvers.correlated:correlated_equilibrium",
    "coarse_correlated_equilibrium": "marl_hpc.meta_solvers.correlated:coarse_correlated_equilibrium",
}


def resolve(name: str) -> MetaSolver:
    """The function behind a meta-solver's name. Raises ConfigError with the nearest names.

    >>> resolve("uniform")([[[0.0, 1.0]], [[1.0, 0.0]]]).mixtures[1].tolist()
    [0.5, 0.5]
    """
    target = META_SOLVERS.get(name, name if ":" in name else None)
    if target is None:
        near = difflib.get_close_matches(name, META_SOLVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown meta-solver {name!r}{hint} known: {', '.join(sorted(META_SOLVERS))}; or my_module:function")
    if callable(target):
        return target
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"meta-solver {name!r} could not be imported from {target!r}: {error}") from error
