"""Export and run without PyTorch: an adapted Sam as ONNX files, and a script that only runs them.

On SYNTHETIC echocardiograms and the small Sam that comes with adapterkit; needs no files.
"""

# --8<-- [start:train]
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.plots import Case, segmentation_figure

PATIENTS, EPOCHS = 24, 10

data = write_phantom(Path("phantom"), patients=PATIENTS)
run = ak.train(data, prompts="class", epochs=EPOCHS, out="echo_run")
assert run is not None
assert run.adapter is not None
# --8<-- [end:train]

# --8<-- [start:export]
sam = ak.load_adapter(ak.mini_sam(), run.adapter)
ak.export(sam, "echo_onnx")
for path in sorted(Path("echo_onnx").iterdir()):
    print(f"{path}: {path.stat().st_size:,} bytes")
# --8<-- [end:export]

# --8<-- [start:run]
collection = open_collection(data)
record = collection.of_groups(collection.divided().test)[0]
native = record.read()
Image.fromarray(native.image).save("scan.png")

alone = Path(__file__).with_name("export_and_run_alone.py")
subprocess.run([sys.executable, str(alone)], check=True)
# --8<-- [end:run]

# --8<-- [start:compare]
predictor = ak.Predictor(sam)
predictor.set_image("scan.png")
expected = predictor.predict().masks
found = np.load("masks.npz")
masks = np.stack([found[name] for name in found])
differ = (masks != expected).sum()
print(f"{differ} of {masks.size:,} pixels differ from adapterkit's masks")
assert differ < 1e-3 * masks.size

names = list(found)
truth = np.stack([native.labels == label for label in record.structures])
dice = 2 * (masks & truth).sum((1, 2)) / (masks.sum((1, 2)) + truth.sum((1, 2)))
clicks = np.empty((len(names), 0, 2))
case = Case(f"{record.name}, by onnxruntime", native.image, truth, masks, clicks, names, [*dice])
segmentation_figure([case], Path("export_and_run.png"))
# --8<-- [end:compare]
