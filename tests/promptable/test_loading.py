"""Models are loaded from files, from folders of transformers, and by their name on the Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import adapterkit as ak
from adapterkit.promptable import loading
from adapterkit.promptable.stock_sam import save_sam
from tests.models import ECHO, snapshot
from tests.transformers_models import (
    MODELS,
    edgetam_config,
    sam2_config,
    sam2_model,
    sam3_config,
    sam3_detector_model,
    sam3_video_model,
    sam_model,
    transformers,
)

Make = Callable[[], Any]


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_folder_of_transformers_is_loaded(tmp_path: Path, make: Make):
    model = make()
    model.save_pretrained(tmp_path / "model")
    found = ak.load(tmp_path / "model")
    assert type(found) is type(model)
    assert not found.training
    assert same(found, model)


def test_a_file_is_loaded_as_the_sam_of_segment_anything(tmp_path: Path):
    sam = ak.build_sam(ECHO, seed=0)
    save_sam(sam, tmp_path / "sam.safetensors")
    assert same(ak.load(tmp_path / "sam.safetensors"), sam)


def test_weights_of_16_bits_are_loaded_in_float32(tmp_path: Path):
    sam_model().half().save_pretrained(tmp_path)
    assert {each.dtype for each in ak.load(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("image", "video", "config"),
    [
        ("Sam2Model", "Sam2VideoModel", sam2_config("Sam2VideoConfig")),
        ("Sam3TrackerModel", "Sam3TrackerVideoModel", sam3_config("Sam3TrackerVideoConfig")),
        ("EdgeTamModel", "EdgeTamVideoModel", edgetam_config("EdgeTamVideoConfig")),
    ],
)
def test_a_model_for_videos_is_loaded_as_that_for_images(
    tmp_path: Path, image: str, video: str, config: Any
):
    torch.manual_seed(0)
    model = getattr(transformers, video)(config)
    model.save_pretrained(tmp_path)
    found = ak.load(tmp_path)
    assert type(found) is getattr(transformers, image)
    theirs: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in found.state_dict().items())


def in_sam3_video(name: str) -> str:
    """What a `Sam3VideoModel` calls a tensor of the tracker in it."""
    if name.startswith("vision_encoder.backbone."):
        return f"detector_model.{name}"
    if name.startswith("vision_encoder.neck."):
        return name.replace("vision_encoder.neck", "tracker_neck")
    return f"tracker_model.{name}"


def test_of_sam_3_the_tracker_is_loaded(tmp_path: Path):
    model = sam3_video_model()
    model.config.save_pretrained(tmp_path)
    theirs: dict[str, Tensor] = model.state_dict()
    # As it is published; save_pretrained of transformers 5.24 has "tracker_model." twice.
    save_file(theirs, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = ak.load(tmp_path)
    assert type(found) is transformers.Sam3TrackerModel
    own = found.state_dict()
    assert all(torch.equal(each, theirs[in_sam3_video(name)]) for name, each in own.items())


def test_a_model_that_is_asked_by_words_is_refused(tmp_path: Path):
    sam3_detector_model().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"a Sam3Model \(model_type 'sam3'\): .*; the encoder of another model can be adapted",
    ):
        ak.load(tmp_path)


def test_the_normalisation_of_its_image_processor_counts(tmp_path: Path):
    sam2_model().save_pretrained(tmp_path)
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    model = ak.load(tmp_path)
    mean, std = ak.Segmenter(model).normalisation
    torch.testing.assert_close(mean.flatten(), torch.tensor([127.5, 102.0, 76.5]))
    torch.testing.assert_close(std.flatten(), torch.tensor([51.0, 51.0, 25.5]))
    before = snapshot(model)
    ak.inject(model, "medsam")
    ak.save_adapter(model, tmp_path / "adapter.safetensors")
    assert ak.inspect_adapter(tmp_path / "adapter.safetensors").mean == (0.0, 0.0, 0.0)
    assert ak.Segmenter(model).normalisation[1].flatten().tolist() == [255.0] * 3
    assert snapshot(ak.eject(model)) == before
    ak.inject(model, [ak.parts.LoRA(1)])
    ak.save_adapter(model, tmp_path / "adapter.safetensors")
    header = ak.inspect_adapter(tmp_path / "adapter.safetensors")
    assert header.mean == pytest.approx((127.5, 102.0, 76.5))
    assert header.family == "transformers_sam2"


def test_a_name_on_the_hub_is_downloaded_as_safetensors_and_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = sam2_model()
    model.save_pretrained(tmp_path)
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert same(ak.load("facebook/sam2.1-hiera-tiny"), model)
    patterns = {"allow_patterns": ["*.json", "*.safetensors"]}
    assert asked == [("facebook/sam2.1-hiera-tiny", patterns)]


def test_without_the_hub_it_says_so(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError,
        match=r"there is no file or folder nobody/no-model here, and .* HF_HUB_OFFLINE is set",
    ):
        ak.load("nobody/no-model")


def test_no_such_file_or_folder(tmp_path: Path):
    for name in ("sam.pth", "models/sam.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at .*{name}"):
            ak.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no config\.json: expected a folder that"):
        ak.load(tmp_path)


def test_a_folder_of_another_model_is_refused(tmp_path: Path):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"holds a ViTModel \(model_type 'vit'\): expected .* of model_type sam, sam_hq, sam2",
    ):
        ak.load(tmp_path)


def test_weights_that_could_run_code_are_refused(tmp_path: Path):
    sam_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights in safetensors, and other files can run code"):
        ak.load(tmp_path)


def test_a_checkpoint_that_lacks_tensors_or_has_others_is_refused(tmp_path: Path):
    model = sam_model()
    tensors = model.state_dict()
    lacking = {name: each for name, each in tensors.items() if "neck.conv1" not in name}
    model.save_pretrained(tmp_path, state_dict=lacking)
    with pytest.raises(ValueError, match="lacks 1 of the model's tensors"):
        ak.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 20
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be read as a SamModel"):
        ak.load(tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "is_name"),
    [("facebook/sam2.1-hiera-tiny", True), ("a/b.pth", False), ("sam", False), ("a/b/c", False)],
)
def test_what_is_a_name_on_the_hub(checkpoint: str, is_name: bool):
    assert loading.is_on_the_hub(Path(checkpoint)) == is_name
    assert loading.absolute(Path(checkpoint)) == (
        Path(checkpoint) if is_name else Path(checkpoint).resolve()
    )
