"""Several GPUs, SLURM, Ray: one training in two processes, one that is cut short and goes on, and
many images by several workers.

Two processes on the processor stand for two GPUs. On SYNTHETIC echocardiograms and the small Sam
that comes with adapterkit; needs no files.
"""

# --8<-- [start:data]
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from safetensors.torch import load_file

from adapterkit.data.collections import open_collection
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.synthetic.phantom import write_phantom

PATIENTS, EPOCHS, NEW = 30, 6, 4

data = write_phantom(Path("phantom"), patients=PATIENTS, image_size=128)
Path("scans").mkdir()
for record in open_collection(write_phantom(Path("unseen"), patients=NEW, seed=1)).records:
    Image.fromarray(record.read().image).save(f"scans/{record.name.replace('/', '_')}.png")
# --8<-- [end:data]


# --8<-- [start:processes]
def module(name: str, *words: str) -> list[str]:
    """As `python -m name ...` on the command line."""
    return [sys.executable, "-m", name, *words]


training = ["train", str(data), "--epochs", str(EPOCHS), "--prompts", "class"]
subprocess.run(module("adapterkit", *training, "--batch-size", "8", "--out", "one"), check=True)
launch = module("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
subprocess.run(
    [*launch, "-m", "adapterkit", *training, "--batch-size", "4", "--out", "two"], check=True
)
# --8<-- [end:processes]

# --8<-- [start:compare]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
for run, label, style in (("one", "one process, 8 images", "o-"), ("two", "two, 4 each", "x--")):
    metrics = json.loads(Path(run, "metrics.json").read_text())
    epochs = [epoch["epoch"] for epoch in metrics["history"]]
    left.plot(epochs, [epoch["loss"] for epoch in metrics["history"]], style, label=label)
    right.plot(epochs, [100 * each["validation_dice"] for each in metrics["history"]], style)
    print(f"{label}: {metrics['seconds']['training']:.0f} s of training")
left.set(xlabel="epoch", ylabel="training loss")
left.legend(frameon=False)
right.set(xlabel="epoch", ylabel="validation Dice (%)")
figure.savefig("several_processes.png", dpi=200)
# --8<-- [end:compare]

# --8<-- [start:slurm]
job = module("adapterkit", *training, "--batch-size", "8", "--out", "cut_short")
running = subprocess.Popen(job)
while not Path("cut_short/training_state.safetensors").exists():
    time.sleep(0.1)
running.terminate()  # what SLURM sends before the job's time is up
print("ended with status", running.wait())
subprocess.run(module("adapterkit", "train", "--resume", "cut_short"), check=True)

whole, resumed = (load_file(f"{run}/adapter.safetensors") for run in ("one", "cut_short"))
different = [name for name in whole if not whole[name].equal(resumed[name])]
print(f"{len(whole)} tensors, of which {len(different)} differ from the uninterrupted training's")
# --8<-- [end:slurm]

# --8<-- [start:ray]
predict = ["predict", "scans", "--adapter", "one/adapter.safetensors", "--format", "png"]
subprocess.run(module("adapterkit", *predict, "--out", "masks"), check=True)
if importlib.util.find_spec("ray") is None:
    print('without ray, which comes by pip install "adapterkit[cluster]"')
else:
    by_ray = ["--out", "masks_by_ray", "--ray", "--workers", "2"]
    subprocess.run(module("adapterkit", *predict, *by_ray), check=True)
    masks = [path.name for path in Path("masks").glob("*.png")]
    same = [
        np.array_equal(
            read_label_map(Path("masks") / name).frames,
            read_label_map(Path("masks_by_ray") / name).frames,
        )
        for name in masks
    ]
    print(f"{len(masks)} masks, of which {same.count(False)} differ by ray")
# --8<-- [end:ray]
