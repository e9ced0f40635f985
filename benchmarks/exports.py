"""What an export gains and loses: PyTorch, ONNX and int8, side by side on the CPU.

    python -m benchmarks.exports                              SAMUS on the small Sam, trained first
    python -m benchmarks.exports --adapter echo.safetensors   an adapter of one's own
    python -m benchmarks.exports --random-vit-b               speed and size only

Dice is over synthetic patients that no recipe trains on, one random point per structure. Each
way has a process of its own, of as many threads as PyTorch has here, and they take turns, so that a
machine that is busy for a while is so for all. "Load" is importing and loading, "first mask" from
an image at hand to a mask, "click" what each further point costs on the same image, "switch" what
it takes to have another adapter at hand: PyTorch has both on one base, onnxruntime opens the other
export.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import adapterkit as ak
from adapterkit.system.command_line import check_positive, console, run
from recipes import samus_camus

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

MEASURED = ("first mask", "click", "switch")


@dataclass(frozen=True)
class Config:
    adapter: Path | None = None
    """Of the base. Without it, the recipe samus_camus trains SAMUS on synthetic echo first."""
    checkpoint: Path | None = None
    """The base, a SAM checkpoint. By default adapterkit's own small SAM."""
    random_vit_b: bool = False
    """Instead, SAMUS on ViT-B at 256x256 with random weights: speed and size, no Dice."""
    epochs: int | None = None
    """Of the training. By default the recipe's."""
    patients: int = 8
    """Synthetic ones that Dice is over."""
    rounds: int = 5
    """Turns of each way, after one that does not count."""
    out: Path | None = None
    """Folder for the table, the exports and what was trained. By default, one in runs/exports."""


@dataclass(frozen=True)
class Way:
    """How a model runs.

    Attributes:
        name: in the table.
        arguments: of `benchmarks.contestant`.
        files: that it needs beside the program.
    """

    name: str
    arguments: Sequence[str | Path]
    files: Sequence[Path]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def main(config: Config) -> None:
    import torch

    from adapterkit.data.collections.camus import CamusDataset, find_frames
    from adapterkit.data.synthetic.phantom import write_phantom
    from adapterkit.evaluation.evaluation import dice_of_images
    from adapterkit.promptable.stock_sam import save_sam
    from adapterkit.training.run_folder import new_folder, write_text
    from benchmarks.measuring import ceiling

    check_positive(config, "epochs", "patients", "rounds")
    if config.random_vit_b and (config.adapter or config.checkpoint):
        raise ValueError("--random-vit-b has neither --adapter nor --checkpoint; drop one of them")
    folder = new_folder(config.out, "exports")
    sam, title = base_of(config)
    checkpoint, adapter, other = (
        folder / f"{name}.safetensors" for name in ("base", "adapter", "other")
    )
    save_sam(sam, checkpoint)
    if config.random_vit_b:
        ak.inject_samus(sam)
        ak.save_adapter(sam, adapter)
    else:
        ak.load_adapter(sam, config.adapter or trained(config, folder / "training"))
        ak.save_adapter(sam, adapter)
    ak.save_adapter(sam, other)
    size = sam.image_encoder.img_size

    # The ways.
    folders = {name: folder / name for name in ("onnx", "int8")}
    for name, each in folders.items():
        ak.export(sam, each, int8=name == "int8")
    torch_files = [checkpoint, adapter]
    ways = [Way("PyTorch fp32", ["torch", checkpoint, adapter, other], torch_files)]
    # Without instructions for it, bf16 is a hundred times slower than float32.
    if ceiling("cpu", torch.bfloat16, 256) > ceiling("cpu", torch.float32, 256):
        ways.append(Way("PyTorch bf16", ["bf16", checkpoint, adapter, other], torch_files))
    else:
        console.print("bf16 is slower than float32 on this CPU: left out")
    for name, label in (("onnx", "ONNX fp32"), ("int8", "ONNX int8")):
        files = sorted(folders[name].glob("*.onnx*"))
        ways.append(Way(label, ["onnx", folders[name], folders[name]], files))

    # How well they segment, and how fast.
    dice: dict[str, float] = {}
    if not config.random_vit_b:
        echo = write_phantom(folder / "phantom", config.patients, seed=1, half_sequences=False)
        frames = CamusDataset(find_frames(echo), size)
        for way in ways:
            with segmenter_of(way, sam) as segmenter:
                dice[way.name] = dice_of_images(segmenter, frames, seed=0).mean().item()
    measured = take_turns(ways, config.rounds)
    text = f"{title}, {size}x{size}, {torch.get_num_threads()} threads\n\n"
    text += table(ways, dice, measured)
    write_text(folder / "table.md", text + "\n")
    console.print(text, highlight=False, soft_wrap=True)
    console.print(f"results in {folder}", soft_wrap=True)


