"""A model that is prompted as others are, and computes with its export."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks


class OnnxSegmenter(ak.Segmenter):
    """A `Segmenter` that computes with the export of its model."""

    def __init__(self, sam: Sam, folder: Path):
        super().__init__(sam)
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
        )

    def _encode(self, images: Tensor) -> Embedding:
        image = torch.from_numpy(self.encoder.run(None, {"images": images.numpy()})[0])
        return Embedding(image, self.image_size)

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        points, labels = prompts.points, prompts.labels
        assert points is not None
        assert labels is not None
        batch, count = labels.shape[:2]
        side = 4 * embedding.image.shape[-1]
        logits, iou = self.decoder.run(
            None,
            {
                "image_embeddings": embedding.image.numpy(),
                "point_coords": np.pad(points.numpy(), ((0, 0), (0, 0), (0, 1), (0, 0))),
                "point_labels": np.pad(
                    labels.numpy(), ((0, 0), (0, 0), (0, 1)), constant_values=-1
                ),
                "mask_input": np.zeros((batch, count, side, side), np.float32),
                "has_mask_input": np.zeros((batch, count), np.float32),
            },
        )
        return Masks(torch.from_numpy(logits), torch.from_numpy(iou), embedding.image_size)
