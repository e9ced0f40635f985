"""Images and masks that a table lists, one pair in each row:

    image,mask,group,split
    scans/a.png,labels/a.png,patient1,train

as CSV, Parquet or JSON lines. Paths are relative to the table's folder. Of the columns, group (what
must stay together) and split (train, validation or val, test) may be missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterkit.data.collections.collection import (
    Collection,
    check_one_name_each,
    collection_format,
    group_of,
)
from adapterkit.data.collections.folders import Pair, check_binary_masks
from adapterkit.data.collections.labels import BINARY, counted_as, merged
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import stated_split
from adapterkit.system.extras import require

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("image", "mask", "group", "split")
_ENDINGS = (".csv", ".parquet", ".jsonl")


@collection_format("table", recognises=lambda path: path.suffix.lower() in _ENDINGS)
def open_table(
    path: Path,
    structures: Mapping[int, str] | None = None,
    leave_out: Sequence[int] = (),
    group: str | None = None,
) -> Collection:
    """The pairs of image and mask that a table lists.

    Args:
        path: a file that ends in .csv, .parquet or .jsonl.
        structures: labels and what they stand for, as of plain folders.
        leave_out: labels that count as background.
        group: the column that says which images belong together, or a regular expression for the
            images' names. None: the column group, if there is one.

    Raises:
        DataError: the table cannot be read or lacks a column, a row lacks a value or names a file
            that is not there, or a split is none; and as `open_folders`.
    """
    table = _read(path)
    records = [_pair(path, number, row, structures, leave_out) for number, row in _rows(table)]
    check_one_name_each([record.name for record in records], path)
    if structures is None:
        check_binary_masks(records)
    column = "group" if group is None and "group" in table else group
    if column in table:
        groups = tuple(str(each) for each in table[column])
    else:
        groups = tuple(group_of(record.name, group) for record in records)
    return Collection(
        name=path.stem,
        format="table",
        records=tuple(records),
        groups=groups,
        split=None
        if "split" not in table
        else stated_split(list(zip(groups, table["split"], strict=True)), path, "row"),
    )


def _read(path: Path) -> "pd.DataFrame":
    require("train", "pandas", "pyarrow")
    import pandas as pd

    try:
        ending = path.suffix.lower()
        if ending == ".csv":
            table = pd.read_csv(path, dtype=str)
        elif ending == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_json(path, lines=True, dtype=dict.fromkeys(_COLUMNS, str))
    # pandas and pyarrow raise what shares no narrower base for files that are damaged.
    except Exception as error:
        raise DataError(f"{path} cannot be read as a table ({error}).") from error
    for column in ("image", "mask"):
        if column not in table:
            raise DataError(
                f"{path} has no column {column}, but {', '.join(map(str, table.columns))}: "
                "expected image and mask, and group and split if they are known."
            )
    if table.empty:
        raise DataError(f"{path} has no row: expected one for each image.")
    for column in (name for name in _COLUMNS if name in table):
        for row, value in enumerate(table[column], start=1):
            if pd.isna(value) or not str(value).strip():
                raise DataError(f"{path}, row {row}, has no {column}: expected one in each row.")
    return table


def _rows(table: "pd.DataFrame") -> list[tuple[int, tuple[str, str]]]:
    pairs = zip(table["image"], table["mask"], strict=True)
    return [(number, (str(image), str(mask))) for number, (image, mask) in enumerate(pairs, 1)]


def _pair(
    path: Path,
    number: int,
    files: tuple[str, str],
    structures: Mapping[int, str] | None,
    leave_out: Sequence[int],
) -> Pair:
    image, mask = (path.parent / file for file in files)
    for file in (image, mask):
        if not file.is_file():
            raise DataError(f"{path}, row {number}: there is no {file}.")
    return Pair(
        name=Path(files[0]).with_suffix("").as_posix(),
        image=image,
        masks=(mask,),
        structures=BINARY if structures is None else merged(structures),
        labels=None if structures is None else counted_as(structures, leave_out),
    )
