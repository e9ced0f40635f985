"""Choosing a method: a comparison on equal terms, and what its numbers mean.

On SYNTHETIC echocardiograms and small models; needs no files, and the repository's `benchmarks`.
"""

# --8<-- [start:compare]
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from adapterkit.evaluation.evaluation import Evaluation

PATIENTS, EPOCHS = 50, 3

command = [sys.executable, "-m", "benchmarks.compare", "--out", "comparison"]
systems = ["unet", "samus-plus", "samed"]
setting = ["--patients", str(PATIENTS), "--epochs", str(EPOCHS)]
subprocess.run([*command, "--methods", *systems, *setting], check=True)
# --8<-- [end:compare]


# --8<-- [start:patients]
def dice_of_patients(file: str) -> np.ndarray:
    """The Dice of each test patient in %: the mean of their images and structures."""
    found = Evaluation.read_csv(Path("comparison") / file)
    return 100 * found.means_of("patient", "dice").mean(dim=1).numpy()


unet = dice_of_patients("unet/seed_0/per_image.csv")
plus = dice_of_patients("samus-plus/seed_0/per_image.csv")
plus_by_click = dice_of_patients("samus-plus/seed_0/per_image_1.csv")
samed = dice_of_patients("samed/seed_0/per_image.csv")
# --8<-- [end:patients]

# --8<-- [start:paired]
tasks = {
    "without a prompt": {"U-Net": unet, "SAMUS+": plus},
    "with one click": {"SAMed": samed, "SAMUS+": plus_by_click},
}
figure = Figure(figsize=(6.5, 2.8), layout="constrained")
for axes, (task, dice) in zip(figure.subplots(1, 2), tasks.items(), strict=True):
    (first, one), (second, other) = dice.items()
    difference = other - one
    _, p = wilcoxon(difference)
    found = f"{difference.mean():+.1f} points, p = {p:.2g}"
    print(f"{task}: {second} less {first}, {found}")
    for pair in zip(one, other, strict=True):
        colour = "#0072B2" if pair[1] > pair[0] else "#D55E00"
        axes.plot([first, second], pair, "o-", color=colour, markersize=4, linewidth=1)
    axes.set_title(f"{task}: {found}", fontsize=8)
    axes.set_ylabel("Dice (%)", fontsize=8)
    axes.margins(x=0.3)
    axes.tick_params(labelsize=8)
figure.savefig("choosing_a_method.png", dpi=200)
print(f"of {len(unet)} patients, no p-value can be below {2 ** (1 - len(unet)):.2g}")
# --8<-- [end:paired]

# --8<-- [start:look]
shutil.copy("comparison/masks.png", "choosing_a_method_masks.png")
# --8<-- [end:look]
