"""The command `adapterkit check`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from adapterkit.data.collections.check import Report


def check(
    data: Positional[Path],
    format: str | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    structures: Annotated[tuple[str, ...], arg(metavar="LABEL=NAME ...")] = (),
    leave_out: tuple[int, ...] = (),
    colours: Annotated[tuple[str, ...], arg(metavar="NAME=R,G,B ...")] = (),
    group: str | None = None,
    axis: int | None = None,
    split: Path | None = None,
    sheet: Path | None = None,
    force: bool = False,
) -> None:
    """Say what a data set holds, and what is wrong with it.

    Ends with status 1 where training on it would be wrong.

    Example: adapterkit check thyroid --structures 1=nodule 2=cyst --sheet thyroid.png

    Args:
        data: a folder or file of images with masks.
        format: how it lies on disk, if not as found
        images: another folder of images, or a pattern with {name}.
        masks: another folder of masks, or a pattern.
        structures: what labels stand for; the same name merges.
        leave_out: labels that count as background.
        colours: what a mask's colours stand for.
        group: the patient in names, by a regular expression, or a table's column.
        axis: volumes are cut along 0 frames, 1 rows, 2 columns.
        split: a CSV or JSON file: which image or group is for what.
        sheet: a PNG to write, of images with contours.
        force: replace the PNG if it exists.
    """
    from adapterkit.data.collections import open_collection
    from adapterkit.data.collections.check import check_collection
    from adapterkit.data.collections.contact_sheet import draw_contact_sheet
    from adapterkit.data.collections.labels import named_colours, named_labels
    from adapterkit.data.collections.split_files import read_split
    from adapterkit.system.command_line import check_free, console

    if sheet is not None:
        check_free(sheet, force)
    collection = open_collection(
        data,
        format,
        images=images,
        masks=masks,
        structures=named_labels(structures) or None,
        leave_out=leave_out,
        colours=named_colours(colours) or None,
        group=group,
        axis=axis,
    )
    if split is not None:
        collection = replace(collection, split=read_split(split, collection))
    report = check_collection(collection)
    for line in _lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if sheet is not None:
        count = draw_contact_sheet(collection, sheet)
        console.print(f"{count} images with contours are in {sheet}", soft_wrap=True)
    if report.is_wrong:
        sys.exit(1)


def _lines(report: "Report") -> list[str]:
    found = report.collection
    count = len(found.records)
    lines = [f"{found.name}: {count} images in {len(found.group_names)} groups ({found.format})"]
    lines += [f"  {name} in {images} images" for name, images in report.images.items()]
    sizes = ", ".join(f"{rows} x {columns} ({n})" for (rows, columns), n
                      in report.sizes.most_common(3))  # fmt: skip
    more = f" and {len(report.sizes) - 3} others" if len(report.sizes) > 3 else ""
    lines.append(f"  sizes (rows x columns): {sizes or 'none'}{more}")
    known = [spacing for spacing in report.spacings if spacing is not None]
    sides = [side for spacing in known for side in spacing]
    lines.append(
        f"  pixels of {min(sides):.3g} to {max(sides):.3g} mm" if sides else "  pixel size unknown"
    )
    if report.sizes:
        lines.append(f"  values from {report.lowest:g} to {report.highest:g}")
    split = found.split
    if split is not None:
        parts = (len(split.train), len(split.validation), len(split.test))
        lines.append(
            "  its own split: {} groups for training, {} validation, {} test".format(*parts)
        )
    for problem in report.problems:
        lines.append(
            f"{'wrong' if problem.is_error else 'look'}: {' '.join(problem.message.split())}"
        )
    if not report.problems:
        lines.append("nothing wrong was found")
    return lines
