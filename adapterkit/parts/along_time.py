"""What looks from a frame's tokens to those of the other frames of its sequence."""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Frames
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import BLOCK_SITES, ENCODER_SITES, Block, Blocks, Site

TokenSite = Literal["tokens", "attn_in", "attn_out", "mlp", "block_out", "output"]

MAX_REACH = 64
"""Frames before and after it that a frame's tokens are computed of, at most, by one part."""


class AlongTime(Protocol):
    """A module of tokens, (N * T, *places, width), of N sequences of T frames."""

    def __call__(self, tokens: Tensor, frames: int, layout: TokenLayout) -> Tensor: ...


class OfSequences:
    """A branch of tokens that knows how long the sequences of the pass are."""

    def __init__(self, module: AlongTime, frames: Frames, layout: TokenLayout):
        self.module = module
        self.frames = frames
        self.layout = layout

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.module(tokens, self.frames(), self.layout)


def add_along_time(
    to: Attachment,
    part: str,
    path: str,
    at: str,
    blocks: Blocks,
    reach: int,
    module: Callable[[int], nn.Module],
) -> None:
    """Add a module to each chosen block's site, to which it tells how long sequences are.

    Args:
        to: where.
        part: its name, for messages.
        path: of its modules, before the site's name and the block's index.
        at: the site.
        blocks: the selection; a word means those whose tokens there are in the order of the image.
        reach: frames before and after it that a frame's tokens are computed of.
        module: an `AlongTime` for tokens of a width.

    Raises:
        ValueError: there is no such site, or its tokens do not tell which is of which place.
    """
    if to.view.drops_patches:
        raise ValueError(
            f"{part}: this {to.view.family} encoder drops patch tokens in training, so that a "
            "place's token is not there in every frame; build it with patch_drop_rate=0"
        )

    def has_order(block: Block) -> bool:
        return at in block.sites and block.sites[at].layout.in_order

    for block in [None] if at in ENCODER_SITES else to.select(blocks, has_order):
        site = to.site(at, block)
        where = f"{path}.{at}" if block is None else f"{path}.{at}.{block.index}"
        _check_order(part, to.view.family, at, site)
        added = module(site.width)
        to.add(where, added)
        # Channels first become channels last before a branch sees them.
        layout = TokenLayout() if site.layout.form == "channels_first" else site.layout
        branch = OfSequences(added, to.context.reads_frames(reach), layout)
        to.add_residual(at, branch, block=block)


def check_options(part: str, at: str, reach: int) -> None:
    """See that a part of this name has a site and a reach that there are.

    Raises:
        ValueError: it has not.
    """
    sites = (*ENCODER_SITES, *BLOCK_SITES)
    if at not in sites:
        raise ValueError(f"{part}(at={at!r}): expected one of {sites}")
    if not 1 <= reach <= MAX_REACH:
        raise ValueError(f"{part}(reach={reach}): expected 1 to {MAX_REACH} frames")


def _check_order(part: str, family: str, at: str, site: Site) -> None:
    if not site.layout.in_order:
        raise ValueError(
            f"{part}(at={at!r}): the tokens there lie within windows in this {family} encoder, "
            "where none can be told from those of other places and frames; attach it at another "
            "site or in other blocks, where they are in order"
        )
