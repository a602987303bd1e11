"""The list of mutants is of this code, and a sample of them is noticed."""

import pytest

from tests.mutants import MUTANTS, ROOT, first_failure

SAMPLE = ("ratio inverted", "zeros decide the exponent", "another power")


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_mutant_has_one_place_in_the_code(file):
    source = (ROOT / file).read_text()
    for mutant in MUTANTS:
        if mutant.file == file:
            assert source.count(mutant.right) == 1, mutant.name
            assert mutant.wrong != mutant.right, mutant.name


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_mutants_is_noticed(name):
    (mutant,) = (m for m in MUTANTS if m.name == name)
    assert first_failure(mutant)
