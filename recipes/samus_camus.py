"""Adapt a Segment Anything model to CAMUS echocardiography with SAMUS, and measure what it gained.

    python -m recipes.samus_camus                      synthetic echo, a small SAM, no files needed
    python -m recipes.samus_camus --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth

The protocol is the paper's: patients split 7:2:1 at random into training, test and validation;
one random positive point per structure as prompt; Dice + BCE; Adam at 1e-4, batches of 8 images.
"""

import csv
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import adapterkit as ak
from adapterkit.command_line import run
from adapterkit.data.camus import STRUCTURES, CamusDataset, find_frames, split_patients
from adapterkit.data.phantom import write_phantom
from adapterkit.files import atomic_write
from adapterkit.metrics import summarise
from adapterkit.plots import Case, segmentation_figure, training_curves
from adapterkit.sam import SMALL
from adapterkit.training import Epoch, evaluate, make_accelerator, predict, train

console = Console()


@dataclass(frozen=True)
class Config:
    data: Path | None = None
    """CAMUS as it is unpacked (NIfTI). Without it, synthetic echo is made and used."""
    checkpoint: Path | None = None
    """A SAM checkpoint, sam_vit_b_01ec64.pth say. Without it, a small SAM with random weights."""
    out: Path | None = None
    """Folder for the results, new or empty. By default, a new one under runs/samus_camus."""
    image_size: int | None = None
    """Side of SAMUS's square input, in pixels. By default a quarter of the base's: 256 for SAM."""
    train_decoder: bool | None = None
    """Also train the mask decoder, which SAMUS keeps frozen. By default only without a checkpoint:
    a frozen random decoder cannot draw a mask."""
    epochs: int | None = None
    """Passes over the training images. By default the paper's 50, or 12 without a checkpoint."""
    batch_size: int = 8
    """Images per step; each is encoded once for all its structures."""
    learning_rate: float | None = None
    """Of Adam. By default the paper's 1e-4, or 1e-3 without a checkpoint."""
    patients: int | None = None
    """Use only so many patients, drawn at random, for a quick look."""
    zero_shot: bool = True
    """Also evaluate the base as it comes, at its own input size."""
    seed: int = 0
    """Of the split, the initial weights, the order and the prompts."""


def main(config: Config) -> None:
    start = time.monotonic()
    check_positive(config, "image_size", "epochs", "batch_size", "learning_rate", "patients")
    accelerator = make_accelerator(config.seed)
    torch.manual_seed(config.seed)

    # The base, and what depends on whether it is pretrained.
    pretrained = config.checkpoint is not None
    if config.checkpoint is not None:
        sam, base = ak.load_sam(config.checkpoint), config.checkpoint.name
    else:
        sam = ak.build_sam(SMALL, seed=config.seed)
        base = "small SAM, RANDOM weights (no --checkpoint given)"
    base_size = sam.image_encoder.img_size
    image_size = config.image_size or base_size // 4
    epochs = config.epochs or (50 if pretrained else 12)
    learning_rate = config.learning_rate or (1e-4 if pretrained else 1e-3)
    train_decoder = not pretrained if config.train_decoder is None else config.train_decoder

    # The data.
    if config.data is None:
        data_folder = write_phantom(Path("runs/phantom_48_patients"), patients=48)
        data = "SYNTHETIC echo made by adapterkit (no --data given)"
    else:
        data_folder, data = config.data, str(config.data)
    frames = find_frames(data_folder)
    patients = sorted({frame.patient for frame in frames})
    if config.patients is not None:
        order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(config.seed))
        patients = [patients[i] for i in order[: config.patients]]
    split = split_patients(patients, seed=config.seed)
    sets = {
        name: [frame for frame in frames if frame.patient in set(members)]
        for name, members in asdict(split).items()
    }
    console.print(f"base  {base}\ndata  {data}")
    for name, members in asdict(split).items():
        console.print(f"      {name}: {len(members)} patients, {len(sets[name])} images")
    folder = new_folder(config.out)

    # Before: the base as it comes.
    results: dict[str, Any] = {}
    segmenter = ak.Segmenter(sam).to(accelerator.device)
    if config.zero_shot:
        console.print(f"evaluating the base, zero-shot, at {base_size}x{base_size} pixels")
        test = CamusDataset(sets["test"], base_size)
        names, values = evaluate(segmenter, test, config.seed, batch_size=1)
        # Both are reported in pixels of SAMUS's input, so that distances compare.
        results["zero-shot"] = in_pixels_of(image_size, base_size, values)
        write_per_image(folder / "per_image_zero_shot.csv", names, results["zero-shot"])

    # SAMUS, trained.
    parts = ak.methods.samus(image_size)
    method = "SAMUS"
    if train_decoder:
        parts.append(ak.parts.Train("mask_decoder"))
        method = "SAMUS + trained mask decoder"
    ak.inject(sam, parts)
    console.print(ak.summary(sam).table())
    training, validation, test = (
        CamusDataset(sets[name], image_size) for name in ("train", "validation", "test")
    )
    adapter_file = folder / "adapter.safetensors"

    def save(epoch: Epoch) -> None:
        notes = {"data": data, "base": base, "seed": config.seed, **asdict(epoch)}
        ak.save_adapter(sam, adapter_file, classes=list(STRUCTURES.values()), training=notes)

    training_start = time.monotonic()
    history = train(
        segmenter,
        training,
        validation,
        epochs=epochs,
        batch_size=config.batch_size,
        learning_rate=learning_rate,
        seed=config.seed,
        accelerator=accelerator,
        on_improvement=save,
    )
    training_seconds = time.monotonic() - training_start

    # After: the saved adapter of the best epoch, on the base that it came from.
    ak.load_adapter(ak.eject(sam), adapter_file)
    names, results[method] = evaluate(segmenter, test, config.seed, config.batch_size)
    write_per_image(folder / "per_image.csv", names, results[method])

    summaries = {name: summarise(v, list(STRUCTURES.values())) for name, v in results.items()}
    table = markdown_table(summaries)
    write_text(folder / "table.md", f"{table}\n\nBase: {base}. Data: {data}.\n")
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resolved = replace(
        config,
        image_size=image_size,
        epochs=epochs,
        learning_rate=learning_rate,
        train_decoder=train_decoder,
    )
    write_json(folder / "config.json", asdict(resolved))
    write_json(
        folder / "metrics.json",
        {
            "base": base,
            "data": data,
            "patients": {name: list(members) for name, members in asdict(split).items()},
            "test": summaries,
            "history": [asdict(epoch) for epoch in history],
            "trained_parameters": ak.summary(sam).trained_parameters,
            "seconds": {"training": training_seconds, "all": time.monotonic() - start},
            "peak_memory_bytes": peak_memory,
        },
    )
    training_curves([asdict(epoch) for epoch in history], folder / "curves.png")
    cases = best_median_worst(segmenter, test, results[method]["dice"], config.seed)
    segmentation_figure(cases, folder / "segmentations.png")
    console.print(table, markup=False, soft_wrap=True)
    console.print(
        f"trained in {training_seconds / 60:.1f} min, peak memory {peak_memory / 1e9:.1f} GB\n"
        f"results in {folder}",
        soft_wrap=True,
    )


