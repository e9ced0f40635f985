"""A trained tensor without a gradient is named."""

import warnings
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch.utils.checkpoint import checkpoint

import adapterkit as ak
from adapterkit.adapters.gradients import warn_of_missing_gradients
from adapterkit.parts import LoRA, Resize, Train


def step(sam: Sam, reentrant: bool) -> None:
    ak.inject(sam, [Resize(64), LoRA(), Train("neck"), Train("mask_decoder")])
    for block in sam.image_encoder.blocks:
        plain: Any = block.forward
        block.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=reentrant)
    sam.image_encoder(torch.rand(1, 3, 64, 64)).square().mean().backward()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_what_reentrant_checkpointing_leaves_without_gradient_is_named(sam: Sam):
    step(sam, reentrant=True)
    with pytest.warns(UserWarning, match=r"^24 trained .* lora\.0\.q\.a, .*use_reentrant=False"):
        warn_of_missing_gradients(sam)


def test_nothing_is_said_where_all_have_one(sam: Sam):
    step(sam, reentrant=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_missing_gradients(ak.Segmenter(sam))
