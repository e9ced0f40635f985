"""Collections: what belongs together stays together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterkit.data.collections import Collection, format_names, open_collection
from adapterkit.data.dataset import LabelledImage
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from adapterkit.data.synthetic.phantom import write_phantom


@dataclass(frozen=True)
class Planted:
    name: str
    structures: Mapping[int, str] = field(default_factory=lambda: {1: "disc"})
    attributes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> LabelledImage:
        return LabelledImage(np.zeros((4, 4)), np.zeros((4, 4), np.uint8), None)


def collection(groups: list[str], split: Split | None = None) -> Collection:
    records = tuple(Planted(f"{i}") for i in range(len(groups)))
    return Collection("planted", "none", records, tuple(groups), split)


GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=8).filter(lambda g: len(set(g)) >= 4)


@given(groups=GROUPS, seed=st.integers(0, 5))
def test_no_group_is_on_two_sides(groups: list[str], seed: int):
    found = collection(groups)
    count = min(5, len(found.group_names))
    for split in (found.divided(seed), *found.folds(count, seed)):
        parts = [split.train, split.validation, split.test]
        assert sorted(name for part in parts for name in part) == list(found.group_names)
        assert all(parts)
        assert sum(len(found.of_groups(part)) for part in parts) == len(groups)
    tested = [name for split in found.folds(count, seed) for name in split.test]
    assert sorted(tested) == list(found.group_names)


@given(groups=GROUPS, seed=st.integers(0, 5))
def test_some_groups_are_taken_whole(groups: list[str], seed: int):
    found = collection(groups).take(3, seed)
    assert len(found.group_names) == 3
    assert sorted(found.groups) == sorted(g for g in groups if g in found.group_names)


def test_the_datas_own_split_is_kept():
    own = Split(("a",), ("b",), ("c", "d"))
    assert collection(list("abcd"), own).divided() == own
    assert own.among({"a", "b", "c"}) == Split(("a",), ("b",), ("c",))
    with pytest.raises(DataError, match="none of the 2 patients is for validation"):
        own.among({"a", "c"})


def test_what_cannot_be_divided_is_explained():
    for folds in (2, 5):
        with pytest.raises(DataError, match=f"{folds} folds of 4 groups: expected 3 to 4"):
            collection(list("abcd")).folds(folds)
    with pytest.raises(DataError, match="5 groups are asked for: planted has 4"):
        collection(list("abcd")).take(5)
    with pytest.raises(DataError, match="holds no image"):
        collection([])


def test_synthetic_echo_is_recognised_as_camus(tmp_path: Path):
    found = open_collection(write_phantom(tmp_path / "echo", patients=3))
    assert (found.format, found.reported) == ("camus", ("view", "phase"))
    assert len(found.group_names) == 3


def test_what_is_no_data_set_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is no data set that adapterkit knows: expected folders"):
        open_collection(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        open_collection(tmp_path / "nothing")
    with pytest.raises(DataError, match="format 'coc': expected one of"):
        open_collection(tmp_path, format="coc")
    assert {"camus", "folders", "us30k"} <= set(format_names())
    with pytest.raises(DataError, match="of the format camus, which has no option 'group'"):
        open_collection(tmp_path, format="camus", group="x")
