"""The command `adapterkit evaluate`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from adapterkit.system.command_line import check_free, console


def evaluate(
    predicted: Positional[Path],
    reference: Positional[Path],
    structures: Annotated[tuple[str, ...], arg(metavar="LABEL=NAME ...")] = (),
    binary: bool = False,
    csv: Path | None = None,
    force: bool = False,
) -> None:
    """Compare masks with masks: Dice, IoU and distances of each structure.

    Prints mean and standard deviation over images; each frame of a stack or sequence is one. A mask
    that only one side has counts with Dice 0 and the image's diagonal as distance. HD95 is the
    greater of the two directions' 95th percentiles, as MONAI has it; MedPy pools both directions.

    Example: adapterkit evaluate masks experts --structures 1=endocardium 2=wall --csv metrics.csv

    Args:
        predicted: a folder of label maps, or one: NIfTI, MetaImage, PNG, TIFF, DICOM-SEG.
        reference: the expert's, of the same names in the same subfolders.
        structures: what labels stand for; the same name merges. By default those in the references
            are numbered.
        binary: all labels but 0 are one structure.
        csv: a file for every metric of every image and structure.
        force: replace the CSV file if it exists.
    """
    from adapterkit.data.collections.labels import named_labels
    from adapterkit.evaluation.mask_pairs import evaluate_masks, find_mask_pairs
    from adapterkit.evaluation.tables import markdown_table

    if csv is not None:
        check_free(csv, force)
    if binary and structures:
        raise ValueError("--binary is of one structure: give it or --structures")
    pairs = find_mask_pairs(predicted, reference)
    evaluation = evaluate_masks(pairs, named_labels(structures) or None, binary, progress="masks")
    name = predicted.resolve().name
    table = markdown_table({name: evaluation.summary()})
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    if evaluation.without_mm:
        console.print(evaluation.without_mm, markup=False, highlight=False, soft_wrap=True)
    if csv is not None:
        evaluation.write_csv(csv)
        console.print(f"the metrics of each of {len(evaluation.names)} images are in {csv}",
                      soft_wrap=True)  # fmt: skip
