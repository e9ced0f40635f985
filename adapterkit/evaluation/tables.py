"""Tables and figures of evaluations, side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.evaluation import Evaluation, Predictions, predict
from adapterkit.evaluation.metrics import Statistics
from adapterkit.evaluation.plots import Case
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PromptStrategy

HEADS: dict[str, tuple[str, float]] = {
    "dice": ("Dice (%)", 100),
    "iou": ("IoU (%)", 100),
    "hausdorff_px": ("HD (px)", 1),
    "hausdorff95_px": ("HD95 (px)", 1),
    "average_surface_distance_px": ("ASD (px)", 1),
    "hausdorff_mm": ("HD (mm)", 1),
    "hausdorff95_mm": ("HD95 (mm)", 1),
    "average_surface_distance_mm": ("ASD (mm)", 1),
}
"""How each metric is headed in a table, and what it is multiplied by."""


def markdown_table(
    summaries: Mapping[str, Statistics], metrics: Sequence[str] = tuple(HEADS)
) -> str:
    """Mean ± standard deviation of each model's structures, as far as they have the metrics."""
    return markdown(*table_rows(summaries, metrics))


def table_rows(
    summaries: Mapping[str, Statistics], metrics: Sequence[str] = tuple(HEADS)
) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of `markdown_table`."""
    rows = [
        (model, structure, values)
        for model, structures in summaries.items()
        for structure, values in structures.items()
    ]
    shown = [metric for metric in metrics if all(metric in values for *_, values in rows)]
    heads = ["model", "structure", *(HEADS[metric][0] for metric in shown)]
    lines = []
    for model, structure, values in rows:
        cells = [
            f"{scale * values[metric]['mean']:.2f} ± {scale * values[metric]['std']:.2f}"
            for metric, scale in ((metric, HEADS[metric][1]) for metric in shown)
        ]
        lines.append([model, structure, *cells])
    return heads, lines


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line feed at its end."""
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def tables(evaluations: Mapping[str, Evaluation], attributes: Sequence[str]) -> str:
    """All metrics of each model as Markdown: of all images, and of each value of an attribute."""
    sections = [markdown_table({name: each.summary() for name, each in evaluations.items()})]
    sections += sorted({each.without_mm for each in evaluations.values()} - {""})
    for attribute in attributes:
        by_value = {name: each.summary_by(attribute) for name, each in evaluations.items()}
        for value in next(iter(by_value.values())):
            table = markdown_table({name: each[value] for name, each in by_value.items()})
            sections.append(f"## {attribute} {value}\n\n{table}")
    for title, heads, rows in volume_tables(evaluations):
        sections.append(f"## {title}\n\n{markdown(heads, rows)}")
    return "\n\n".join(sections)


def volume_tables(
    evaluations: Mapping[str, Evaluation],
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Titles, heads and rows of tables of whole volumes; none where images are no slices."""
    found = {name: each.of_volumes() for name, each in evaluations.items()}
    volumes = {name: each for name, each in found.items() if each is not None}
    if not volumes:
        return []
    over = table_rows({name: each.summary() for name, each in volumes.items()})
    structures = next(iter(volumes.values())).structures
    rows = [
        [name, volume, *(f"{100 * value:.2f}" for value in (*dice, sum(dice) / len(dice)))]
        for name, each in volumes.items()
        for volume, dice in zip(each.names, each.values["dice"].tolist(), strict=True)
    ]
    return [
        ("Volumes, in 3-D over all slices", *over),
        ("Dice (%) of each volume", ["model", "volume", *structures, "mean"], rows),
    ]


def summaries(evaluation: Evaluation, attributes: Sequence[str]) -> dict[str, Any]:
    """Over images, over the images of each value of each attribute, and over patients and groups.

    The last ones as "patients" and "groups", where the images have the attribute "patient" or
    "group". Of slices of volumes, also over "volumes" in 3-D, and the Dice of each "volume".
    """
    known = evaluation.attributes[0]
    volumes = evaluation.of_volumes()
    of_volumes: dict[str, Any] = {}
    if volumes is not None:
        pairs = zip(volumes.names, volumes.values["dice"].tolist(), strict=True)
        each = {name: dict(zip(volumes.structures, dice, strict=True)) for name, dice in pairs}
        of_volumes = {"volumes": volumes.summary(), "volume": each}
    return {
        "images": evaluation.summary(),
        **{f"{of}s": evaluation.summary_over(of) for of in ("patient", "group") if of in known},
        **{attribute: evaluation.summary_by(attribute) for attribute in attributes},
        **of_volumes,
    }


def extremes(evaluation: Evaluation) -> list[dict[str, int]]:
    """For each structure the indices of the images of its "best", "median" and "worst" Dice."""
    found = []
    for dice in evaluation.values["dice"].T:
        order = dice.argsort(descending=True).tolist()
        found.append({"best": order[0], "median": order[len(order) // 2], "worst": order[-1]})
    return found


def predict_extremes(
    segmenter: Promptable,
    dataset: SegmentationDataset,
    evaluation: Evaluation,
    *,
    seed: int,
    points: PromptStrategy = "1",
) -> dict[int, Predictions]:
    """Segment the images of `extremes` once more, one at a time; what is predicted by their numbers
    there, which count the labelled images alone.

    `evaluation` is that of `segmenter` on `dataset`, from the same seed and points. All processes
    get the whole result.
    """
    numbers = sorted({number for each in extremes(evaluation) for number in each.values()})
    labelled = [index for index, is_labelled in enumerate(dataset.labelled) if is_labelled]
    only = {labelled[number]: number for number in numbers}
    found = predict(segmenter, dataset, seed=seed, points=points, batch_size=1, only=only)
    return dict(gather_object([(only[one.indices[0]], one) for each in found for one in each]))


def extreme_cases(evaluation: Evaluation, predictions: Mapping[int, Predictions]) -> list[Case]:
    """For each structure the images of its highest, median and lowest Dice.

    `predictions` are those of `predict_extremes`.
    """
    cases = []
    for k, (structure, of_each) in enumerate(
        zip(evaluation.structures, extremes(evaluation), strict=True)
    ):
        dice = evaluation.values["dice"][:, k]
        for title, index in of_each.items():
            found = predictions[index]
            cases.append(
                Case(
                    title=f"{structure}, {title}: {found.names[0]}",
                    image=found.images[0, 0].numpy(),
                    reference=found.reference[0, k : k + 1].numpy(),
                    predicted=found.predicted[0, k : k + 1].numpy(),
                    points=found.points[0, k : k + 1].numpy(),
                    structures=[structure],
                    dice=[dice[index].item()],
                )
            )
    return cases
