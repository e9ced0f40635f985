"""A way to run a model, in a process of its own; `benchmarks.exports` starts it.

    python -m benchmarks.contestant onnx FOLDER OTHER_FOLDER
    python -m benchmarks.contestant torch|bf16 CHECKPOINT ADAPTER OTHER_ADAPTER

It loads the model and then, for each line of its input, does what the line says. After each it
writes what that took, in seconds; for "peak", the most memory that the process has held, in bytes.
OMP_NUM_THREADS says how many threads. onnxruntime's process imports neither PyTorch nor
adapterkit, as where an export is used.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Onnx:
    """Two exports; the first answers, until `switch`."""

    def __init__(self, folder: str, other: str):
        self.folders = [Path(folder), Path(other)]
        self.embedding = np.empty(0, np.float32)
        self.size = json.loads((self.folders[0] / "export.json").read_text())["image_size"]
        self._open()

    def _open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(self.folders[0] / f"{name}.onnx", options)
            for name in ("encoder", "decoder")
        )

    def switch(self) -> None:
        self.folders.reverse()
        self._open()

    def encode(self, image: np.ndarray) -> None:
        self.embedding = np.asarray(self.encoder.run(None, {"images": image})[0])

    def click(self, x: float, y: float) -> None:
        side = 4 * self.embedding.shape[-1]
        self.decoder.run(
            None,
            {
                "image_embeddings": self.embedding,
                "point_coords": np.array([[[[x, y], [0, 0]]]], np.float32),
                "point_labels": np.array([[[1, -1]]]),
                "mask_input": np.zeros((1, 1, side, side), np.float32),
                "has_mask_input": np.zeros((1, 1), np.float32),
            },
        )


class Torch:
    """A base with two adapters, of which one is active, as the commands have it: `fast`, and freed
    memory is kept. Under autocast if so named."""

    def __init__(self, checkpoint: str, adapter: str, other: str | None, bf16: bool):
        import torch

        import adapterkit as ak
        from adapterkit.system.allocator import keep_freed_memory

        keep_freed_memory()
        self.torch, self.ak = torch, ak
        self.sam = ak.load_adapter(ak.fast(ak.load_sam(checkpoint)), adapter, name="first")
        self.names, self.other = ["first", "other"], other
        self.segmenter = ak.Segmenter(self.sam).eval()
        self.size = self.segmenter.image_size
        torch.autocast("cpu", torch.bfloat16, enabled=bf16).__enter__()
        torch.set_grad_enabled(False)

    def switch(self) -> None:
        self.names.reverse()
        if self.other:  # The first time, which does not count.
            self.ak.load_adapter(self.sam, self.other, name="other")
            self.other = None
        self.ak.activate(self.sam, self.names[0])

    def encode(self, image: np.ndarray) -> None:
        self.embedding = self.segmenter.encode(self.torch.from_numpy(image))

    def click(self, x: float, y: float) -> None:
        points = self.torch.tensor([[[[x, y]]]])
        labels = self.torch.ones(1, 1, 1, dtype=self.torch.long)
        self.segmenter.decode(self.embedding, self.ak.Prompts(points, labels))


def peak_bytes() -> int:
    """The most memory that this process has held; what `resource` says starts at its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    # The standard library's, since what else is imported counts.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=("onnx", "torch", "bf16"))
    parser.add_argument("files", nargs="+", help="as above")
    given = parser.parse_args()

    def load() -> Any:
        if given.how == "onnx":
            return Onnx(*given.files)
        return Torch(*given.files, bf16=given.how == "bf16")

    def report(number: float) -> None:
        print(number, flush=True)

    def timed(call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        report(time.perf_counter() - start)
        return result

    model = timed(load)
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (1, 3, model.size, model.size)).astype(np.float32)

    def first_mask() -> None:
        model.encode(image)
        model.click(model.size / 2, model.size / 2)

    def click() -> None:
        model.click(*rng.uniform(0, model.size, 2))

    calls = {"first mask": first_mask, "click": click, "switch": model.switch}
    for line in map(str.strip, sys.stdin):
        if line == "peak":
            report(peak_bytes())
        else:
            timed(calls[line])


if __name__ == "__main__":
    main()
