"""Tests of splits by patient."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterkit.data.image_file import DataError
from adapterkit.data.splits import split_patients

names = st.sets(st.integers(1, 9999), min_size=3, max_size=200).map(
    lambda numbers: [f"patient{number:04d}" for number in numbers]
)
weights = st.tuples(*[st.integers(1, 20)] * 3)


@given(names=names, weights=weights, seed=st.integers(0, 2**32), data=st.data())
def test_a_split_is_a_partition_that_ignores_the_order(
    names: list[str], weights: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    train, validation, test = (weight / sum(weights) for weight in weights)
    fractions = (train, validation, test)
    split = split_patients(names, seed, fractions)
    parts = (split.train, split.validation, split.test)
    assert sorted(sum(parts, ())) == sorted(names)
    assert all(part == tuple(sorted(part)) for part in parts)
    assert min(map(len, parts)) >= 1
    shuffled = data.draw(st.permutations(names))
    assert split_patients(shuffled, seed, fractions) == split
    for part, fraction in zip(parts, fractions, strict=True):
        # Off by less than one patient, or by the patients that empty parts were given.
        assert abs(len(part) - fraction * len(names)) < 1 + (len(names) * min(fractions) < 1) * 2


def test_the_papers_split_of_450_patients_has_exact_sizes() -> None:
    split = split_patients(f"patient{number:04d}" for number in range(1, 451))
    assert (len(split.train), len(split.validation), len(split.test)) == (315, 45, 90)


def test_the_seed_decides_the_split() -> None:
    patients = [f"patient{number:04d}" for number in range(1, 51)]
    assert split_patients(patients, seed=1) == split_patients(patients, seed=1)
    assert split_patients(patients, seed=1) != split_patients(patients, seed=2)


def test_fewer_than_three_patients_are_refused() -> None:
    with pytest.raises(DataError, match="patients has 2 names: expected at least 3"):
        split_patients(["patient0001", "patient0002"])


def test_duplicates_are_refused() -> None:
    with pytest.raises(DataError, match="patient0002 more than once"):
        split_patients(["patient0001", "patient0002", "patient0003", "patient0002"])


@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.2), (0.8, 0.2, 0.0), (1.2, -0.4, 0.2)])
def test_fractions_that_do_not_fit_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="expected three positive numbers that sum to 1"):
        split_patients(["a", "b", "c", "d"], fractions=fractions)
