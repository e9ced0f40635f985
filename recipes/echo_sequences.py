"""Segment the beating heart, frame by frame and with attention over time, and measure what of it.

    python -m recipes.echo_sequences                       synthetic hearts, a small SAM, no files
    python -m recipes.echo_sequences --seeds 0 1 2
    python -m recipes.echo_sequences --labelled ed-es --epochs 8
    python -m recipes.echo_sequences --clicks --patients 24
    python -m recipes.echo_sequences --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth

The same adapter is trained twice on the same clips, for the same steps: SAMUS+ as it is, to which
each frame is an image of its own, and with attention over time. Both are asked for the structures
by name, without a click. Both are then measured on whole sequences of patients that neither has
seen: Dice of each frame, jitter of the area of the left ventricle, and the ejection fraction. With
--clicks, each also goes on from clicks in one frame, whose masks prompt the next, and so on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterkit.system.command_line import check_positive, run

if TYPE_CHECKING:
    import pandas as pd

    from adapterkit.data.collections import Collection
    from adapterkit.data.dataset import SegmentationDataset
    from adapterkit.evaluation.sequences import SegmentedSequence
    from adapterkit.promptable.protocol import Promptable

SMALL = 96
"""Pixels a side for the small SAM, so that all takes minutes on two cores."""

METHODS = {"frame by frame": "samus_plus", "over time": "samus_plus_video"}

FROM_CLICKS = "{}, from clicks in one frame"


@dataclass(frozen=True)
class Config:
    data: Path | None = None
    """CAMUS with its half sequences. Without it, synthetic hearts are made and used."""
    checkpoint: Path | None = None
    """A SAM checkpoint, sam_vit_b_01ec64.pth say. Without it, adapterkit's own small SAM."""
    out: Path | None = None
    """Folder for the results, new or empty. By default, a new one under runs/echo_sequences."""
    resume: Path | None = None
    """Folder of an interrupted run, which goes on as it was configured, without other options."""
    labelled: Literal["all", "ed-es"] = "all"
    """Of which frames the masks are learned from: all that have one, or those of ED and ES alone.
    Measured are all, in either case."""
    clicks: bool = False
    """Train with clicks and boxes too, and segment the sequences also from a click on each
    structure in the first frame that has masks: its masks prompt the frame beside it, and so on."""
    patients: int | None = None
    """Use so many patients. By default all, and 48 synthetic ones."""
    image_size: int | None = None
    """Side of the square input, in pixels. By default a quarter of the base's, or 96 for the small
    SAM."""
    frames: int = 8
    """Of a clip."""
    batch_size: int = 2
    """Clips per step."""
    epochs: int | None = None
    """By default 20, or 3 without a checkpoint."""
    learning_rate: float | None = None
    """The highest. By default 1e-4, or 1e-3 without a checkpoint."""
    seeds: tuple[int, ...] = (0,)
    """Of the first weights, the order and the clips; the patients are divided alike for all."""


def main(config: Config) -> None:
    import pandas as pd
    from rich.console import Console

    from adapterkit.data.collections import open_collection
    from adapterkit.data.synthetic.beat import Beat
    from adapterkit.data.synthetic.phantom import write_phantom
    from adapterkit.system.files import atomic_write
    from adapterkit.training.run_folder import as_configured, open_run, write_json, write_text

    config = as_configured(config)
    check_positive(
        config, "image_size", "epochs", "frames", "batch_size", "learning_rate", "patients"
    )
    console, data = Console(), config.data
    if data is None:
        patients, size = config.patients or 48, config.image_size or SMALL
        folder = Path(f"runs/beating_{patients}_patients_{size}")
        data = write_phantom(folder, patients, seed=1, image_size=size, beat=Beat())
    collection = open_collection(data, "camus_sequences", labelled=config.labelled)
    if config.patients is not None:
        collection = collection.take(config.patients)
    out = open_run(config, "echo_sequences")
    tables = []
    for seed in config.seeds:
        found = {}
        for title, method in METHODS.items():
            file = out / f"{method}_seed_{seed}" / "patients.csv"
            if not file.exists():
                own = train_and_segment(config, collection, data, title, seed, file.parent)
                measured = [table_of(each, data).assign(method=of) for of, each in own.items()]
                with atomic_write(file) as temporary:
                    pd.concat(measured).to_csv(temporary, index=False)
                found |= own
            tables.append(pd.read_csv(file).assign(seed=seed))
        if METHODS.keys() <= found.keys():
            shown = {title: found[title] for title in METHODS}
            draw_patients(shown, pd.concat(tables[-2:]).query("method in @METHODS"), out)
    table = comparison(pd.concat(tables))
    write_text(out / "table.md", f"{table}\n")
    write_json(out / "metrics.json", summaries(pd.concat(tables)))
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"results in {out}", soft_wrap=True)


