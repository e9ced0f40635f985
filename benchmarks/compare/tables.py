"""The comparison as tables in Markdown, in the paper's form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from adapterkit.evaluation.tables import HEADS, markdown
from adapterkit.promptable.strategies import PromptStrategy
from benchmarks.compare.domains import kind_in_words
from benchmarks.compare.results import (
    SIGNIFICANCE,
    SystemResults,
    differences,
    kinds_of,
    mean_and_deviation,
    of_kind,
    smallest_p,
)
from benchmarks.compare.setting import REPORTED_SIZE, Setting
from benchmarks.compare.systems import SYSTEMS

PAPER: dict[str, tuple[float, float]] = {
    "unet": (93.56, 9.90),
    "ce-net": (93.31, 9.65),
    "swin-unet": (91.72, 12.80),
    "transunet": (93.54, 9.60),
    "h2former": (93.44, 9.79),
    "sam": (86.74, 15.84),
    "samus": (91.45, 12.99),
    "medsam": (92.61, 11.72),
    "samed": (92.87, 11.34),
    "msa": (90.8, 12.6),
    "samus-branch": (91.03, 13.2),
    "samus-adapters": (90.6, 13.36),
    "samus-2-random": (91.6, 12.87),
    "samus-2-entropy": (91.53, 12.91),
    "samus-2-distance": (91.76, 12.71),
}
"""Dice in % and HD, on CAMUS, of the SAMUS reproduction study's Tables 1 to 4."""


Entry = tuple[str, PromptStrategy]
"""A system's key in `SYSTEMS`, and what it is tested with."""


@dataclass(frozen=True)
class Table:
    """One of the tables: its subject, its rows in their order, and a remark.

    Attributes:
        reference: the row that the others are tested against, patient by patient; None: they
            are not.
    """

    subject: str
    entries: tuple[Entry, ...]
    remark: str = ""
    reference: Entry | None = None


_PLUS = "SAMUS+ is adapterkit's own, the method `samus_plus`, and not in the paper"

_VARIANTS = [name for name in SYSTEMS if name.startswith("samus-plus-")]

TABLES = (
    Table(
        "without a prompt",
        tuple(
            (name, "class")
            for name in (
                "unet",
                "ce-net",
                "swin-unet",
                "transunet",
                "h2former",
                "dynunet",
                "samed-auto",
                "autosamus",
                "samus-plus",
            )
        ),
        f"The image alone: all structures are found in it. {_PLUS}; it is asked for each by name. "
        "DynUNet is MONAI's, built as nnU-Net builds its own; SAMed here is as published, without "
        "a prompt; AutoSAMUS is trained whole, where its authors train the generator of prompts "
        "on a trained SAMUS.",
        reference=("samus-plus", "class"),
    ),
    Table(
        "with one click for each structure",
        tuple((name, "1") for name in ("sam", "medsam", "samed", "msa", "samus", "samus-plus")),
        "Each is told with a click that a structure is there and where to look, and by nothing "
        f"else which it is. {_PLUS}; here it is the same training as without a prompt.",
        reference=("samus", "1"),
    ),
    Table(
        "one training of SAMUS+, by what it is asked with",
        tuple(
            ("samus-plus", prompts)
            for prompts in get_args(PromptStrategy)
            if prompts in SYSTEMS["samus-plus"].tested_with and not prompts.startswith("2-")
        ),
    ),
    Table(
        "ablation of SAMUS",
        (("samus-branch", "1"), ("samus-adapters", "1"), ("samus", "1")),
    ),
    Table(
        "ablation of SAMUS+, without a prompt",
        tuple((name, "class") for name in (*_VARIANTS, "samus-plus")),
        "All but the one that says so are trained by class, click and box together.",
    ),
    Table(
        "second points by strategy",
        (
            ("samus", "1"),
            ("samus-2-random", "2-random"),
            ("samus-2-entropy", "2-entropy"),
            ("samus-2-distance", "2-max-distance"),
            ("samus-2-disagreement", "2-disagreement"),
            ("samus-plus", "1"),
            *(
                ("samus-plus", prompts)
                for prompts in get_args(PromptStrategy)
                if prompts.startswith("2-")
            ),
        ),
        "Each SAMUS is trained and tested with its own strategy; SAMUS+ is one training, asked in "
        "each way. Uncertainty, of presence and mask together, and class prior need its class "
        "prompts, but no class is told with the two points. The first point is the same in all.",
    ),
)
"""Those with a prompt and those without are two tasks, and never in one table."""

