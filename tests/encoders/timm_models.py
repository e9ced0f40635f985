"""Small models of timm, one for each way in which its vision transformers differ."""

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models import beit, eva, vision_transformer, vision_transformer_sam
from torch import nn

CLASSES = (
    vision_transformer.VisionTransformer,
    vision_transformer_sam.VisionTransformerSAM,
    eva.Eva,
    beit.Beit,
)
FILES = {"beit", "deit", "eva", "vision_transformer", "vision_transformer_sam"}
FILES |= {"vision_transformer_hybrid"}


@dataclass
class Variant:
    """timm's models that are alike but for their size, and how to build a small one."""

    cls: type[nn.Module]
    arguments: dict[str, Any]
    names: list[str] = field(default_factory=list)


def timm_variants() -> list[Variant]:
    """timm's models of the families, those that are alike once."""
    found: dict[tuple[Any, ...], Variant] = {}
    for name in timm.list_models():
        build = timm.model_entrypoint(name)
        module = inspect.getmodule(build)
        if module is None or module.__name__.rpartition(".")[2] not in FILES:
            continue
        cls, arguments = _recorded(build, module)
        if not issubclass(cls, CLASSES):
            continue
        arguments = _shrunken(arguments)
        key = (cls, *sorted((k, re.sub(" at 0x.*", "", repr(v))) for k, v in arguments.items()))
        found.setdefault(key, Variant(cls, arguments)).names.append(name)
    return list(found.values())


def _recorded(build: Any, module: Any) -> tuple[type[nn.Module], dict[str, Any]]:
    found: list[Any] = []

    def record(cls: type[nn.Module], variant: str, pretrained: bool, **arguments: Any) -> nn.Module:
        found.extend((cls, arguments))
        return nn.Identity()

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(module, "build_model_with_cfg", record)
        build()
    cls, arguments = found
    return cls, {k: v for k, v in arguments.items() if k in _accepted(cls)}


@cache
def _accepted(cls: type[nn.Module]) -> set[str]:
    bases = [each for each in cls.__mro__ if each in CLASSES]
    return set(inspect.signature(bases[0].__init__).parameters)


def _shrunken(arguments: dict[str, Any]) -> dict[str, Any]:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 2, "num_classes": 3}
    small |= {"img_size": 4 * arguments.get("patch_size", 16), "drop_path_rate": 0.0}
    embedding = getattr(arguments.get("embed_layer"), "keywords", {})
    if "backbone" in embedding:
        small["img_size"] = 64
    if not embedding.get("proj", True):
        small.pop("embed_dim")
    optional = {"attn_pool_num_heads": 2, "num_kv_heads": 1, "global_attn_indexes": (1,)}
    optional |= {"window_size": 3, "neck_chans": 16, "ref_feat_shape": (4, 4)}
    optional = {k: v for k, v in optional.items() if arguments.get(k)}
    if isinstance((arguments.get("ref_feat_shape") or (0,))[0], tuple):
        optional["ref_feat_shape"] = ((4, 4), (3, 3))
    return {**arguments, **small, **optional}


def built(variant: Variant) -> Any:
    """The small model, its patch embedding's CNN, if it has one, with random weights too."""
    backbone = getattr(variant.arguments.get("embed_layer"), "keywords", {}).get("backbone")
    if backbone is not None:
        for stage in getattr(backbone, "stages", ()):
            stage.blocks = stage.blocks[:1]
        for each in [*backbone.to_empty(device="cpu").parameters(), *backbone.buffers()]:
            each.data.normal_(std=0.05) if each.is_floating_point() else each.zero_()
        for name, each in backbone.named_buffers():
            if name.endswith("running_var"):
                each.data.fill_(1)
    return variant.cls(**variant.arguments)
