"""SAM 2: an image model of transformers, adapted by name, asked by name and by click.

On SYNTHETIC echocardiograms and a small SAM 2 with RANDOM weights; needs no files.
"""

# --8<-- [start:base]
from pathlib import Path

import numpy as np
import torch
from transformers import Sam2Config, Sam2Model

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.plots import Case, segmentation_figure

PATIENTS, EPOCHS, SIDE = 20, 10, 64
CHECKPOINT = Path("small_sam2")  # or "facebook/sam2.1-hiera-tiny", and none of the next lines

encoder = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 24,
    "num_attention_heads": 1,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 2, 3, 1],
    "embed_dim_per_stage": [24, 32, 48, 64],
    "num_attention_heads_per_stage": [1, 2, 3, 4],
    "window_size_per_stage": [8, 4, 8, 4],
    "global_attention_blocks": [4, 5],
    "window_positional_embedding_background_size": [4, 4],
}
vision = {
    "backbone_config": encoder,
    "backbone_channel_list": [64, 48, 32, 24],
    "backbone_feature_sizes": [[SIDE // stride] * 2 for stride in (4, 8, 16)],
    "fpn_hidden_size": 32,
}
prompts = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}
decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
torch.manual_seed(0)
small = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
Sam2Model(small).save_pretrained(CHECKPOINT)  # RANDOM weights
# --8<-- [end:base]

# --8<-- [start:inject]
STRUCTURES = ["left ventricle", "myocardium", "left atrium"]
sam2 = ak.load(CHECKPOINT)
ak.inject(sam2, "samus_plus", image_size=SIDE, structures=STRUCTURES)
print(ak.summary(sam2))
ak.eject(sam2)
# --8<-- [end:inject]

# --8<-- [start:train]
data = write_phantom(Path("phantom"), patients=PATIENTS, image_size=SIDE)
run = ak.train(
    data, checkpoint=CHECKPOINT, method="samus_plus", image_size=SIDE, prompts="class",
    epochs=EPOCHS, learning_rate=2e-3, out="sam2_run",
)  # fmt: skip
assert run is not None
assert run.adapter is not None
print((run.folder / "table.md").read_text())
# --8<-- [end:train]

# --8<-- [start:predict]
echo = open_collection(data)
record = echo.of_groups(echo.divided().test)[0]
native = record.read()
truth = np.stack([native.labels == label for label in record.structures])

predictor = ak.Predictor.from_files(CHECKPOINT, run.adapter)
predictor.set_image(native.image)
by_name = predictor.predict()  # all structures, without a click
rows, columns = truth[0].nonzero()
click = (float(columns.mean()), float(rows.mean()))
by_click = predictor.predict(points=[[click]], labels=[[1]])
# --8<-- [end:predict]

# --8<-- [start:look]
masks = by_name.masks
dice = 2 * (masks & truth).sum((1, 2)) / (masks.sum((1, 2)) + truth.sum((1, 2)))
clicks = np.empty((len(STRUCTURES), 0, 2))
case = Case(
    f"{record.name}, SAM 2 by name", native.image, truth, masks, clicks, STRUCTURES, [*dice]
)
segmentation_figure([case], Path("sam2.png"))
# --8<-- [end:look]
