"""Populations of policies: who is in them, what they get from one another, and how they grow.

`population` keeps frozen policies and where they come from; `payoff_table` what they return against one another, simulated by workers
that know `cells`, or computed by `exact`. `psro` and `anytime` grow populations on compiled games, `evaluation` rates and exports them,
`ranking` writes down all ratings. All of it is plain NumPy that knows no ranks. May import games, meta-solvers, keyed randomness, types
and config.
"""

from marl_hpc.populations.anytime import Restricted, anytime_psro, least_exploitable
from marl_hpc.populations.cells import Lease, Sampling, episode_seeds, profiles
from marl_hpc.populations.evaluation import CrossPlay, Rated, alpha_rank_ranking, cross_play, elo_ratings, export_mixture
from marl_hpc.populations.exact import ExactCells, best_response_to_joint, exact_cells
from marl_hpc.populations.payoff_table import Entry, PayoffTable
from marl_hpc.populations.population import Member, MemoryValues, PolicyId, PolicyPopulation, Values, content_hash
from marl_hpc.populations.psro import Iteration, fictitious_self_play, latest, psro, self_play, start_policy
from marl_hpc.populations.ranking import ranking

__all__ = [
    "CrossPlay", "Entry", "ExactCells", "Iteration", "Lease", "Member", "MemoryValues", "PayoffTable", "PolicyId",
    "PolicyPopulation", "Rated", "Restricted", "Sampling", "Values", "alpha_rank_ranking", "anytime_psro", "best_response_to_joint",
    "content_hash", "cross_play", "elo_ratings", "episode_seeds", "exact_cells", "export_mixture", "fictitious_self_play", "latest",
    "least_exploitable", "profiles", "psro", "ranking", "self_play", "start_policy",
]  # fmt: skip
