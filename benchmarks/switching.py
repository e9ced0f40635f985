"""How long it takes to attach, switch, load and recognise, on Segment Anything with random weights.

python -m benchmarks.switching
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapterkit as ak
from adapterkit.system.command_line import check_positive, console, run


@dataclass(frozen=True)
class Config:
    rounds: int = 5
    """How often each operation is done; a switch, which is short, twenty times as often."""


def main(config: Config) -> None:
    import torch
    from rich.table import Table

    check_positive(config, "rounds")
    threads = torch.get_num_threads()
    table = Table(title=f"adapterkit on a CPU, {threads} thread{'s' * (threads > 1)}, median")
    table.add_column("operation")
    table.add_column("time", justify="right")
    for operation, duration in measured(config.rounds).items():
        table.add_row(operation, f"{1e3 * duration:,.1f} ms")
    console.print(table)


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """The median time of a call."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measured(rounds: int) -> dict[str, float]:
    """Seconds that each of the operations takes."""
    import torch

    from adapterkit.adapters.fingerprint import fingerprint
    from benchmarks.work import BASES

    found: dict[str, float] = {}
    sam = ak.build_sam(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, file = Path(folder) / "sam.pth", Path(folder) / "samus.safetensors"
        torch.save(sam.state_dict(), checkpoint)
        found["reload the base, ViT-B"] = seconds(lambda: ak.load_sam(checkpoint), rounds)

        injected = seconds(lambda: ak.eject(ak.inject_samus(sam)), rounds)
        found["inject and eject SAMUS, ViT-B"] = injected
        ak.save_adapter(ak.inject_samus(sam, name="heart"), file)
        found["load SAMUS from its file, ViT-B"] = seconds(
            lambda: ak.remove(ak.load_adapter(sam, file), "default"), rounds
        )
        ak.load_adapter(sam, file, name="thyroid")
        names = iter(["heart", "thyroid"] * 10 * rounds)
        switch = seconds(lambda: ak.activate(sam, next(names)), 20 * rounds)
        found["switch between two loaded SAMUS, ViT-B"] = switch
    found["fingerprint of the base, ViT-B"] = seconds(lambda: fingerprint(sam), rounds)
    del sam
    with torch.device("meta"):
        large = ak.build_sam(BASES["ViT-H"])
    large.to_empty(device="cpu")
    for parameter in large.parameters():
        # Normal values by the billion take longer than all that is measured here.
        parameter.data.view(-1).copy_(torch.arange(parameter.numel()) % 251 / 251)
    found["fingerprint of the base, ViT-H"] = seconds(lambda: fingerprint(large), rounds)
    return found


if __name__ == "__main__":
    run(main, Config)
