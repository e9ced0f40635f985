"""The core with its own dependencies alone: inject, save, load, and predict on arrays."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import torch

import adapterkit as ak
from adapterkit.system.extras import MissingExtraError

OF_EXTRAS = ("fastapi", "matplotlib", "monai", "nibabel", "pandas", "PIL", "SimpleITK")

here = [name for name in OF_EXTRAS if importlib.util.find_spec(name)]
# timm and torchvision bring Pillow along.
assert {*here} <= {"PIL"}, f"expected the core alone, found {here}"

image = np.random.default_rng(0).integers(0, 256, (100, 120), dtype=np.uint8)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "adapter.safetensors"
    sam = ak.inject(ak.mini_sam(), "samed", image_size=256, rank=2)
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    ak.save_adapter(sam, file)
    predicted = []
    for model in (sam, ak.load_adapter(ak.mini_sam(), file)):
        predictor = ak.Predictor(model)
        predictor.set_image(image)
        predicted.append(predictor.predict(points=[[(60, 40)]], labels=[[1]]))
    assert predicted[0].masks.shape[-2:] == image.shape
    np.testing.assert_array_equal(predicted[0].logits, predicted[1].logits)
    asked_for = ""
    try:
        ak.train(Path(folder))
    except MissingExtraError as error:
        asked_for = str(error)
    assert "adapterkit[train]" in asked_for
print("the core alone injects, saves, loads and predicts")
