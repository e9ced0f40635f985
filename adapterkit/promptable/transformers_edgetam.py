"""transformers' `EdgeTamModel`."""

from adapterkit.promptable.sam_family import sam_family
from adapterkit.promptable.transformers_sam2 import TransformersSam2


@sam_family
class TransformersEdgeTam(TransformersSam2):
    """An `EdgeTamModel`: SAM 2 with a small convolutional encoder."""

    title = "a transformers EdgeTamModel"
    model_types = ("edgetam", "edgetam_video")
    class_name = "EdgeTamModel"