def check_positive(config: Config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a positive number")


def new_folder(folder: Path | None) -> Path:
    """The folder for the results, made; one named by the time if `folder` is None."""
    folder = folder or Path("runs/samus_camus") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder} exists and is not an empty folder; name another")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_pixels_of(size: int, measured_at: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics with distances scaled from pixels of one input size to those of another."""
    scaled = {"hausdorff", "hausdorff95", "average_surface_distance"}
    return {k: v * size / measured_at if k in scaled else v for k, v in values.items()}


def best_median_worst(
    segmenter: ak.Segmenter, test: CamusDataset, dice: Tensor, seed: int
) -> list[Case]:
    """The test images of the highest, median and lowest mean Dice, segmented."""
    order = dice.mean(dim=1).argsort(descending=True).tolist()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    cases = []
    for title, index in chosen.items():
        subset = torch.utils.data.Subset(test, [index])
        prediction = next(predict(segmenter, subset, seed))
        cases.append(
            Case(
                title=f"{title}: {prediction.names[0]}",
                image=test[index]["image"][0].numpy(),
                reference=prediction.reference[0].numpy(),
                predicted=prediction.predicted[0].numpy(),
                points=prediction.points[0].numpy(),
                structures=list(STRUCTURES.values()),
                dice=dice[index].tolist(),
            )
        )
    return cases


def markdown_table(summaries: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Dice in % and Hausdorff distances in pixels, mean ± standard deviation over test images."""
    lines = [
        "| model | structure | Dice (%) | HD (px) | HD95 (px) |",
        "|---|---|---|---|---|",
    ]
    for model, structures in summaries.items():
        for structure, metrics in structures.items():
            cells = [
                f"{scale * metrics[name]['mean']:.2f} ± {scale * metrics[name]['std']:.2f}"
                for name, scale in (("dice", 100), ("hausdorff", 1), ("hausdorff95", 1))
            ]
            lines.append(f"| {model} | {structure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_per_image(path: Path, names: Sequence[str], values: Mapping[str, Tensor]) -> None:
    """One row per image and structure, one column per metric."""
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "structure", *values])
        for n, name in enumerate(names):
            for k, structure in enumerate(STRUCTURES.values()):
                writer.writerow([name, structure, *(f"{v[n, k]:.6g}" for v in values.values())])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_text(path: Path, content: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(content)


if __name__ == "__main__":
    run(main, Config)
