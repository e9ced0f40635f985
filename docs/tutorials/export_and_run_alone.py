"""Masks of an image by onnxruntime. It needs neither adapterkit nor PyTorch."""

# --8<-- [start:alone]
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

about = json.loads(Path("echo_onnx/export.json").read_text())
side, names = about["image_size"], about["classes"]
encoder, decoder = (
    onnxruntime.InferenceSession(f"echo_onnx/{name}.onnx") for name in ("encoder", "decoder")
)

# The image, squashed to the square that the model takes: RGB in [0, 255], one image. Channel by
# channel as numbers, for Pillow rounds pixels twice.
scan = Image.open("scan.png").convert("RGB")
bands = [band.convert("F").resize((side, side), Image.Resampling.BILINEAR) for band in scan.split()]
images = np.stack([np.asarray(band).round() for band in bands])[None]
embedding, detail = map(np.asarray, encoder.run(None, {"images": images}))

# Every structure by its name alone: two points of label -1, and no mask.
count, low_res = len(names), 4 * embedding.shape[-1]
given = {
    "image_embeddings": embedding,
    "detail_maps": detail,
    "classes": np.arange(count)[None],
    "point_coords": np.zeros((1, count, 2, 2), np.float32),
    "point_labels": np.full((1, count, 2), -1),
    "mask_input": np.zeros((1, count, low_res, low_res), np.float32),
    "has_mask_input": np.zeros((1, count), np.float32),
}
logits, _, presence = map(np.asarray, decoder.run(None, given))

# Back to the image's own pixels; the first of a structure's four masks is the answer.
masks = {}
for name, of_structure, is_there in zip(names, logits[0, :, 0], presence[0], strict=True):
    native = Image.fromarray(of_structure).resize(scan.size, Image.Resampling.BILINEAR)
    masks[name] = (np.asarray(native) > 0) & (is_there >= 0)
    print(f"{name}: {masks[name].sum():,} pixels")
np.savez("masks.npz", **masks)
assert not {"torch", "adapterkit"} & sys.modules.keys()
# --8<-- [end:alone]
