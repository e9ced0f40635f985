"""How long the page takes from a click to its mask, alone and while a training runs.

    python -m benchmarks.click_to_mask

The server is a process of its own, as `adapterkit serve` is, on a folder of synthetic echo; the
clicks are HTTP requests, as the page's, each a new one on an image that is open, every 0.4 s. The
training is the page's own. The bar: during it a click takes at most twice as long on two cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterkit.system.command_line import run


@dataclass(frozen=True)
class Options:
    """What is measured."""

    clicks: int = 40
    """Before and during the training."""
    images: int = 20
    """In the folder, all accepted but the one that is clicked on."""
    image_size: int = 256
    """Side of the images, in pixels."""
    port: int = 7869
    """Of the server."""


@contextmanager
def served(folder: Path, port: int) -> Iterator[Any]:
    """A client of a server on a folder."""
    import httpx

    command = [sys.executable, "-m", "adapterkit", "serve", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                yield client
        finally:
            server.terminate()


def write_folder(folder: Path, options: Options) -> None:
    """Synthetic hearts with accepted masks, but for the last one."""
    from adapterkit.data.collections import open_collection
    from adapterkit.data.synthetic.phantom import write_phantom
    from benchmarks.annotation import write_folder as write

    patients = -(-options.images // 4)
    data = write_phantom(folder.parent / "phantom", patients, image_size=options.image_size)
    write(open_collection(data).records[: options.images], folder)
    max((folder / "masks").iterdir()).unlink()


def click(client: Any, name: str, count: int, seed: int) -> list[float]:
    """Seconds from each click to its mask; of one seed the same clicks, which are known then."""
    import numpy as np

    draw = np.random.default_rng(seed)
    width = client.get(f"/api/images/{name}").json()["width"]
    took = []
    for _ in range(count):
        x, y = (int(each) for each in draw.integers(width // 4, 3 * width // 4, 2))
        began = time.perf_counter()
        answer = client.post(
            f"/api/images/{name}/frames/0/prompts",
            json={"revision": 0, "force": True, "structure": 1, "points": [{"x": x, "y": y}]},
        )
        took.append(time.perf_counter() - began)
        answer.raise_for_status()
        time.sleep(0.4)
    return took


def wait_for_steps(client: Any) -> None:
    """Until the training has completed an epoch."""
    while not (told := client.get("/api/training").json())["curve"]:
        if told["status"] != "running":
            raise RuntimeError(told["message"])
        time.sleep(0.5)


def main(options: Options) -> None:
    """Measure, and print the table."""
    import numpy as np

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "scans"
        write_folder(folder, options)
        with served(folder, options.port) as client:
            images = client.get("/api/state").json()["images"]
            name = next(each["id"] for each in images if each["status"] != "accepted")
            client.get(f"/api/images/{name}/frames/0")
            click(client, name, 5, seed=0)
            alone = click(client, name, options.clicks, seed=1)
            client.post("/api/training", json={"epochs": 1000}).raise_for_status()
            wait_for_steps(client)
            during = click(client, name, options.clicks, seed=2)
            told = client.delete("/api/training").json()
    print(f"click to mask, {options.image_size} x {options.image_size}, {os.cpu_count()} cores")
    print("| | median | 90 % are below |\n|---|---|---|")
    for what, took in (("alone", alone), ("during a training", during)):
        print(
            f"| {what} | {1e3 * np.median(took):.0f} ms | {1e3 * np.quantile(took, 0.9):.0f} ms |"
        )
    print(f"{np.median(during) / np.median(alone):.2f} times as long; {told['message']}")


if __name__ == "__main__":
    run(main, Options)
