"""Games small enough to be written down whole: exact returns, best responses and NashConv, and fast play, all on flat arrays.

`tree` holds the arrays, `openspiel` compiles them from OpenSpiel's games and `matrix` from tables of payoffs, `policies` evaluates and
mixes behavior policies, `responses` says how far they are from equilibrium, `copies` plays many games at once. Pure NumPy; only the
compiler imports `pyspiel`, when called.
"""

from marl_hpc.games.copies import Copies
from marl_hpc.games.matrix import matrix_game
from marl_hpc.games.openspiel import compile_game, from_openspiel, to_openspiel
from marl_hpc.games.policies import (
    behavior_policy,
    expected_returns,
    mixture_policy,
    reach_probabilities,
    realization_plan,
    sequence_returns,
    uniform_policy,
)
from marl_hpc.games.responses import BestResponse, best_response, best_response_to, exploitability, nash_conv
from marl_hpc.games.tree import CHANCE, TERMINAL, Game

__all__ = [
    "CHANCE", "TERMINAL", "BestResponse", "Copies", "Game", "behavior_policy", "best_response", "best_response_to", "compile_game",
    "expected_returns", "exploitability", "from_openspiel", "matrix_game", "mixture_policy", "nash_conv", "reach_probabilities", "realization_plan",
    "sequence_returns", "to_openspiel", "uniform_policy",
]  # fmt: skip
