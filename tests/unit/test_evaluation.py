"""Statistics against closed forms and brute force."""

import numpy as np
import pytest

from marl_hpc.evaluation import bootstrap_interval, interquartile_mean, probability_of_improvement, summarize


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 10, 101])
def test_iqm_is_the_mean_of_the_middle_half_also_where_quarters_are_not_whole(count):
    values = np.random.default_rng(count).normal(size=count)
    # every value repeated four times: then a quarter is a whole number and the middle half can be cut out
    repeated = np.sort(np.repeat(values, 4))
    assert interquartile_mean(values) == pytest.approx(repeated[count:-count].mean())


def test_outliers_move_the_mean_but_not_the_iqm():
    values = np.arange(100.0)
    spoiled = values.copy()
    spoiled[-1] = 1e9
    assert interquartile_mean(spoiled) == interquartile_mean(values)
    assert summarize(spoiled, scale="test")["return_mean"] > 1e6


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(random.normal(3.0, 1.0, 50), lambda x: np.mean(x, axis=-1), resamples=500, seed=seed)
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_deterministic():
    values = np.random.default_rng(1).normal(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values)


@pytest.mark.parametrize("returns", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_returns_that_mean_nothing_are_refused(returns):
    with pytest.raises(ValueError, match="finite returns"):
        summarize(returns, scale="test")


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    ours, theirs = [1.0, 2.0, 5.0], [0.0, 2.0]
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in ours for y in theirs]
    chance, low, high = probability_of_improvement(ours, theirs)
    assert chance == pytest.approx(np.mean(pairs))
    assert low <= chance <= high
    assert probability_of_improvement(theirs, ours)[0] == pytest.approx(1 - chance)


def test_probability_of_improvement_covers_the_true_one_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    true = 0.7602  # of a normal of mean 1 above one of mean 0: the normal distribution at 1 / sqrt(2)
    covered = 0
    for seed in range(200):
        _, low, high = probability_of_improvement(random.normal(1, 1, 25), random.normal(0, 1, 25), resamples=400, seed=seed)
        covered += low <= true <= high
    assert 0.86 <= covered / 200 <= 0.99