METRICS = ("dice", "hausdorff_px", "hausdorff95_px", "hausdorff_mm", "hausdorff95_mm")
"""Those in the tables."""


def report(setting: Setting, results: Sequence[SystemResults]) -> str:
    """All tables."""
    by_entry = {(each.name, each.prompts): each for each in results}
    sections = ["# Comparison", _setting_in_words(setting, results)]
    for number, table in enumerate(TABLES, start=1):
        shown = [by_entry[entry] for entry in table.entries if entry in by_entry]
        # One row of an ablation tells nothing.
        if len(shown) > 1 or (shown and table.reference is not None):
            sections.append(f"## Table {number}: {table.subject}")
            sections.append(_table(shown, setting))
            sections += [table.remark] if table.remark else []
            sections += _clicks(shown)
        if table.reference is not None and len([each for each in shown if each.finished]) > 1:
            sections.append("### Which differences are real")
            outside = _outside(results, setting)
            reference = by_entry.get(table.reference)
            sections += [_OUTSIDE] if setting.trained_on else []
            sections.append(
                differences_in_words(
                    [outside(each) for each in shown], reference and outside(reference)
                )
            )
    sections += ["## On the validation patients", _validation(results)]
    sections += ["## Per structure", _structures(results)]
    main = [each for each in results if each.is_main]
    sections += ["## What each costs", _costs(main)]
    failed = [f"- {each.title}, seed {s}: {e}" for each in main for s, e in each.failed.items()]
    if failed:
        sections += ["## Failed runs", "\n".join(failed)]
    return "\n\n".join(sections) + "\n"


def _setting_in_words(setting: Setting, results: Sequence[SystemResults]) -> str:
    finished = [run for each in results for run in each.finished]
    counts = ""
    if finished:
        metrics = finished[0].metrics
        kind = "patients" if "patients" in metrics else "groups"
        counts = f"{kind.capitalize()}, the same for all runs: " + ", ".join(
            f"{len(metrics[kind][part])} {part} ({metrics['images'][part]} images)"
            for part in metrics[kind]
        )
    seeds = sorted({run.seed for run in finished})
    domain = ""
    if setting.trained_on is not None:
        attribute, value = kind_in_words(setting.trained_on)
        domain = (
            f"Trained and validated on the images of {attribute} {value} alone, and tested on "
            f"those of every {attribute}: the others are out of the training's domain."
        )
    schedule = f"the {setting.schedule} schedule"
    if setting.learning_rate is not None:
        schedule += f" at a learning rate of {setting.learning_rate:g}"
    networks = "small networks" if setting.base.is_small else "networks at their published size"
    machines = dict.fromkeys(run.metrics["machine"] for run in finished)
    lines = [
        f"Data: {setting.data_name}. {counts or 'No run is finished yet'}.",
        domain,
        f"Base: {setting.base.name}; {networks}. Epochs: {setting.epochs}, of the same "
        f"{'augmented ' if setting.augment else ''}images by {schedule}; the epoch with the best "
        "validation Dice is tested.",
        f"Every system is given the same {setting.image_size}x{setting.image_size} pixels, those "
        "that take clicks the same first one, a random foreground point of each structure.",
        f"Seeds: {', '.join(map(str, seeds)) or 'none finished'}. Numbers are means over the test "
        "images and seeds, ± the standard deviation over seeds where there are several. Distances "
        f"in px are of {REPORTED_SIZE}x{REPORTED_SIZE} pixels.",
        f"Machine: {'; '.join(machines)}." if machines else "",
    ]
    return "\n".join(filter(None, lines))


