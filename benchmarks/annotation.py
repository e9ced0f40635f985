"""How many clicks an image takes before and after training on what was annotated: a scripted
annotator on synthetic echocardiography.

    python -m benchmarks.annotation

The annotator knows the reference, and sees what the page shows: masks of all structures without
overlaps. Until each has an IoU of 0.8, and of 0.9, with the reference, it clicks in the middle of
the largest error of the worst one, and gives a structure up after 20 clicks, which then count. What
one structure has of another is clicked on as the other's. Before any training every structure takes
a first click; afterwards the adapter is asked for it by name, and a mask that is good enough takes
none. The training is the page's own: `adapterkit train` with its defaults, on the first 10, 20 and
40 images, patient by patient. The images that are clicked on are of other patients, and no training
has seen them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from adapterkit.system.command_line import run

if TYPE_CHECKING:
    import numpy as np

    from adapterkit.data.dataset import LabelledImage
    from adapterkit.web.drafts import Point
    from adapterkit.web.model import Model


@dataclass(frozen=True)
class Options:
    """What is compared."""

    images: tuple[int, ...] = (10, 20, 40)
    """On how many images is trained."""
    images_of_a_patient: int = 4
    """So many of each of their patients, at most 4: of 1, each image is of another heart."""
    test_patients: int = 6
    """Patients with four images each, on which clicks are counted."""
    targets: tuple[float, ...] = (0.8, 0.9)
    """IoU of each structure at which it is done; ascending."""
    most: int = 20
    """Clicks on a structure after which the annotator gives up."""
    image_size: int = 256
    """Side of the images, in pixels."""
    epochs: int | None = None
    """Of a training; by default the page's."""
    seed: int = 0
    """Of the hearts."""
    out: Path = Path("runs/annotation")
    """Folder for images, trainings and the figure."""


@dataclass(frozen=True)
class Counted:
    """The clicks on the test images by one model until one target.

    Attributes:
        trained_on: how many images; 0 before any training.
        target: the IoU.
        clicks: on each structure, by its name, of each image.
        given_up: share of the structures that did not get there.
    """

    trained_on: int
    target: float
    clicks: Mapping[str, Sequence[int]]
    given_up: float

    @property
    def of_images(self) -> list[int]:
        """Clicks of each image, on all structures."""
        return [sum(each) for each in zip(*self.clicks.values(), strict=True)]

    @property
    def mean(self) -> float:
        """Clicks per image."""
        return fmean(self.of_images)

    @property
    def untouched(self) -> float:
        """Share of the structures that took no click."""
        all_clicks = [count for each in self.clicks.values() for count in each]
        return all_clicks.count(0) / len(all_clicks)


@dataclass
class Annotated:
    """What the annotator did so far on one image.

    Attributes:
        points: the clicks on each structure, by its label.
        spent: how many clicks there were for the sake of each.
        counts: `spent` as it was when each target was reached or given up, and how many structures
            had not got there.
    """

    points: "dict[int, tuple[Point, ...]]"
    spent: dict[int, int]
    counts: list[tuple[dict[int, int], int]]


def annotate(
    model: "Model", adapter: str | None, native: "LabelledImage", names: Mapping[int, str],
    options: Options,
) -> Annotated:  # fmt: skip
    """Click until each structure has each target, or is given up.

    Args:
        model: which is asked.
        adapter: with which; None: the base alone. What it knows by name has a mask before a click.
        native: the image, and the masks that are wanted.
        names: of their labels.
        options: targets, and most clicks.
    """
    import numpy as np

    wanted = {label: native.labels == label for label in names}
    done = Annotated(dict.fromkeys(names, ()), dict.fromkeys(names, 0), [])
    while True:
        masks = shown_masks(model, adapter, native, names, done.points)
        ious = {}
        for label, mask in masks.items():
            whole = int((mask | wanted[label]).sum())
            ious[label] = int((mask & wanted[label]).sum()) / whole if whole else 1.0
        while True:
            target = options.targets[len(done.counts)]
            missing = [label for label, iou in ious.items() if iou < target]
            able = [label for label in missing if done.spent[label] < options.most]
            if able:
                break
            spent = {
                label: options.most if label in missing else count
                for label, count in done.spent.items()
            }
            done.counts.append((spent, len(missing)))
            if len(done.counts) == len(options.targets):
                return done
        worst = min(able, key=lambda label: ious[label])
        label, point = next_click(worst, masks[worst], native.labels, np.array(list(names)))
        done.points[label] = (*done.points[label], point)
        done.spent[worst] += 1


