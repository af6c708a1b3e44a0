"""Randomness keyed by what it is for, never by who draws it, so that every layout of ranks draws the same numbers.

A key is a tuple of integers such as (seed, purpose, environment copy, fragment). Generators are NumPy's Philox, a counter-based
generator made for this (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import numpy as np

# What a number is drawn for; part of every key, so that no two uses share a stream.
(
    EPISODE, ACTION, EVALUATION_EPISODE, EVALUATION_ACTION, MINIBATCH, INITIALIZATION, GROUP, REPLAY, PAYOFF_EPISODE, NEXT_ACTION,
    OPPONENT, PAYOFF_ACTION, RESERVOIR, RESET,
) = range(14)  # fmt: skip


def generator(*key: int) -> np.random.Generator:
    """The stream of this key.

    >>> float(generator(1, 2).random()) == float(generator(1, 2).random()) != float(generator(1, 3).random())
    True
    """
    return np.random.Generator(np.random.Philox(_sequence(key)))


def integer(*key: int) -> int:
    """One 31-bit integer of this key: a seed for an environment's reset or for torch."""
    return int(_sequence(key).generate_state(1)[0] >> 1)


def _sequence(key: tuple[int, ...]) -> np.random.SeedSequence:
    # the length in front: SeedSequence fills up with zeros, so that (7,) and (7, 0) would be one stream
    return np.random.SeedSequence((len(key), *key))