_OUTSIDE = "Of the test images that are of another kind than those of the training."


def _outside(
    results: Sequence[SystemResults], setting: Setting
) -> Callable[[SystemResults], SystemResults]:
    """What leaves the images that are out of the training's domain; all, where it has all."""
    if setting.trained_on is None:
        return lambda each: each
    attribute, inside = kind_in_words(setting.trained_on)
    others = [kind for kind in kinds_of(results, attribute) if kind != inside]
    return lambda each: of_kind(each, attribute, others)


Columns = dict[str, list[str]]
"""Each column's head, and its cell for each system."""


def _table(shown: Sequence[SystemResults], setting: Setting) -> str:
    """A row for each system."""
    if setting.trained_on is None:
        columns = _measures(shown, setting.paper) | errors_of_hearts(shown)
    else:
        columns = _measures_by_kind(shown, setting.trained_on)
    titles = [each.full_title for each in shown]
    rows = [list(row) for row in zip(titles, *columns.values(), strict=True)]
    return markdown(["system", *columns], rows)


def _measures(shown: Sequence[SystemResults], with_paper: bool) -> Columns:
    columns = {}
    for number, metric in enumerate(("dice", "hausdorff_px")):
        head, _ = HEADS[metric]
        columns[head] = [_metric(each, metric) for each in shown]
        if with_paper:
            columns[f"{head}, paper"] = [
                f"{PAPER[each.name][number]:.2f}" if each.name in PAPER else "" for each in shown
            ]
    return columns


def _measures_by_kind(shown: Sequence[SystemResults], trained_on: str) -> Columns:
    """Of the test images of each kind, the training's first."""
    attribute, inside = kind_in_words(trained_on)
    kinds = sorted(kinds_of(shown, attribute), key=lambda kind: kind != inside)
    columns = {}
    for metric in ("dice", "hausdorff_px"):
        for kind in kinds:
            where = "as trained on" if kind == inside else "not trained on"
            columns[f"{HEADS[metric][0]}, {attribute} {kind}, {where}"] = [
                _metric(of_kind(each, attribute, [kind]), metric) for each in shown
            ]
    return columns


def errors_of_hearts(shown: Sequence[SystemResults]) -> Columns:
    """The mean absolute error of the ejection fraction, against the reference masks; no column
    where the images are not apical views at ED and ES."""
    errors = [each.cost("hearts", each.full_title, "ef", "mae", "value") for each in shown]
    cells = [cell(*pair, "{:.2f}") for pair in zip(shown, errors, strict=True)]
    return {"EF MAE (points)": cells} if any(errors) else {}


def _clicks(shown: Sequence[SystemResults]) -> list[str]:
    """How many each system of a table needs, where one was asked with several."""
    of_systems = {each.name: each for each in shown if each.prompts in ("3", "5")}
    lines = []
    for each in of_systems.values():
        clicks = each.cost("clicks_to_90_iou", "mean", "clicks")
        reached = [100 * share for share in each.cost("clicks_to_90_iou", "mean", "reached")]
        if clicks:
            lines.append(
                f"{each.title} needs {cell(each, clicks, '{:.1f}')} clicks to an IoU of 90 %, "
                f"of 20, which count where they were not enough; enough they are for "
                f"{cell(each, reached, '{:.0f}')} % of the structures."
            )
    return lines


def _structures(results: Sequence[SystemResults]) -> str:
    shown = [metric for metric in METRICS if any(each.over_seeds(metric) for each in results)]
    rows = [
        [each.full_title, structure, *(_metric(each, metric, structure) for metric in shown)]
        for each in results
        for structure in (*each.structures, "mean")
    ]
    return markdown(["system", "structure", *(HEADS[metric][0] for metric in shown)], rows)


def _validation(results: Sequence[SystemResults]) -> str:
    rows = []
    for each in (each for each in results if each.is_main):
        best = [run.validation_dice for run in each.finished]
        found = [100 * dice for dice in best if dice is not None]
        if found or each.failed or each.unfinished:
            rows.append([each.title, cell(each, found, "{:.2f}")])
    if not rows:
        return "No system was trained."
    return (
        f"{markdown(['system', 'best Dice (%)'], rows)}\n\n"
        "Of the epochs' ends. By these numbers systems and their settings are chosen, never by "
        "those of the test."
    )


