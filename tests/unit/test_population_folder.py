"""What a run's folder tells of its populations, read back."""

import json

import numpy as np
import pytest

from marl_hpc.populations import PayoffTable, PolicyPopulation
from marl_hpc.report import populations as report
from marl_hpc.roles.population_folder import PopulationFolder


@pytest.fixture
def thirds():
    """A table whose numbers need every bit, and a cell that isn't known."""
    table = PayoffTable((0, 1))
    table.grow((2, 2))
    value = 1 / 3 + 2**-50
    table.fill([[0, 0], [0, 1], [1, 0]], [[value, -value], [-1e-9, 1e-9], [0.1 + 0.2, -0.3]])
    return table


def test_payoffs_are_written_to_the_last_bit(tmp_path, thirds):
    folder = PopulationFolder(tmp_path, 0)
    folder.write(PolicyPopulation((0, 1)), thirds)
    written = json.loads((tmp_path / "population" / "payoffs.json").read_text())
    known = thirds.known_payoffs()
    np.testing.assert_array_equal(np.array(written["payoffs"], float), known)
    assert np.isnan(known).sum() == 2
    picture = report.section(tmp_path / "population")
    assert ">0, 0: 0.3333<" in picture  # and are short where people read them