def base_of(config: Config) -> "tuple[Sam, str]":
    if config.random_vit_b:
        return ak.build_sam(seed=0), "SAMUS on ViT-B with RANDOM weights"
    if config.checkpoint is not None:
        return ak.load_sam(config.checkpoint), config.checkpoint.name
    return ak.mini_sam(), "adapterkit's small SAM"


def trained(config: Config, folder: Path) -> Path:
    """An adapter file of SAMUS on synthetic echo."""
    samus_camus.main(
        samus_camus.Config(
            checkpoint=config.checkpoint, out=folder, epochs=config.epochs, zero_shot=False
        )
    )
    return folder / "adapter.safetensors"


@contextmanager
def segmenter_of(way: Way, sam: "Sam") -> "Iterator[ak.Segmenter]":
    import torch

    from benchmarks.onnx_segmenter import OnnxSegmenter

    how, folder, *_ = way.arguments
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
        yield OnnxSegmenter(sam, Path(folder)) if how == "onnx" else ak.Segmenter(sam)


@dataclass(frozen=True)
class Measured:
    """What one way took.

    Attributes:
        load: seconds for importing what the way needs and loading the model.
        seconds: of each of `MEASURED`, in each round.
        peak_bytes: of its process, loading and segmenting, before any switch.
    """

    load: float
    seconds: dict[str, list[float]]
    peak_bytes: int


def take_turns(ways: Sequence[Way], rounds: int) -> list[Measured]:
    """Measure the ways in turns, each in a fresh process."""
    import torch

    with ExitStack() as stack:
        processes = []
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.contestant", *map(str, way.arguments)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)

        loads = [_answer(*pair) for pair in zip(ways, processes, strict=True)]
        seconds: list[dict[str, list[float]]] = [{} for _ in ways]
        peaks = []
        for what in MEASURED:
            if what == "switch":
                peaks = [_ask(*pair, "peak") for pair in zip(ways, processes, strict=True)]
            for turn in range(rounds + 1):
                for way, process, times in zip(ways, processes, seconds, strict=True):
                    took = _ask(way, process, what)
                    if turn:
                        times.setdefault(what, []).append(took)
    return [
        Measured(load, times, int(peak))
        for load, times, peak in zip(loads, seconds, peaks, strict=True)
    ]


def _ask(way: Way, process: subprocess.Popen[str], what: str) -> float:
    assert process.stdin is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return _answer(way, process)


def _answer(way: Way, process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ValueError(f"{way.name}: its process ended")
    return float(line)


def table(ways: Sequence[Way], dice: dict[str, float], measured: Sequence[Measured]) -> str:
    """A row for each way; the loss of Dice is against the first, in points of a hundred."""
    from adapterkit.evaluation.tables import markdown

    rows = []
    for way, took in zip(ways, measured, strict=True):
        first, click, switch = (median(took.seconds[what]) for what in MEASURED)
        lost = f"{100 * (dice[ways[0].name] - dice[way.name]):.2f}" if dice else "-"
        rows.append(
            [
                way.name,
                f"{way.bytes / 1e6:.1f}",
                f"{100 * dice[way.name]:.2f}" if dice else "-",
                lost,
                f"{took.load:.2f}",
                f"{first:.3f}",
                f"{1e3 * click:.1f}",
                f"{1e3 * switch:.1f}",
                f"{took.peak_bytes / 2**20:,.0f}",
            ]
        )
    heads = ["how", "MB", "Dice (%)", "lost", "load (s)", "first mask (s)", "click (ms)"]
    return markdown([*heads, "switch (ms)", "peak (MiB)"], rows)


if __name__ == "__main__":
    run(main, Config)
