"""First adapter: attach parts to a Sam, train them, and keep them as one file.

On SYNTHETIC echocardiograms and the small Sam that comes with adapterkit; needs no files.
"""

# --8<-- [start:inject]
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import evaluate
from adapterkit.evaluation.plots import Case, segmentation_figure
from adapterkit.parts import ClassPrompts, Detail, LoRA, Resize, Train
from adapterkit.training.losses import dice_bce_loss, low_res_target

PATIENTS, EPOCHS = 48, 8
STRUCTURES = ["left ventricle", "myocardium", "left atrium"]

torch.manual_seed(0)
sam = ak.mini_sam()
parts = [
    Resize(128),
    LoRA(4, targets=("q", "v")),
    ClassPrompts(tuple(STRUCTURES)),
    Detail(classes=len(STRUCTURES)),
    Train("mask_decoder"),
]
ak.inject(sam, parts)
print(ak.summary(sam))
# --8<-- [end:inject]

# --8<-- [start:data]
collection = open_collection(write_phantom(Path("phantom"), patients=PATIENTS))
split = collection.random_split(seed=0)
training = SegmentationDataset(collection.of_groups(split.train), image_size=128)
test = SegmentationDataset(collection.of_groups(split.test), image_size=128)
print(f"{len(training)} images to train on, {len(test)} of other patients to test on")
# --8<-- [end:data]

# --8<-- [start:train]
model = ak.Segmenter(sam)
batches = DataLoader(training, batch_size=8, shuffle=True)
optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))
for epoch in range(EPOCHS):
    model.train()
    losses = []
    for batch in batches:
        logits = model(batch["image"]).low_res_logits  # no prompt: all structures, by name
        loss = dice_bce_loss(logits, low_res_target(batch["masks"].bool(), logits.shape[-2:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: mean loss {np.mean(losses):.3f}")
# --8<-- [end:train]

# --8<-- [start:save]
ak.save_adapter(sam, "echo.safetensors", classes=STRUCTURES)
print(ak.inspect_adapter("echo.safetensors").classes)

ak.eject(sam)
fresh = ak.mini_sam().state_dict()
assert all(torch.equal(tensor, fresh[key]) for key, tensor in sam.state_dict().items())
# --8<-- [end:save]

# --8<-- [start:measure]
ak.load_adapter(sam, "echo.safetensors")
by_name = evaluate(ak.Segmenter(sam), test, seed=0, points="class")
with ak.disabled(sam):
    at_its_size = SegmentationDataset(test.records, image_size=512)
    by_click = evaluate(ak.Segmenter(sam), at_its_size, seed=0, points="1", batch_size=2)
for name, found in (("the base, by a click", by_click), ("the adapter, by name", by_name)):
    print(f"{name}: mean Dice {found.summary()['mean']['dice']['mean']:.3f}")
# --8<-- [end:measure]

# --8<-- [start:look]
record = test.records[0]
native = record.read()
reference = np.stack([native.labels == label for label in record.structures])

predictor = ak.Predictor(sam)
predictor.set_image(native.image)
found = predictor.predict()
overlap = (found.masks & reference).sum(axis=(1, 2))
dice = 2 * overlap / (found.masks.sum(axis=(1, 2)) + reference.sum(axis=(1, 2)))
clicks = np.empty((len(STRUCTURES), 0, 2))
case = Case(record.name, native.image, reference, found.masks, clicks, STRUCTURES, dice.tolist())
segmentation_figure([case], Path("first_adapter.png"))
# --8<-- [end:look]
