"""Randomness depends on its key and on nothing else."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marl_hpc import keyed_random
from marl_hpc.keyed_random import (
    ACTION,
    EPISODE,
    generator,
    integer,
)

keys = st.lists(st.integers(0, 1000), min_size=1, max_size=6).map(tuple)


@given(keys)
def test_same_key_gives_the_same_numbers(key):
    assert np.array_equal(generator(*key).random(5), generator(*key).random(5))
    assert integer(*key) == integer(*key)


@given(keys, keys)
def test_different_keys_give_different_streams(one, other):
    same = np.array_equal(generator(*one).random(4), generator(*other).random(4))
    assert same == (one == other)


def test_key_with_a_zero_behind_is_another_key():
    draws = [tuple(generator(*key).random(2)) for key in ((7,), (7, 0), (7, 0, 0), (7, 0, 0, 0), (7, 0, 0, 0, 0))]
    assert len(set(draws)) == len(draws)
    assert len({integer(*key) for key in ((7, 4), (7, 4, 0))}) == 2


def test_neighboring_keys_share_nothing():
    keys = list(itertools.product(range(6), range(8), range(8)))
    assert len({integer(*key) for key in keys}) == len(keys)
    draws = np.array([generator(*key).standard_normal(8) for key in keys])
    correlation = np.corrcoef(draws.ravel()[:-8], draws.ravel()[8:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(draws.size)


def test_purposes_are_distinct():
    purposes = {name: value for name, value in vars(keyed_random).items() if name.isupper()}
    assert {"EPISODE", "ACTION", "OPPONENT"} <= set(purposes)
    assert len(set(purposes.values())) == len(purposes)


@given(keys)
def test_integers_are_seeds_of_31_bits(key):
    assert 0 <= integer(*key) < 2**31


def test_integers_are_spread_evenly():
    drawn = np.array([integer(3, EPISODE, i) for i in range(4000)]) / 2**31
    counts = np.histogram(drawn, 10, (0, 1))[0]
    assert (((counts - 400) ** 2) / 400).sum() < 27.9  # 0.999 quantile with 9 degrees of freedom


def test_order_of_drawing_does_not_matter():
    forward = {key: generator(5, ACTION, key).random() for key in range(6)}
    backward = {key: generator(5, ACTION, key).random() for key in reversed(range(6))}
    assert forward == backward
