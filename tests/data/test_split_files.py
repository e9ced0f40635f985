"""Splits that a file states: read whole, or refused in one line."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterkit.data.collections.split_files import read_split
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from tests.data.test_collections import collection

GROUPS = list("aabbcd")
"""Of the images 0 to 5."""
SPLIT = Split(("a", "b"), ("c",), ("d",))


def write(path: Path, head: str, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([(head, "split"), *rows])
    return path


BY_GROUP = [("a", "train"), ("b", "training"), ("c", "val"), ("d", "Test")]
BY_IMAGE = [("0", "train"), ("1.png", "train"), ("2", "train"), ("4.nii.gz", "val"), ("5", "test")]


@pytest.mark.parametrize(("head", "rows"), [("group", BY_GROUP), ("image", BY_IMAGE)])
def test_tables_of_groups_and_of_images(tmp_path: Path, head: str, rows: list[tuple[str, str]]):
    path = write(tmp_path / "split.csv", head, rows)
    assert read_split(path, collection(GROUPS)) == SPLIT
    (tmp_path / "split.json").write_text(json.dumps(dict(rows)))
    assert read_split(tmp_path / "split.json", collection(GROUPS)) == SPLIT


def test_json_of_parts(tmp_path: Path):
    parts = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    assert read_split(tmp_path / "split.json", collection(GROUPS)) == SPLIT


@given(
    groups=st.lists(st.sampled_from("abcdef"), min_size=6, max_size=12),
    parts=st.lists(st.sampled_from(["train", "val", "test"]), min_size=12, max_size=12),
)
def test_no_group_is_ever_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, groups: list[str], parts: list[str]
):
    found = collection(groups)
    rows = [(record.name, part) for record, part in zip(found.records, parts, strict=False)]
    path = write(tmp_path_factory.mktemp("split") / "split.csv", "name", rows)
    try:
        split = read_split(path, found)
    except DataError:
        return
    sides = [{r.name for r in found.of_groups(part)} for part in vars(split).values()]
    assert sum(map(len, sides)) == len(set().union(*sides)) == len(groups)
    assert all(sides)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*BY_GROUP, ("x", "test")], "row 5: 'x' is no image and no group of planted"),
        (BY_GROUP[:-1], "no row of the split test"),
        ([*BY_GROUP[1:], ("5", "test")], "no row of the split train"),
        ([("a", "fit"), *BY_GROUP[1:]], "row 1, has the split 'fit'"),
        ([*BY_IMAGE, ("3", "test")], "row 6: b is in test and in train"),
        ([("a", "train"), *BY_GROUP[2:]], r"does not say what b is for \(1 such groups\)"),
        ([], "has the columns none: expected split, and one of name, image, group"),
    ],
)
def test_wrong_splits_are_refused(tmp_path: Path, rows: list[tuple[str, str]], message: str):
    if message.endswith("train"):
        rows = [row for row in rows if row[1] != "training"]
    path = write(tmp_path / "split.csv", "name", rows)
    with pytest.raises(DataError, match=message):
        read_split(path, collection(GROUPS))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "who,what\na,train\n", "has the columns who, what: expected split, and one of"),
        ("s.csv", "\xff\x00", "cannot be read as CSV|has the columns"),
        ("s.json", "", "cannot be read as JSON"),
        ("s.json", "[]", r"is not as expected: \{\"train\""),
        ("s.json", '{"train": "a", "test": ["b"]}', "is not as expected"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / name, collection(GROUPS))
    with pytest.raises(DataError, match="cannot be read"):
        read_split(tmp_path / f"nowhere{Path(name).suffix}", collection(GROUPS))
