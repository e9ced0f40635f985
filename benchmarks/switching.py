"""How long it takes to attach, switch, load and recognise, on Segment Anything with random weights.

python -m benchmarks.switching
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import adapterkit as ak
from adapterkit.adapters.fingerprint import fingerprint

VIT_H = ak.SamConfig(width=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31))


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median time of a call."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measured() -> dict[str, float]:
    """Seconds that each of the operations takes."""
    found: dict[str, float] = {}
    sam = ak.build_sam(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, file = Path(folder) / "sam.pth", Path(folder) / "samus.safetensors"
        torch.save(sam.state_dict(), checkpoint)
        found["reload the base, ViT-B"] = seconds(lambda: ak.load_sam(checkpoint))

        injected = seconds(lambda: ak.eject(ak.inject_samus(sam)))
        found["inject and eject SAMUS, ViT-B"] = injected
        ak.save_adapter(ak.inject_samus(sam, name="heart"), file)
        found["load SAMUS from its file, ViT-B"] = seconds(
            lambda: ak.remove(ak.load_adapter(sam, file), "default")
        )
        ak.load_adapter(sam, file, name="thyroid")
        names = iter(["heart", "thyroid"] * 50)
        switch = seconds(lambda: ak.activate(sam, next(names)), repeats=100)
        found["switch between two loaded SAMUS, ViT-B"] = switch
    found["fingerprint of the base, ViT-B"] = seconds(lambda: fingerprint(sam))
    del sam
    with torch.device("meta"):
        large = ak.build_sam(VIT_H)
    large.to_empty(device="cpu")
    for parameter in large.parameters():
        # Normal values by the billion take longer than all that is measured here.
        parameter.data.view(-1).copy_(torch.arange(parameter.numel()) % 251 / 251)
    found["fingerprint of the base, ViT-H"] = seconds(lambda: fingerprint(large), repeats=3)
    return found


def main() -> None:
    threads = torch.get_num_threads()
    table = Table(title=f"adapterkit on a CPU, {threads} thread{'s' * (threads > 1)}, median")
    table.add_column("operation")
    table.add_column("time", justify="right")
    for operation, duration in measured().items():
        table.add_row(operation, f"{1e3 * duration:,.1f} ms")
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
