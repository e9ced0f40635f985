"""AutoSAMUS: SAMUS with a generator of prompts in the place of clicks.

In the published code of SAMUS (Lin et al. 2023, arXiv 2309.06824), which trains the generator
alone, on a trained SAMUS whose rest is frozen. Here both are one adapter, trained together, unless
the generator is attached beside a trained SAMUS:

    ak.load_adapter(sam, "samus.safetensors", "samus")
    ak.inject(sam, [ak.parts.PromptGenerator(("nodule",))], "auto")
    ak.activate(sam, "samus", "auto")
    ak.adapters_of(sam)["samus"].requires_grad_(False)
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods import samus
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import PromptGenerator

_LAYERS = {"cross_token_token": "with_mask_tokens", "cross_image_token": "with_image"}
_BLOCKS = ("attend_first", "attend_second", "mlp_first", "mlp_second")
_WITHIN = {
    "norm1": "norm_queries",
    "norm2": "norm_keys",
    "fn.to_q": "queries",
    "fn.to_kv": "keys_values",
    "fn.to_out.0": "out",
    "norm": "0",
    "fn.net.0": "1",
    "fn.net.3": "3",
}


def generator_names(keys: Mapping[str, Tensor]) -> dict[str, str]:
    """For each key of the published generator, the adapter's key."""
    names: dict[str, str] = {}
    for key in keys:
        theirs, _, rest = key.partition(".")
        if theirs == "feature_adapter":
            names[key] = f"prompt_generator.dense.{rest}"
        elif key == "prompt_generator.object_token":
            names[key] = "prompt_generator.object_tokens"
        elif rest.startswith("token_proj."):
            names[key] = f"prompt_generator.project.{rest.removeprefix('token_proj.')}"
        elif theirs == "prompt_generator":
            match = re.fullmatch(r"(\w+)\.layers\.(\d+)\.(\d)\.(.+)\.(weight|bias)", rest)
            if match is None or match[1] not in _LAYERS or match[4] not in _WITHIN:
                raise KeyError(key)
            path = _LAYERS[match[1]], match[2], _BLOCKS[int(match[3])], _WITHIN[match[4]], match[5]
            names[key] = ".".join(["prompt_generator", *path])
    if "prompt_generator.object_token" not in names:
        raise KeyError("prompt_generator.object_token")
    return names


def read_checkpoint(
    base: ViT, tensors: Mapping[str, Tensor], structures: Sequence[str] = ("foreground",)
) -> Mapped:
    """The checkpoint is of one structure, and does not tell what it is called."""
    found, names = samus.read_checkpoint(base, tensors)
    if len(structures) != 1:
        raise ValueError(f"structures has {len(structures)} names, and it is of one structure")
    return [*found, PromptGenerator(tuple(structures))], names | generator_names(tensors)


@register_method(
    "autosamus",
    title="AutoSAMUS",
    # xianlin7/SAMUS, train.py.
    schedule=Schedule(learning_rate=5e-4, batch_size=8),
    read_checkpoint=read_checkpoint,
)
def parts(
    view: ViT | None = None,
    image_size: int = 256,
    patch_stride: int = 8,
    structures: Sequence[str] = ("foreground",),
) -> list[Part]:
    """To an image encoder alone, which is not prompted, without the generator.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches.
        structures: names of those that are asked for without a click.
    """
    found = samus.parts(view, image_size, patch_stride)
    if view is not None and view.decoder is None:
        return found
    return [*found, PromptGenerator(tuple(structures))]
