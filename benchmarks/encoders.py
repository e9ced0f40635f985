"""Which of timm's models can be adapted, and with what.

    python -m benchmarks.encoders

Every model whose class is one that adapterkit knows, or is made of one, is built as timm builds it,
at its own size, and SAMUS attached to it, on PyTorch's meta device: neither weights nor memory are
needed, and no model is left out for its size.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

from rich.progress import track

import adapterkit as ak
from adapterkit.system.command_line import console, run

if TYPE_CHECKING:
    from torch import nn

ALL = "every part"
NO_OVERLAP = "every part; their patches, made by several convolutions, cannot overlap"
SIDE_BY_SIDE = (
    "feature adapters at `tokens`, `attn_in`, `block_out` and `output`, CNN branch: attention and "
    "MLP are one module, or several lie side by side"
)
REFUSED = "none: "


@dataclass(frozen=True)
class Config:
    models: str = "*"
    """Of timm's models those whose names fit this pattern."""


def main(config: Config) -> None:
    import timm
    import torch

    taken: dict[str, list[str]] = {}
    names = [name for name in timm.list_models(config.models) if is_of_a_family(name)]
    if not names:
        raise ValueError(f"--models {config.models}: fits no model of a family of adapterkit's")
    for name in track(names, "models", console=console, transient=True):
        with torch.device("meta"):
            taken.setdefault(what_it_takes(timm.create_model(name)), []).append(name)
    print(f"Of {len(names)} models of timm {timm.__version__}:\n")
    print(table(taken))


@cache
def known_classes() -> tuple[type, ...]:
    """Of timm's models those that adapterkit knows."""
    from timm.models import beit, eva, vision_transformer, vision_transformer_sam

    return (
        vision_transformer.VisionTransformer,
        vision_transformer_sam.VisionTransformerSAM,
        eva.Eva,
        beit.Beit,
    )


class _Found(Exception):
    """Ends the building of a model once its class is known."""


def is_of_a_family(name: str) -> bool:
    """Whether timm makes this model of a class that adapterkit knows; it is not built."""
    import timm
    import torch

    build = timm.model_entrypoint(name)
    module = inspect.getmodule(build)
    if not hasattr(module, "build_model_with_cfg"):
        return False

    def tell(cls: Any, *_: Any, **__: Any) -> NoReturn:
        raise _Found(cls)

    with patch.object(module, "build_model_with_cfg", tell), torch.device("meta"):
        try:
            build()
        except _Found as found:
            return inspect.isclass(found.args[0]) and issubclass(found.args[0], known_classes())
    return False


def what_it_takes(model: "nn.Module") -> str:
    """Which parts can be attached to a model, or why it is refused."""
    try:
        base = ak.view(model)
    except ValueError as error:
        return REFUSED + str(error)
    if "mlp" not in base.blocks[-1].sites:
        branch = ak.parts.CNNBranch(output_scale=0.5 if base.reads_patches else 0)
        ak.inject(model, [ak.parts.FeatureAdapter(at="block_out"), branch])
        return SIDE_BY_SIDE
    overlaps = base.patches_can_overlap
    stride = base.patch_size // 2 if overlaps else base.patch_size
    size = base.image_size // stride * stride  # Some do not read their image's border.
    ak.inject(model, "samus", image_size=size, patch_stride=stride)
    ak.inject(model, [ak.parts.LoRA()], name="lora")
    return ALL if overlaps else NO_OVERLAP


def table(taken: dict[str, list[str]]) -> str:
    """A row for what is taken; of more than eight models, the first of them."""
    from adapterkit.evaluation.tables import markdown

    rows = []
    for what, names in sorted(taken.items(), key=lambda each: -len(each[1])):
        shown = ", ".join(f"`{name}`" for name in names[:8])
        rows.append([str(len(names)), what, shown + ", …" * (len(names) > 8)])
    return markdown(["models", "take", "which"], rows)


if __name__ == "__main__":
    run(main, Config)
