"""Echo: from NIfTI sequences of two apical views to the ejection fraction.

The patients are SYNTHETIC; needs no files. Not for clinical use.
"""

# --8<-- [start:scans]
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

import adapterkit as ak
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.clinical import measure_sequence
from adapterkit.evaluation.plots import draw_contour, hide_axis, new_figure, save_figure

PATIENTS, EPOCHS, NEW = 24, 8, 6

known = write_phantom(Path("known"), patients=PATIENTS)
truth = write_phantom(Path("truth"), patients=NEW, seed=1, beat=Beat(flicker=0.5))
Path("scans").mkdir(exist_ok=True)
for sequence in truth.rglob("*_half_sequence.nii.gz"):
    shutil.copy(sequence, "scans/" + sequence.name.replace("_half_sequence", ""))
print(*sorted(path.name for path in Path("scans").iterdir())[:4], sep="\n")
# --8<-- [end:scans]

# --8<-- [start:train]
run = ak.train(known, prompts="class", epochs=EPOCHS, out="echo_run")
assert run is not None
assert run.adapter is not None
print((run.folder / "table.md").read_text())
# --8<-- [end:train]


# --8<-- [start:measure]
def adapterkit(*words: str) -> None:
    """As `adapterkit ...` on the command line."""
    subprocess.run([sys.executable, "-m", "adapterkit", *words], check=True)


adapterkit("predict", "scans", "--adapter", str(run.adapter), "--out", "masks")
adapterkit("measure", "masks", "--reference", str(truth), "--out", "measures")
patients = pd.read_csv("measures/patients.csv")
print(patients[["patient", "method", "ef", "ef_reference", "ef_stated"]].to_string())
# --8<-- [end:measure]

# --8<-- [start:look]
figure = new_figure(9, 5.4)
for row, view in zip(figure.subplots(2, 3, width_ratios=(1, 1, 1.5)), ("2CH", "4CH"), strict=True):
    images = ak.read_image(f"scans/patient0001_{view}.nii.gz")
    masks = read_label_map(f"masks/patient0001_{view}.nii.gz")
    expert = read_label_map(next(truth.rglob(f"patient0001_{view}_half_sequence_gt.nii.gz")))
    by_masks, by_expert = (
        measure_sequence(each.frames, each.spacing, view) for each in (masks, expert)
    )
    ends = (("ED", by_masks.ed, by_masks.at_ed), ("ES", by_masks.es, by_masks.at_es))
    for axes, (phase, frame, at_frame) in zip(row, ends, strict=False):
        hide_axis(axes)
        axes.set_title(f"{view}, {phase}: frame {frame}", fontsize=8)
        if frame is None or at_frame is None:
            continue  # The model sees no ventricle.
        axes.imshow(images.frames[frame], cmap="gray")
        draw_contour(axes, masks.frames[frame] == 1, "#E69F00", "solid", 1.0)
        draw_contour(axes, expert.frames[frame] == 1, "#E69F00", "dashed", 0.7)
        for left, right in at_frame.ventricle.discs:
            axes.plot(*zip(left, right, strict=True), color="#56B4E9", linewidth=0.5)
    curve = row[2]
    curve.plot(by_masks.areas, color="#E69F00", label="masks")
    curve.plot(by_expert.areas, color="0.4", linestyle="dashed", label="reference")
    for phase, frame, _ in ends:
        if frame is not None:
            curve.axvline(frame, color="0.7", linewidth=0.8)
            curve.annotate(phase, (frame, by_masks.areas[frame]), fontsize=7)
    curve.set_title(f"area of the left ventricle (mm²), jitter {by_masks.jitter:.3f}", fontsize=8)
    curve.set_xlabel("frame", fontsize=7)
    curve.tick_params(labelsize=7)
    curve.legend(fontsize=7, frameon=False)
save_figure(figure, Path("ejection_fraction.png"))
# --8<-- [end:look]
