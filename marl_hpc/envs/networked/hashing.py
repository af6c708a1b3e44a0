"""Random numbers by counter: a number is a function of its key, whoever asks and in whatever order, for whole arrays of keys at once.

`keyed_random` makes one generator a key; here every number has a key of its own, such as (seed, purpose, step, agent), so that copies
of an environment draw together and yet each its own numbers, and a table too large to be kept can be asked for one of its entries.
Imports NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GAMMA = 0x9E3779B97F4A7C15


def words(*key: Any) -> np.ndarray:
    """64 random bits a key: uint64, of the shape that the key's parts have together by broadcasting.

    Parts are whole numbers from 0 to 2⁶⁴ - 1 or arrays of them; put large arrays last. What came before a part seeds a SplitMix64
    stream, of which the part picks one output: keys of different lengths share nothing. Source: Steele, Lea & Flood 2014.

    >>> [f"{int(word):x}" for word in words(np.arange(3))]
    ['e220a8397b1dcdaf', '6e789e6aa1b965f4', '6c45d188009454f']
    """
    bits: Any = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2⁶⁴
        for part in key:
            bits = _mix(bits + np.uint64(GAMMA) * (np.asarray(part).astype(np.uint64) + np.uint64(1)))
    return np.asarray(bits)


def uniform(*key: Any) -> np.ndarray:
    """Uniform numbers in [0, 1) by key, as `words`: float64 with 53 random bits."""
    return (words(*key) >> np.uint64(11)) * 2.0**-53


def _mix(bits: Any) -> Any:
    """The output function of SplitMix64 (the finalizer's variant 13 of Stafford); overwrites an array."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
