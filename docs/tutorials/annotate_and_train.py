"""Annotate and train in the browser: correct a few images, train, correct less.

A scripted annotator does over HTTP what a person does in the browser, on SYNTHETIC
echocardiograms; needs no files.
"""

# --8<-- [start:folder]
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import ndimage

from adapterkit.data.collections import open_collection
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.web import rle

PATIENTS, EPOCHS = 12, 30
ANNOTATED, MOST = 32, 6  # images before the training, and clicks on a structure at most
STRUCTURES = ["left ventricle", "myocardium", "left atrium"]

Path("scans/images").mkdir(parents=True)
records = open_collection(write_phantom(Path("phantom"), PATIENTS, image_size=128)).records
truth: dict[str, np.ndarray] = {}
for record in records:
    native = record.read()
    name = record.name.replace("/", "_")
    Image.fromarray(native.image).save(f"scans/images/{name}.png")
    truth[name] = native.labels
# --8<-- [end:folder]

# --8<-- [start:serve]
with socket.socket() as trial:
    trial.bind(("127.0.0.1", 0))
    port = trial.getsockname()[1]
command = ["serve", "scans", "--port", str(port), "--annotator", "script", "--group", r"patient\d+"]
server = subprocess.Popen(
    [sys.executable, "-m", "adapterkit", *command], stdout=subprocess.PIPE, text=True
)
assert server.stdout is not None
print(server.stdout.readline())
page = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=300)
for structure in STRUCTURES:
    page.post("/structures", json={"name": structure}).raise_for_status()
# --8<-- [end:serve]


# --8<-- [start:annotate]
def post(path: str, **body: object) -> dict:
    answer = page.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


def mask_of(answer: dict, structure: int, wanted: np.ndarray) -> np.ndarray:
    runs = [each["rle"] for each in answer["masks"] if each["structure"] == structure]
    return rle.decode(runs[0], (len(wanted), len(wanted[0]))) if runs else np.zeros_like(wanted)


def next_click(mask: np.ndarray, wanted: np.ndarray) -> dict:
    """In the middle of the largest piece that is wrong."""
    pieces: Any = ndimage.label(mask ^ wanted)
    pieces = pieces[0]
    largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
    depth: Any = ndimage.distance_transform_edt(np.pad(largest, 1))
    y, x = np.unravel_index(depth[1:-1, 1:-1].argmax(), mask.shape)
    return {"x": int(x), "y": int(y), "inside": bool(wanted[y, x])}


def annotate(name: str) -> int:
    """Click until each structure has an IoU of 0.8, paint what is left, accept; the clicks."""
    labels, clicks = truth[name], 0
    image = f"/images/{name}"
    answer = page.get(f"{image}/frames/0").json()
    for structure in range(1, len(STRUCTURES) + 1):
        wanted, points = labels == structure, []
        while True:
            mask = mask_of(answer, structure, wanted)
            good = (mask & wanted).sum() >= 0.8 * (mask | wanted).sum()
            if good or len(points) == MOST:
                break
            points.append(next_click(mask, wanted))
            prompts = {"structure": structure, "points": points}
            answer = post(f"{image}/frames/0/prompts", revision=answer["revision"], **prompts)
        clicks += len(points)
        painted = {"structure": structure, "rle": rle.encode(wanted)}
        answer = post(f"{image}/frames/0/mask", revision=answer["revision"], **painted)
    post(f"{image}/accept", revision=answer["revision"])
    return clicks


names = sorted(truth)
before = {name: annotate(name) for name in names[:ANNOTATED]}
print(f"{np.mean([*before.values()]):.1f} clicks per image by the base alone")
# --8<-- [end:annotate]

# --8<-- [start:train]
training = post("/training", epochs=EPOCHS)
while training["status"] == "running":
    time.sleep(1)
    training = page.get("/training").json()
print(training["message"])
if training["offer"]:
    post("/training/use")
# --8<-- [end:train]

# --8<-- [start:again]
after = {name: annotate(name) for name in names[ANNOTATED:]}
print(f"{np.mean([*after.values()]):.1f} clicks per image after the training")
# --8<-- [end:again]

# --8<-- [start:end]
server.terminate()
server.wait()
collection = open_collection("scans")
print(f"{len(collection.records)} accepted images: {', '.join(collection.structures.values())}")
accepted = read_label_map(f"scans/masks/{names[0]}.png").frames[0]
assert (accepted == truth[names[0]]).all()
# --8<-- [end:end]

# --8<-- [start:figure]
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
axes.bar(range(len(before)), [*before.values()], color="#56B4E9", label="the base alone")
axes.bar(
    range(len(before), len(names)), [*after.values()], color="#D55E00", label="after the training"
)
axes.axvline(len(before) - 0.5, color="0.4", linewidth=1)
axes.set_xlabel("image, in the order in which they are annotated")
axes.set_ylabel("clicks")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
figure.savefig("annotate_and_train.png", dpi=120)
# --8<-- [end:figure]
