"""Extending: a part, a method and a data format of one's own, used by name and loaded elsewhere.

On SYNTHETIC echocardiograms and the small Sam that comes with adapterkit; needs no files.
"""

# --8<-- [start:data]
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.plots import Case, segmentation_figure

PATIENTS, EPOCHS = 24, 10

echo = open_collection(write_phantom(Path("phantom"), patients=PATIENTS))
Path("frames").mkdir(exist_ok=True)
for patient in echo.group_names:
    pairs = [record.read() for record in echo.of_groups([patient])]
    np.savez(
        f"frames/{patient}.npz",
        images=np.stack([pair.image for pair in pairs]),
        labels=np.stack([pair.labels for pair in pairs]),
        structures=list(echo.structures.values()),
    )
# --8<-- [end:data]

# --8<-- [start:load]
mine = Path(__file__).with_name("extending_mine.py")
print("methods of mine:", *ak.methods.load_plugin(mine))
# --8<-- [end:load]

# --8<-- [start:prove]
sam = ak.mini_sam()
image = 255 * torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
before = sam.image_encoder(image)
ak.inject(sam, [ak.parts.PARTS["ScaleShift"]()])
print(ak.summary(sam))
assert torch.equal(sam.image_encoder(image), before)  # it starts as the identity

trained = [parameter for parameter in sam.parameters() if parameter.requires_grad]
with torch.no_grad():
    for parameter in trained:
        parameter.normal_()
after = sam.image_encoder(image)
assert not torch.equal(after, before)
after.square().mean().backward()
assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
assert torch.equal(ak.eject(sam).image_encoder(image), before)  # it leaves nothing behind
# --8<-- [end:prove]

# --8<-- [start:train]
run = ak.train("frames", method="scale_shift", prompts="class", epochs=EPOCHS)
assert run is not None
assert run.adapter is not None
print((run.folder / "table.md").read_text())
# --8<-- [end:train]

# --8<-- [start:elsewhere]
frames = open_collection("frames")
record = frames.of_groups(frames.divided().test)[0]
native = record.read()
Path("scans").mkdir(exist_ok=True)
Image.fromarray(native.image).save(f"scans/{record.name}.png")


def in_another_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapterkit", *words]
    return subprocess.run(command, capture_output=True, text=True)


masks = run.folder / "masks"
predict = ("predict", "scans", "--adapter", str(run.adapter), "--format", "png")
predict = (*predict, "--out", str(masks))
print(in_another_process(*predict).stderr)
done = in_another_process("--plugin", str(mine), *predict)
print(done.stdout or done.stderr)
# --8<-- [end:elsewhere]

# --8<-- [start:look]
found = read_label_map(masks / f"{record.name}.png").frames[0]
predictor = ak.Predictor(ak.load_adapter(ak.mini_sam(), run.adapter))
predictor.set_image(f"scans/{record.name}.png")
assert np.array_equal(found, predictor.predict().label_map())  # both processes agree

names = list(record.structures.values())
truth, by_name = (
    np.stack([labels == label for label in record.structures]) for labels in (native.labels, found)
)
dice = 2 * (by_name & truth).sum((1, 2)) / (by_name.sum((1, 2)) + truth.sum((1, 2)))
clicks = np.empty((len(names), 0, 2))
case = Case(f"{record.name}, by ScaleShift", native.image, truth, by_name, clicks, names, [*dice])
segmentation_figure([case], Path("extending.png"))
# --8<-- [end:look]
