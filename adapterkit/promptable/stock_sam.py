"""`segment_anything` models, built from a configuration or from a checkpoint of any size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from adapterkit.system.checkpoints import load_state_dict
from adapterkit.system.files import save_tensors


@dataclass(frozen=True)
class SamConfig:
    """The sizes of a `Sam`; the defaults are ViT-B's.

    Attributes:
        width: channels of an encoder token.
        depth: encoder blocks.
        num_heads: attention heads of an encoder block.
        global_blocks: indices of the blocks that attend globally.
        window_size: tokens a side of the other blocks' windows.
        image_size: side of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        prompt_width: channels of the image embedding, of prompts and of the mask decoder.
        decoder_mlp_width: hidden channels of the mask decoder's MLPs.
        decoder_num_heads: attention heads of the mask decoder.
        mask_prompt_width: hidden channels of the mask prompt's convolutions.
        iou_head_width: hidden channels of the IoU prediction head.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window_size: int = 14
    image_size: int = 1024
    patch_size: int = 16
    prompt_width: int = 256
    decoder_mlp_width: int = 2048
    decoder_num_heads: int = 8
    mask_prompt_width: int = 16
    iou_head_width: int = 256

    @classmethod
    def of(cls, state_dict: Mapping[str, Tensor], decoder_num_heads: int = 8) -> "SamConfig":
        """The configuration that a `Sam`'s state dict was made with, read off its shapes.

        Args:
            state_dict: with the keys of `Sam.state_dict()`.
            decoder_num_heads: the one size that leaves no trace in the shapes; 8 in all of SAM's.

        Raises:
            KeyError: a tensor that every `Sam` has is missing.
        """
        encoder = "image_encoder"
        _, grid, _, width = state_dict[f"{encoder}.pos_embed"].shape
        patch_size = state_dict[f"{encoder}.patch_embed.proj.weight"].shape[-1]
        tables = []
        while (key := f"{encoder}.blocks.{len(tables)}.attn.rel_pos_h") in state_dict:
            tables.append(state_dict[key])
        rows = [len(table) for table in tables]
        global_rows = 2 * grid - 1
        windows = [(each + 1) // 2 for each in rows if each != global_rows]
        return cls(
            width=width,
            depth=len(tables),
            num_heads=width // tables[0].shape[1],
            global_blocks=tuple(i for i, each in enumerate(rows) if each == global_rows),
            window_size=windows[0] if windows else 14,
            image_size=grid * patch_size,
            patch_size=patch_size,
            prompt_width=len(state_dict[f"{encoder}.neck.0.weight"]),
            decoder_mlp_width=len(state_dict["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
            decoder_num_heads=decoder_num_heads,
            mask_prompt_width=len(state_dict["prompt_encoder.mask_downscaling.3.weight"]),
            iou_head_width=len(state_dict["mask_decoder.iou_prediction_head.layers.0.weight"]),
        )


MINI = SamConfig(
    width=192,
    depth=8,
    num_heads=6,
    global_blocks=(1, 3, 5, 7),
    window_size=8,
    image_size=512,
    prompt_width=128,
    decoder_mlp_width=512,
)
"""The sizes of `mini_sam`, 4.9 M parameters: it trains on a laptop's CPU."""


def build_sam(config: SamConfig | None = None, seed: int | None = None) -> Sam:
    """A `Sam` of stock classes with random weights, in evaluation mode.

    Position embeddings and relative-position tables, which `segment_anything` leaves at zero for a
    checkpoint to fill, are drawn like a fresh ViT's (normal, standard deviation 0.02).

    Args:
        config: sizes; None for ViT-B's.
        seed: of the weights; None draws from PyTorch's global generator.

    Returns:
        The model, for square images of `config.image_size` pixels.
    """
    config = config or SamConfig()
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        sam = _stock_sam(config)
        for name, parameter in sam.image_encoder.named_parameters():
            if name == "pos_embed" or "rel_pos" in name:
                nn.init.trunc_normal_(parameter, std=0.02)
    return sam.eval()


def load_sam(checkpoint: str | Path, decoder_num_heads: int = 8) -> Sam:
    """A `Sam` with the weights of `checkpoint`, in evaluation mode.

    Its sizes are read off the checkpoint, so `sam_vit_b_01ec64.pth`, `sam_vit_l_0b3195.pth`,
    `sam_vit_h_4b8939.pth`, MedSAM's `medsam_vit_b.pth` and any other `Sam` load alike.

    Args:
        checkpoint: a `.pth` or `.safetensors` file; nothing but tensors is ever unpickled.
        decoder_num_heads: of the mask decoder's attention, which leave no trace in a checkpoint; 8
            in all of SAM's.

    Returns:
        The model, for square images of the size that it was made for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a `Sam`'s checkpoint.
    """
    state_dict = load_state_dict(checkpoint)
    try:
        sam = _stock_sam(SamConfig.of(state_dict, decoder_num_heads))
        sam.load_state_dict(state_dict)
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint} is not a checkpoint of a segment_anything Sam "
            f"(its first tensors are {sorted(state_dict)[:3]}): {error}"
        ) from error
    return sam.eval()


def mini_sam() -> Sam:
    """A small pretrained `Sam` that comes with adapterkit, in evaluation mode.

    Of stock classes and 512x512 pixels, so that whatever works on SAM can be tried on it within
    seconds and without a download. A demonstration and test model, not for clinical use: it has
    seen nothing but procedural scenes (`data.synthetic.scenes`), and answers clicks far less well
    than SAM. `weights/MODEL_CARD.md` says how it was made and what it is worth.

    Returns:
        The model, with 4.9 M parameters.
    """
    with as_file(files("adapterkit") / "weights" / "mini_sam.safetensors") as path:
        return load_sam(path)


def resized_sam(sam: Sam, image_size: int) -> Sam:
    """A copy of a stock `Sam` for another input size, to go on training there.

    Position embedding and relative-position tables of the global blocks are interpolated.

    Args:
        image_size: side of the square input in pixels, a multiple of the patch size.
    """
    state_dict = dict(sam.state_dict())
    heads = cast(TwoWayTransformer, sam.mask_decoder.transformer).num_heads
    # Shapes do not tell windows from a grid of their size, so they are asked for.
    windows = [cast(int, block.window_size) for block in sam.image_encoder.blocks]
    config = replace(
        SamConfig.of(state_dict, heads),
        image_size=image_size,
        global_blocks=tuple(i for i, window in enumerate(windows) if window == 0),
        window_size=max(windows) or SamConfig.window_size,
    )
    resized = _stock_sam(config)
    for name, there in resized.state_dict().items():
        here = state_dict[name]
        if here.shape == there.shape:
            continue
        if name == "image_encoder.pos_embed":
            grid = here.permute(0, 3, 1, 2)
            grid = F.interpolate(grid, there.shape[1:3], mode="bicubic", align_corners=False)
            state_dict[name] = grid.permute(0, 2, 3, 1)
        else:
            table = F.interpolate(here.T[None], len(there), mode="linear", align_corners=False)
            state_dict[name] = table[0].T
    resized.load_state_dict(state_dict)
    return resized.train(sam.training)


def save_sam(sam: Sam, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a `Sam`'s weights as safetensors, for `load_sam`; `dtype` is that of the file."""
    save_tensors(path, {name: each.to("cpu", dtype) for name, each in sam.state_dict().items()}, {})


def _stock_sam(config: SamConfig) -> Sam:
    grid = config.image_size // config.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            out_chans=config.prompt_width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.prompt_width,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_prompt_width,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=config.prompt_width,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=config.prompt_width,
                num_heads=config.decoder_num_heads,
                mlp_dim=config.decoder_mlp_width,
            ),
            iou_head_hidden_dim=config.iou_head_width,
        ),
    )
