"""Your own folder: from pictures with masks to masks of new pictures.

The folder is made of SYNTHETIC echocardiograms; needs no files.
"""

# --8<-- [start:folder]
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.plots import Case, segmentation_figure

PATIENTS, EPOCHS = 30, 12
STRUCTURES = ["left ventricle", "myocardium", "left atrium"]

for folder in ("echo/images", "echo/masks", "new_scans"):
    Path(folder).mkdir(parents=True)
records = open_collection(write_phantom(Path("phantom"), patients=PATIENTS)).records
new, known = records[-4:], records[:-4]  # the last patient's images are the new ones
for record in records:
    native = record.read()
    is_known = record in known
    picture = Image.fromarray(native.image)
    picture.save(Path("echo/images" if is_known else "new_scans") / f"{record.name}.png")
    if is_known:
        Image.fromarray(native.labels).save(f"echo/masks/{record.name}.png")
print(*sorted(path.as_posix() for path in Path("echo").rglob("patient0001*")), sep="\n")
# --8<-- [end:folder]


# --8<-- [start:check]
def adapterkit(*words: str) -> None:
    """As `adapterkit ...` on the command line."""
    subprocess.run([sys.executable, "-m", "adapterkit", *words], check=True)


named = [f"{label}={name}" for label, name in enumerate(STRUCTURES, 1)]
patient = r"patient\d+"
sheet = "own_folder_check.png"
adapterkit("check", "echo", "--structures", *named, "--group", patient, "--sheet", sheet)
# --8<-- [end:check]

# --8<-- [start:train]
run = ak.train("echo", structures=named, group=patient, epochs=EPOCHS, out="echo_run")
assert run is not None
assert run.adapter is not None
print((run.folder / "table.md").read_text())
# --8<-- [end:train]

# --8<-- [start:predict]
scans = ("new_scans", "--out", "masks", "--format", "png")
adapterkit("predict", *scans, "--adapter", str(run.adapter))
# --8<-- [end:predict]

# --8<-- [start:look]
cases = []
for record in new[:2]:
    native = record.read()
    found = read_label_map(Path("masks") / f"{record.name}.png").frames[0]
    truth, masks = (
        np.stack([labels == label for label in record.structures])
        for labels in (native.labels, found)
    )
    overlap = (truth & masks).sum(axis=(1, 2))
    dice = 2 * overlap / (truth.sum(axis=(1, 2)) + masks.sum(axis=(1, 2)))
    clicks = np.empty((len(STRUCTURES), 0, 2))
    cases.append(Case(record.name, native.image, truth, masks, clicks, STRUCTURES, dice.tolist()))
segmentation_figure(cases, Path("own_folder.png"))
# --8<-- [end:look]