def train_and_segment(
    config: Config, collection: "Collection", data: Path, title: str, seed: int, folder: Path
) -> "dict[str, list[SegmentedSequence]]":
    """The test patients' sequences, as a method segments them after training; by how it does."""
    from rich.console import Console

    from adapterkit.data.collections import open_collection
    from adapterkit.data.dataset import SegmentationDataset
    from adapterkit.data.synthetic.phantom import SYNTHETIC
    from adapterkit.encoders.registry import view
    from adapterkit.evaluation.sequences import segment_sequences
    from adapterkit.methods import find_method
    from adapterkit.training.accelerator import make_accelerator
    from adapterkit.training.experiment import Experiment
    from adapterkit.training.runner import perform
    from adapterkit.training.settings import settings_from
    from adapterkit.training.subjects import Adapted, Base

    base, is_small = Base.of(config.checkpoint), not config.checkpoint
    method = find_method(METHODS[title])
    image_size = config.image_size or (SMALL if is_small else view(base.sam).image_size // 4)
    structures = tuple(collection.structures.values())
    parts = method.parts(view(base.sam), image_size=image_size, structures=structures)
    experiment = Experiment(
        subject=Adapted(base.sam, base.name, method.title, parts),
        collection=collection,
        data=SYNTHETIC if config.data is None else str(config.data),
        split=collection.divided(),
        settings=settings_from(
            config,
            epochs=config.epochs or (3 if is_small else 20),
            learning_rate=config.learning_rate or base.learning_rate,
            schedule="cosine",
            warmup_steps=20,
            clip_norm=1.0,
            points="mixed" if config.clicks else "class",
            seed=seed,
        ),
        image_size=image_size,
        prompts=("class",),
    )
    folder.mkdir(parents=True, exist_ok=True)
    done = perform(experiment, lambda: folder, make_accelerator(), Console())
    if done is None:
        raise ValueError("this recipe runs in one process: start it without accelerate launch")
    # All masks that there are, whichever were learned from.
    all_labelled = open_collection(data, "camus_sequences").of_groups(experiment.split.test)
    test = SegmentationDataset(all_labelled, image_size)
    found = {title: segment_sequences(done.model, test, seed=seed, progress="whole sequences")}
    if config.clicks:
        found[FROM_CLICKS.format(title)] = from_clicks(done.model, test, found[title], seed)
    return found


def from_clicks(
    model: "Promptable",
    dataset: "SegmentationDataset",
    sequences: "list[SegmentedSequence]",
    seed: int,
) -> "list[SegmentedSequence]":
    """The sequences of a data set again, from a click on each structure in one frame.

    The first frame that has masks is prompted with the structures' names and a random point in
    each; any other with the names and the masks of the frame beside it.
    """
    import numpy as np
    from rich.progress import track

    from adapterkit.data.clips import sequences_in
    from adapterkit.evaluation.clinical import ATRIUM, VENTRICLE, measure_sequence
    from adapterkit.inference.predictor import Predictor
    from adapterkit.promptable.points import random_points
    from adapterkit.system.random import seeded_generator

    predictor, names = Predictor(model), dataset.structures
    found = []
    pairs = zip(sequences_in(dataset), sequences, strict=True)
    for images, sequence in track([*pairs], "from clicks in one frame", transient=True):
        frame = int(sequence.labelled.argmax())
        masks, spacing = dataset.native_reference(images[frame])
        points, labels = random_points(masks, seeded_generator(seed, sequence.name))
        film = np.stack([dataset.records[image].read().image for image in images])
        by_frame = predictor.predict_sequence(
            film, frame, points=points.numpy(), labels=labels.numpy(), classes=names
        )
        label_maps = {number: each.label_map() for number, each in by_frame}
        predicted = np.stack([label_maps[number] for number in range(len(images))])
        at = {name: label for label, name in enumerate(names, 1)}
        measured = measure_sequence(
            predicted, spacing, sequence.name, at[VENTRICLE], at.get(ATRIUM)
        )
        found.append(replace(sequence, predicted=predicted, measured=measured))
    return found


def table_of(sequences: "list[SegmentedSequence]", data: Path) -> "pd.DataFrame":
    """A row for each test patient, beside the ejection fraction that the data state."""
    from adapterkit.data.collections.camus import STRUCTURES, find_sequences, read_info
    from adapterkit.evaluation.sequences import patient_table

    known = {each.patient: read_info(each) for each in find_sequences(data)}
    true_ef = {patient: info and info.ejection_fraction for patient, info in known.items()}
    return patient_table(sequences, tuple(STRUCTURES.values()), true_ef)


def draw_patients(
    found: "dict[str, list[SegmentedSequence]]", table: "pd.DataFrame", out: Path
) -> None:
    """A figure of the patients of the highest and the lowest ejection fraction."""
    from adapterkit.evaluation.sequence_figure import sequence_figure

    rows = table.sort_values("true ef", kind="stable").to_dict("records")
    for patient in {rows[0]["patient"], rows[-1]["patient"]}:
        of_patient = [row for row in rows if row["patient"] == patient]
        said = ", ".join(f"{row['method']} {row['ef']:.0f} %" for row in of_patient)
        own = {
            title: [each for each in sequences if each.attributes["patient"] == patient]
            for title, sequences in found.items()
        }
        title = f"{patient}: ejection fraction {of_patient[0]['true ef']:.0f} %; {said}"
        sequence_figure(title, own, out / f"{patient}.png")


def summaries(patients: "pd.DataFrame") -> "dict[str, list[dict[str, float]]]":
    """What each training came to, by how sequences were segmented."""
    from adapterkit.evaluation.sequences import summary_of_patients

    return {
        method: [
            {"seed": seed, **summary_of_patients(of)}  # pyright: ignore[reportReturnType]
            for seed, of in patients.query("method == @method").groupby("seed")
        ]
        for method in patients["method"].unique()
    }


def comparison(patients: "pd.DataFrame") -> str:
    """Means over seeds with their spread, and whether the methods differ over patients."""
    import numpy as np

    from adapterkit.evaluation.tables import markdown

    heads = {
        "dice": ("Dice (%)", 100), "jitter": ("jitter (%)", 100), "ef mae": ("EF MAE (points)", 1),
        "ef bias": ("EF bias (points)", 1), "ef correlation": ("EF correlation", 1),
    }  # fmt: skip
    rows = []
    for method, of_seeds in summaries(patients).items():
        cells = []
        for name, (_, scale) in heads.items():
            values = np.array([scale * each[name] for each in of_seeds])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}")
        rows.append([method, *cells])
    alone, over_time = METHODS
    pairs = [(over_time, alone)]
    if (clicked := FROM_CLICKS.format(alone)) in {*patients["method"]}:
        pairs.append((over_time, clicked))
    return "\n".join(
        [
            markdown(["", *(head for head, _ in heads.values())], rows),
            "",
            *(line for pair in pairs for line in differences(patients, *pair)),
            f"Over {len({*patients['patient']})} patients, each with the mean of "
            f"{len({*patients['seed']})} trainings; p by Wilcoxon's signed-rank test.",
            f"Jitter of the reference: {100 * patients['jitter of the reference'].mean():.2f} %.",
        ]
    )


def differences(patients: "pd.DataFrame", method: str, other: str) -> list[str]:
    """In Dice and jitter, with the test over patients, each with the mean of the trainings."""
    from scipy.stats import wilcoxon

    lines = []
    for name, title in (("dice", "Dice"), ("jitter", "Jitter")):
        means = patients.pivot_table(name, index="patient", columns="method", dropna=False)
        # Of a patient in whom nothing was found, there is no jitter.
        means = means.dropna(subset=[method, other])
        ours, theirs = means[method].to_numpy(), means[other].to_numpy()
        if name == "dice":
            change = f"{100 * (ours.mean() - theirs.mean()):+.2f} points"
        elif theirs.any():
            change = f"{100 * (ours.mean() / theirs.mean() - 1):+.1f} %"
        else:
            change = "not known, as nothing was found"
        # Of fewer patients, no difference could be told from chance.
        if len(ours) > 5:
            p = wilcoxon(ours, theirs).pvalue  # pyright: ignore[reportAttributeAccessIssue]
            change = f"{change}, p = {p:.2g}"
        lines.append(f"{title} {method}, beside {other}: {change}")
    return lines


if __name__ == "__main__":
    run(main, Config)