def shown_masks(
    model: "Model",
    adapter: str | None,
    native: "LabelledImage",
    names: Mapping[int, str],
    points: "Mapping[int, tuple[Point, ...]]",
) -> "dict[int, np.ndarray]":
    """The masks of all structures as the page shows them, without overlaps; by label."""
    import numpy as np

    from adapterkit.data.image_file import image_of_array
    from adapterkit.web import rle
    from adapterkit.web.model import Ask
    from adapterkit.web.overlaps import Claim, resolve

    image = image_of_array(native.image, frames=False)
    by_name = {each.casefold(): each for each in model.classes(adapter)}
    known = {label: by_name.get(name.casefold()) for label, name in names.items()}
    asked = [label for label in names if known[label] is not None or points[label]]
    asks = [Ask(known[label], points[label]) for label in asked]
    found = model.ask(native.image.tobytes(), lambda: (image, 0), adapter, asks) if asks else []
    claims = {
        label: Claim(
            rle.decode(each.rle, native.labels.shape),
            inside=[(point.x, point.y) for point in points[label] if point.inside],
        )
        for label, each in zip(asked, found, strict=True)
    }
    nothing = dict.fromkeys(names, np.zeros(native.labels.shape, bool))
    return nothing | resolve(claims, names)[0]


def next_click(
    label: int, mask: "np.ndarray", labels: "np.ndarray", known: "np.ndarray"
) -> "tuple[int, Point]":
    """The structure to click on, and where: the middle of the largest piece of what is wrong.

    What a structure has of another one is clicked on as the other's, which takes it.

    Args:
        label: of the structure whose mask is worst.
        mask: it, (H, W).
        labels: the label map that is wanted, (H, W).
        known: the labels that are worked on.
    """
    import numpy as np
    from scipy import ndimage

    from adapterkit.web.drafts import Point
    from adapterkit.web.held_out import middle

    best: tuple[int, Any, bool] = (0, mask, True)
    for inside, wrong in ((True, (labels == label) & ~mask), (False, mask & (labels != label))):
        found: Any = ndimage.label(wrong)
        pieces = found[0]
        sizes = np.bincount(pieces.ravel())[1:]
        if len(sizes) and sizes.max() > best[0]:
            best = (int(sizes.max()), pieces == sizes.argmax() + 1, inside)
    point = middle(best[1])
    there = int(labels[int(point.y), int(point.x)])
    if best[2] or there not in known:
        return label, Point(point.x, point.y, best[2])
    return there, Point(point.x, point.y, True)


def count(
    model: "Model", adapter: str | None, trained_on: int, records: Sequence[Any], options: Options
) -> list[Counted]:
    """Annotate the records' images with the help of an adapter, or None, the base."""
    names = dict(records[0].structures)
    done = [annotate(model, adapter, each.read(), names, options) for each in records]
    found = []
    for k, target in enumerate(options.targets):
        clicks = {
            name: [each.counts[k][0][label] for each in done] for label, name in names.items()
        }
        missed = sum(each.counts[k][1] for each in done)
        found.append(Counted(trained_on, target, clicks, missed / (len(names) * len(done))))
    return found


def write_folder(records: Sequence[Any], folder: Path) -> None:
    """A folder as `adapterkit serve` leaves it, with all images accepted."""
    import json

    from PIL import Image

    if (folder / "structures.json").exists():
        return
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for record in records:
        native = record.read()
        for kind, array in (("images", native.image), ("masks", native.labels)):
            Image.fromarray(array).save(folder / kind / f"{record.name.replace('/', '_')}.png")
    named = [{"label": k, "name": name} for k, name in records[0].structures.items()]
    (folder / "structures.json").write_text(json.dumps({"structures": named}))


