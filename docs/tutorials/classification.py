"""Classification: DINOv3 of timm with LoRA and a new head, trained, kept as a file, and loaded.

On SYNTHETIC echocardiograms and a small DINOv3 with RANDOM weights; needs no files.
"""

# --8<-- [start:model]
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from timm.data.config import resolve_model_data_config
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.parts import LoRA, Train

PATIENTS, EPOCHS, SIDE = 80, 20, 64
VIEWS = ["2CH", "4CH"]
BASE = {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 1.0}  # or {"pretrained": True}


def classifier() -> nn.Module:
    """A DINOv3 with a new head; without `pretrained=True` its weights are RANDOM."""
    torch.manual_seed(0)
    name = "vit_small_patch16_dinov3"
    return timm.create_model(name, img_size=SIDE, num_classes=len(VIEWS), **BASE)


model = classifier()
ak.inject(model, [LoRA(rank=8), Train("head")])
print(ak.summary(model))
# --8<-- [end:model]

# --8<-- [start:data]
echo = open_collection(write_phantom(Path("phantom"), patients=PATIENTS, image_size=SIDE))
split = echo.random_split(seed=0)
expects = resolve_model_data_config(model)
mean, std = (torch.tensor(expects[name])[:, None, None] for name in ("mean", "std"))


def images_and_views(patients: list[str]) -> TensorDataset:
    """Grey images as DINOv3 takes them, and the number of the view of each."""
    records = echo.of_groups(patients)
    grey = torch.stack([torch.from_numpy(record.read().image) for record in records])
    views = torch.tensor([VIEWS.index(record.attributes["view"]) for record in records])
    return TensorDataset((grey[:, None] / 255 - mean) / std, views)


training, test = images_and_views([*split.train]), images_and_views([*split.test])
# --8<-- [end:data]

# --8<-- [start:train]
trained = [each for each in model.parameters() if each.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=3e-3)
for epoch in range(EPOCHS):
    model.train()
    losses = []
    for images, views in DataLoader(training, batch_size=16, shuffle=True):
        loss = nn.functional.cross_entropy(model(images), views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.3f}")
# --8<-- [end:train]

# --8<-- [start:save]
ak.save_adapter(model, "views.safetensors", classes=VIEWS)  # LoRA and the head

other = ak.load_adapter(classifier(), "views.safetensors")
images, views = test.tensors
with torch.no_grad():
    probabilities = other.eval()(images).softmax(dim=1)
    assert torch.equal(probabilities, model.eval()(images).softmax(dim=1))
right = probabilities.argmax(dim=1) == views
print(f"{right.sum()} of {len(right)} test images right")
# --8<-- [end:save]

# --8<-- [start:look]
figure = Figure(figsize=(6.5, 2.8), layout="constrained")
for axes, number in zip(figure.subplots(2, 6).flat, range(0, len(views), 2), strict=False):
    axes.imshow(images[number, 0], cmap="gray")
    view, probability = views[number], probabilities[number]
    colour = "#0072B2" if right[number] else "#D55E00"
    axes.set_title(f"{VIEWS[view]}: {probability[view]:.2f}", fontsize=8, color=colour)
for axes in figure.axes:
    axes.set_axis_off()
figure.savefig("classification.png", dpi=200)
# --8<-- [end:look]