def _metric(each: SystemResults, metric: str, structure: str = "mean") -> str:
    scale = HEADS[metric][1]
    return cell(each, [scale * value for value in each.over_seeds(metric, structure)], "{:.2f}")


def cell(each: SystemResults, values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over the seeds, and what of them is missing."""
    missing = [f"{len(each.failed)} failed"] if each.failed else []
    missing += [f"{len(each.unfinished)} not finished"] if each.unfinished else []
    if not values:
        return ", ".join(missing) or "–"
    mean, deviation = mean_and_deviation(values)
    text = form.format(mean)
    if deviation is not None:
        text += f" ± {form.format(deviation)}"
    return f"{text} ({', '.join(missing)})" if missing else text


COSTS: dict[str, tuple[tuple[str, ...], Callable[[float], str]]] = {
    "trained parameters": (("trained_parameters",), lambda value: f"{value:,.0f}"),
    "file (MB)": (("file_bytes",), lambda value: f"{value / 1e6:.2f}"),
    "GFLOPs per image": (("flops",), lambda value: f"{value / 1e9:.2f}"),
    "s per image": (("seconds_per_image",), lambda value: f"{value:.3f}"),
    "training (min)": (("seconds", "training"), lambda value: f"{value / 60:.1f}"),
    "peak memory (GB)": (("peak_memory_bytes", "process"), lambda value: f"{value / 1e9:.2f}"),
    "peak GPU memory (GB)": (("peak_memory_bytes", "GPU"), lambda value: f"{value / 1e9:.2f}"),
}
"""Where each number is in metrics.json, and how it is written."""


def _costs(results: Sequence[SystemResults]) -> str:
    shown = {
        head: (path, write)
        for head, (path, write) in COSTS.items()
        if any(each.cost(*path) for each in results)
    }
    rows = []
    for each in results:
        values = [(each.cost(*path), write) for path, write in shown.values()]
        cells = [write(mean_and_deviation(v)[0]) if v else "–" for v, write in values]
        rows.append([each.title, *cells])
    return (
        f"{markdown(['system', *shown], rows)}\n\n"
        "Means over seeds. The file holds what was trained. FLOPs (a multiply-add counts as two) "
        "and seconds are of all structures of one image, from its pixels to its masks, one image "
        "at a time. Peak memory is that of training and test."
    )


def differences_in_words(shown: Sequence[SystemResults], reference: SystemResults | None) -> str:
    finished = [each for each in shown if each.finished]
    if reference is None or not reference.finished:
        reference = finished[0]
    found = differences(finished, reference)
    if not found:
        return f"No system has finished a seed that {reference.title} has finished."
    count = found[0].patients
    rows = [
        [
            each.system.title,
            f"{100 * each.mean:+.2f}",
            f"{each.p:.2g}",
            f"{each.adjusted_p:.2g}",
            "yes" if each.is_real else "no",
        ]
        for each in found
    ]
    table = markdown(
        ["system", f"Dice less {reference.title}'s (points)", "p", "p, Holm", "real"], rows
    )
    text = (
        f"Over the test patients ({count}), each with the mean Dice of their images, structures "
        "and seeds: Wilcoxon's signed-rank test of the differences, two-sided, the p-values "
        f"adjusted for the {len(found)} comparisons by Holm's method. A difference is called real "
        f"where the adjusted p is below {SIGNIFICANCE}. It is one of these trainings on these "
        "patients; the seeds' spread is in the tables above."
    )
    if len(found) * smallest_p(count) >= SIGNIFICANCE:
        text += (
            f" Of so few patients the smallest p that the test can give is "
            f'{smallest_p(count):.2g}, too much for {len(found)} comparisons: a "no" here says '
            "nothing."
        )
    return f"{table}\n\n{text}"
