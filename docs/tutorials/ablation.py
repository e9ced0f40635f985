"""An ablation in five lines: a method's parts, one of them left out, and what is lost.

On SYNTHETIC echocardiograms and the small Sam that comes with adapterkit; needs no files.
"""

# --8<-- [start:method]
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.encoders.views import ViT
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.evaluation.tables import markdown

PATIENTS, EPOCHS = 30, 8
LEFT_OUT = ["nothing", "FeatureAdapter", "Train", "Detail"]


@ak.register_method("ablated")
def ablated(
    view: ViT | None = None,
    image_size: int = 128,
    structures: Sequence[str] = ("structure",),
    without: str = "nothing",
) -> list[Part]:
    """SAMUS+ without the parts of one kind."""
    parts = ak.methods.parts_of("samus_plus", view, image_size=image_size, structures=structures)
    return [part for part in parts if type(part).__name__ != without]


print(*ak.methods.parts_of("ablated", ak.view(ak.mini_sam())), sep="\n")
# --8<-- [end:method]

# --8<-- [start:loop]
data = write_phantom(Path("phantom"), patients=PATIENTS)
runs = {}
for without in LEFT_OUT:
    options = {"method": "ablated", "options": (f"without={without}",), "prompts": "class"}
    runs[without] = ak.train(data, epochs=EPOCHS, out=f"without_{without}", **options)
# --8<-- [end:loop]

# --8<-- [start:table]
rows, of_patients = [], {}
for without, run in runs.items():
    found = Evaluation.read_csv(run.folder / "per_image.csv")
    of_patients[without] = 100 * found.means_of("patient", "dice").mean(dim=1).numpy()
    trained = run.metrics["trained_parameters"]
    rows.append([without, f"{trained:,}", f"{of_patients[without].mean():.1f}"])
print(markdown(["without", "trained parameters", "Dice (%), mean over patients"], rows))
# --8<-- [end:table]

# --8<-- [start:figure]
figure = Figure(figsize=(6.5, 2.6), layout="constrained")
axes = figure.subplots()
for place, dice in enumerate(of_patients.values()):
    axes.plot(dice, [place] * len(dice), "o", color="0.6", markersize=4)
    axes.plot(dice.mean(), place, "D", color="#D55E00", markersize=6)
axes.set_yticks(range(len(LEFT_OUT)), ["the whole", *(f"without {each}" for each in LEFT_OUT[1:])])
axes.set_ylim(len(LEFT_OUT) - 0.5, -0.5)
axes.set_xlabel("Dice (%): grey, each test patient; red, their mean")
axes.grid(axis="x", linewidth=0.4)
figure.savefig("ablation.png", dpi=200)
# --8<-- [end:figure]
