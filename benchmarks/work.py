"""What is timed, and the ways to do it: an embedding or a training step of an adapted Sam."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import adapterkit as ak
from adapterkit.methods import find_method, method_names
from adapterkit.promptable.stock_sam import MINI
from adapterkit.training.checkpointing import checkpointed_blocks
from adapterkit.training.embeddings import cached_embeddings
from adapterkit.training.losses import dice_bce_loss

BASES = {
    "ViT-B": ak.SamConfig(),
    "ViT-H": ak.SamConfig(width=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    "small Sam": MINI,
    "toy Sam": replace(MINI, width=32, depth=2, num_heads=2, global_blocks=(1,), image_size=256),
}


METHODS = {"SAM": None, **{find_method(name).title: name for name in method_names()}}
"""The titles of methods, and their names; SAM is the base as it comes."""


@dataclass(frozen=True)
class Work:
    """What is timed: an image embedding, also as the encoding that an answer starts with; all
    structures of an image, from its pixels, by name where the method knows names, else by a click
    each; one more click on an embedded image; or a training step on one point per structure."""

    base: str
    method: str
    task: Literal["embedding", "encoding", "all structures", "further prompt", "training step"]
    image_size: int
    batch: int
    structures: int = 1
    """Of each image, which a method that knows structures by name is told."""

    def __str__(self) -> str:
        several = f", {self.structures} structures each" if self.structures > 1 else ""
        return (
            f"{self.method} on {self.base}, {self.image_size}x{self.image_size}, {self.task}, "
            f"batch {self.batch}{several}"
        )


@dataclass(frozen=True)
class Contestant:
    """A way to do some work."""

    work: Work
    fast: bool = False
    bf16: bool = False
    checkpointed: bool = False
    compiled: bool = False
    """The image encoder, by `torch.compile`."""
    from_embeddings: bool = False
    """Image embeddings are read from files; the first round, which does not count, writes them."""

    @property
    def precision(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def __str__(self) -> str:
        options = ["fast" if self.fast else "stock"]
        options += ["bf16"] if self.bf16 else []
        options += ["checkpointed"] if self.checkpointed else []
        options += ["compiled"] if self.compiled else []
        options += ["from embeddings"] if self.from_embeddings else []
        return ", ".join(options)


def prepared(contestant: Contestant, device: str, kept: ExitStack) -> Callable[[], None]:
    """The work, with all that it needs at hand until `kept` is closed."""
    work = contestant.work
    config = BASES[work.base]
    if work.method == "SAM":
        config = replace(config, image_size=work.image_size)
    sam, method = ak.build_sam(config, seed=0), METHODS[work.method]
    if method is not None:
        ak.inject(sam, method, **options_of(work))
    sam.to(device)
    with torch.device(device):
        images = 255 * torch.rand(work.batch, 3, work.image_size, work.image_size)
        points = work.image_size * torch.rand(work.batch, work.structures, 1, 2)
        labels = torch.ones(work.batch, work.structures, 1, dtype=torch.long)
    if contestant.fast:
        ak.fast(sam)
    if contestant.compiled:
        sam.image_encoder.compile()
    segmenter = ak.Segmenter(sam)
    processor = "cuda" if device == "cuda" else "cpu"
    autocast = torch.autocast(processor, torch.bfloat16, enabled=contestant.bf16)

    @torch.no_grad()
    def embed() -> None:
        with autocast:
            segmenter.encode(images)

    if work.task in ("embedding", "encoding"):
        return embed
    if work.task != "training step":
        return asked(segmenter, work, images, ak.Prompts(points, labels), autocast)

    segmenter.train()
    trained = [each for each in segmenter.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    if contestant.checkpointed:
        kept.enter_context(checkpointed_blocks(segmenter))
    if contestant.from_embeddings:
        folder = kept.enter_context(tempfile.TemporaryDirectory())
        kept.enter_context(cached_embeddings(segmenter, Path(folder)))

    def step() -> None:
        with autocast:
            logits = segmenter(images, ak.Prompts(points, labels)).low_res_logits
            target = (torch.rand_like(logits) > 0.5).to(logits.dtype)
            loss = dice_bce_loss(logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def options_of(work: Work) -> dict[str, Any]:
    """What the method is injected with."""
    name = METHODS[work.method]
    assert name is not None
    options: dict[str, Any] = {"image_size": work.image_size}
    if "structures" in find_method(name).options:
        options["structures"] = [f"structure {k + 1}" for k in range(work.structures)]
    return options


def asked(
    segmenter: ak.Segmenter,
    work: Work,
    images: Tensor,
    clicks: ak.Prompts,
    autocast: torch.autocast,
) -> Callable[[], None]:
    """The work of what is done with an answer: all of it from the pixels, or one more click."""
    segmenter.eval()
    with torch.no_grad():
        embedding = segmenter.encode(images)

    @torch.no_grad()
    def every_structure() -> None:
        with autocast:
            segmenter(images, None if segmenter.structures else clicks).logits()

    @torch.no_grad()
    def one_more() -> None:
        with autocast:
            segmenter.decode(embedding, clicks.map(lambda each: each[:, :1])).logits()

    return every_structure if work.task == "all structures" else one_more


def trained_parameters(work: Work) -> int:
    """What the work's method trains, on its base."""
    with torch.device("meta"):
        sam = ak.build_sam(BASES[work.base])
    return ak.summary(ak.inject(sam, METHODS[work.method], **options_of(work))).trained_parameters


def share_of_work(work: Work) -> int:
    """Embeddings, or in training images times structures, that are done at once."""
    return work.batch * (work.structures if work.task == "training step" else 1)
