"""The table of timm's models."""

import pytest
import timm
from timm.models import vision_transformer

from benchmarks import encoders


def test_a_row_for_what_models_take(capsys: pytest.CaptureFixture[str]):
    encoders.main(encoders.Config(models="*vit_tiny*"))
    printed = capsys.readouterr().out
    names = [name for name in timm.list_models("*vit_tiny*") if encoders.is_of_a_family(name)]
    assert f"Of {len(names)} models of timm {timm.__version__}:" in printed
    assert f"| {encoders.ALL} | `vit_tiny_patch16_224`" in printed
    assert f"| {encoders.NO_OVERLAP} | `vit_tiny_r_s16_p8_224`" in printed


def test_models_whose_attention_and_mlp_are_one_module_are_told(
    capsys: pytest.CaptureFixture[str],
):
    encoders.main(encoders.Config(models="vit_small_patch16_18x2_224"))
    assert f"| 1 | {encoders.SIDE_BY_SIDE} | " in capsys.readouterr().out


def test_a_model_is_of_a_family_by_its_class():
    names = [name for name in timm.list_models("resnet18*") if encoders.is_of_a_family(name)]
    assert not names
    assert encoders.is_of_a_family("vit_tiny_patch16_224")
    assert issubclass(vision_transformer.VisionTransformer, encoders.known_classes())
    with pytest.raises(ValueError, match=r"--models resnet18: fits no model"):
        encoders.main(encoders.Config(models="resnet18"))
