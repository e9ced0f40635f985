"""Add an encoder: one of one's own is described, proved, adapted, and loaded in another process.

On SYNTHETIC echocardiograms and a small encoder that this script trains; needs no files.
"""

# --8<-- [start:load]
import copy
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.data.collections import open_collection
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.parts import FeatureAdapter, LoRA, Train
from add_an_encoder_mine import SIDE, Mine

PATIENTS, STEPS = 80, 200
VIEWS = ["2CH", "4CH"]

torch.manual_seed(0)
base = Mine(outputs=len(VIEWS))
view = ak.view(base)
print(f"{view.family}: {len(view.blocks)} blocks on a grid of {view.grid}")
print("in a block:", *view.blocks[0].sites)
# --8<-- [end:load]

# --8<-- [start:prove]
PARTS: list[Part] = [FeatureAdapter(at="attn_in"), FeatureAdapter(at="mlp"), LoRA(rank=4)]
image = torch.rand(2, 1, SIDE, SIDE)
for part in PARTS:
    model = copy.deepcopy(base).eval()
    before = model(image)
    ak.inject(model, [part])
    assert torch.equal(model(image), before)  # it starts as the identity
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.normal_()
    model(image).square().mean().backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    assert not torch.equal(model(image), before)
    assert torch.equal(ak.eject(model)(image), before)  # it leaves nothing behind
    print("holds of", part)
# --8<-- [end:prove]

# --8<-- [start:pretrain]
echo = open_collection(write_phantom(Path("phantom"), patients=PATIENTS, image_size=SIDE))
split = echo.random_split(seed=0)


def data_of(patients: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Images in [0, 1], the numbers of their views, and how bright the ventricle of each is."""
    records = echo.of_groups(patients)
    pairs = [record.read() for record in records]
    images = torch.stack([torch.from_numpy(pair.image) for pair in pairs])[:, None] / 255
    views = torch.tensor([VIEWS.index(record.attributes["view"]) for record in records])
    grey = torch.tensor([float(pair.image[pair.labels == 1].mean()) for pair in pairs]) / 255
    return images, views, grey


def fit(model: nn.Module, images: Tensor, targets: Tensor, loss_of: nn.Module) -> None:
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for _ in range(STEPS):
        some = torch.randint(len(images), (16,))
        loss = loss_of(model(images[some]).squeeze(1), targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


images, views, grey = data_of(tuple(split.train))
fit(base, images, views, nn.CrossEntropyLoss())
torch.save(base.state_dict(), "mine.pth")
# --8<-- [end:pretrain]

# --8<-- [start:adapt]
new_images, _, new_grey = data_of(tuple(split.test))
lists: dict[str, list[Part]] = {
    "head": [Train("head")],
    "lora": [LoRA(rank=4), Train("head")],
    "adapters": [FeatureAdapter(at="mlp"), Train("head")],
}
found = {}
for name, parts in lists.items():
    model = copy.deepcopy(base)
    model.head = nn.Linear(model.head.in_features, 1)
    ak.inject(model, parts)
    fit(model, images, grey, nn.MSELoss())
    ak.save_adapter(model, f"{name}.safetensors")
    with torch.no_grad():
        found[name] = model.eval()(new_images)[:, 0]
    error = (found[name] - new_grey).abs().mean()
    print(f"{name}: {error:.3f} off, {Path(f'{name}.safetensors').stat().st_size:,} bytes")
# --8<-- [end:adapt]

# --8<-- [start:elsewhere]
torch.save({"images": new_images, "found": found["lora"]}, "expected.pth")
elsewhere = Path(__file__).with_name("add_an_encoder_elsewhere.py")
subprocess.run([sys.executable, str(elsewhere)], check=True)
# --8<-- [end:elsewhere]

# --8<-- [start:look]
figure = Figure(figsize=(6.5, 2.5), layout="constrained")
for axes, (name, value) in zip(figure.subplots(1, 3, sharey=True), found.items(), strict=True):
    axes.plot(new_grey, value, "o", color="#0072B2", markersize=3)
    axes.axline((float(new_grey.mean()),) * 2, slope=1, color="0.6", linewidth=0.8)
    error = (value - new_grey).abs().mean()
    axes.set_title(f"{name}: {error:.3f} off", fontsize=8)
    axes.set_xlabel("true brightness", fontsize=8)
    axes.tick_params(labelsize=7)
figure.axes[0].set_ylabel("found", fontsize=8)
figure.savefig("add_an_encoder.png", dpi=200)
# --8<-- [end:look]
