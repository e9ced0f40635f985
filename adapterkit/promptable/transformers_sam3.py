"""transformers' `Sam3TrackerModel`."""

from jaxtyping import Float
from torch import Tensor

from adapterkit.promptable.sam_family import sam_family
from adapterkit.promptable.transformers_sam2 import TransformersSam2


@sam_family
class TransformersSam3(TransformersSam2):
    """A `Sam3TrackerModel`: what SAM 3 has of SAM 2, for images, without memory and words."""

    title = "a transformers Sam3TrackerModel"
    # The published checkpoint is of detector and tracker, which share the encoder.
    model_types = ("sam3_tracker", "sam3_tracker_video", "sam3_video")
    class_name = "Sam3TrackerModel"

    def no_memory(self) -> Float[Tensor, "1 c 1 1"] | float:
        """The library adds it to the neck's last map, and makes no mask of a fourth one."""
        maps = self.model.vision_encoder.config.scale_factors
        return super().no_memory() if len(maps) == len(self.model.backbone_feature_sizes) else 0.0