def train_on(model: "Model", records: Sequence[Any], options: Options) -> str:
    """Train as the page does on records as they would have been accepted; the adapter's name."""
    import time

    from adapterkit.web.training_job import TrainingJob
    from adapterkit.web.training_record import TrainingWish
    from adapterkit.web.worklist import WorkList
    from adapterkit.web.workspace import Workspace

    folder = options.out / f"trained_on_{len(records)}"
    write_folder(records, folder)
    workspace = Workspace(WorkList(folder), model)
    workspace.use(None)  # Compared with the base, not with an adapter that has seen these images.
    job = TrainingJob(workspace, model, group=r"patient\d+")
    job.start(TrainingWish(epochs=options.epochs))
    try:
        while (told := job.told() or {})["status"] == "running":
            time.sleep(0.5)
    finally:
        job.close()
    if told["status"] != "done":
        raise RuntimeError(f"the training on {len(records)} images: {told['message']}")
    print(f"{len(records)} images: {told['message']}", flush=True)
    if told["offer"]:
        job.dismiss()  # It is loaded under another name.
    file = next((folder / ".adapterkit/runs").glob("*/adapter.safetensors"))
    return model.load(file, f"on_{len(records)}")


def table(counted: Sequence[Counted]) -> str:
    """Of all that have one target, as Markdown."""
    before, names = counted[0], list(counted[0].clicks)
    heads = [
        "trained on", f"clicks per image until IoU {before.target:g}", "fewer", *names,
        "without a click", "given up",
    ]  # fmt: skip
    rows = []
    for each in counted:
        rows.append(
            [
                str(each.trained_on or "nothing: the base"),
                f"{each.mean:.1f}",
                "" if each is before else f"{before.mean / max(each.mean, 1e-9):.1f} times",
                *(f"{fmean(each.clicks[name]):.1f}" for name in names),
                f"{each.untouched:.0%}",
                f"{each.given_up:.0%}",
            ]
        )
    head = f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7")


def draw(counted: Sequence[Sequence[Counted]], path: Path, options: Options) -> None:
    """Clicks per image over the images trained on, each test image as a dot, and by structure."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, panels = plt.subplots(
        1, len(counted), figsize=(4.4 * len(counted), 3.6), layout="constrained", sharey=True
    )
    draws = np.random.default_rng(0)
    for of_target, axes in zip(counted, np.atleast_1d(panels), strict=True):
        for k, each in enumerate(of_target):
            x = k + draws.uniform(-0.13, 0.13, len(each.of_images))
            axes.scatter(x, each.of_images, s=14, color="0.7", linewidths=0)
            axes.annotate(f"{each.mean:.1f}", (k, each.mean), (8, 6), textcoords="offset points")
        axes.plot([each.mean for each in of_target], "o-", color="black", label="an image")
        for name, colour in zip(of_target[0].clicks, _COLOURS, strict=False):
            means = [fmean(each.clicks[name]) for each in of_target]
            axes.plot(means, "o-", color=colour, label=name)
        axes.set_xticks(range(len(of_target)), [str(each.trained_on) for each in of_target])
        axes.set_xlabel("images trained on (0: the base alone)")
        axes.set_title(f"until an IoU of {of_target[0].target:g}")
        axes.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(panels)[0]
    first.set_ylim(bottom=0)
    first.set_ylabel(f"clicks, at most {options.most} a structure")
    np.atleast_1d(panels)[-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(options: Options) -> None:
    """Count, print the table and write the figure."""
    import adapterkit as ak
    from adapterkit.data.collections import open_collection
    from adapterkit.data.synthetic.phantom import write_phantom
    from adapterkit.web.model import Model

    if not 1 <= options.images_of_a_patient <= 4:
        raise ValueError(
            f"--images-of-a-patient {options.images_of_a_patient}: expected 1 to 4: a patient has "
            "two views of two phases"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    of_a_patient = options.images_of_a_patient
    patients = options.test_patients + -(-max(options.images) // of_a_patient)
    data = write_phantom(
        options.out / f"phantom_{patients}", patients, options.seed, options.image_size
    )
    records = open_collection(data).records
    test = records[: 4 * options.test_patients]
    # Every patient has two views of two phases, in one order; of one image, these come in turn.
    hearts = [records[k : k + 4] for k in range(len(test), len(records), 4)]
    pool = [heart[(k + n) % 4] for k, heart in enumerate(hearts) for n in range(of_a_patient)]
    model = Model(ak.Predictor(ak.mini_sam()))
    counted = [[each] for each in count(model, None, 0, test, options)]
    for images in sorted(options.images):
        adapter = train_on(model, pool[:images], options)
        for of_target, each in zip(
            counted, count(model, adapter, images, test, options), strict=True
        ):
            of_target.append(each)
            print(table(of_target), flush=True)
    draw(counted, options.out / "annotation.png", options)
    print(f"figure in {options.out / 'annotation.png'}")


if __name__ == "__main__":
    run(main, Options)
