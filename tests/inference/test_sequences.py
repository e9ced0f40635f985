"""Sequences in windows of time, and masks that are carried from frame to frame."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapterkit as ak
from adapterkit.inference import sequences
from adapterkit.parts import ClassPrompts, Detail, FeatureAdapter, Resize, TemporalAttention
from adapterkit.promptable.stock_sam import save_sam
from tests.models import TINY
from tests.parts.test_temporal import moved

RANDOM = np.random.default_rng(0)
HEART = RANDOM.integers(0, 256, (12, 40, 50), dtype=np.uint8)
CLICK: dict[str, Any] = {"points": [[(20, 10)]], "labels": [[1]]}


# With the number of heads that a checkpoint without any trace of it is taken to have.
CONFIG = replace(TINY, decoder_num_heads=8)


def predictor(*parts: Any) -> ak.Predictor:
    sam = moved(ak.inject(ak.build_sam(CONFIG, seed=0), [Resize(64), *parts]))
    with torch.no_grad():
        for name, each in sam.named_parameters():
            if name.endswith("class_prompts.presence.bias"):
                each.fill_(20)
    return ak.Predictor(sam)


@pytest.fixture(scope="module")
def by_name() -> ak.Predictor:
    return predictor(TemporalAttention(blocks=(2,), reach=2), ClassPrompts(("a", "b")), Detail(4))


def test_windows_give_what_all_frames_at_once_give(by_name: ak.Predictor):
    promptable = by_name.promptable
    assert promptable.reach == 2
    squares = []
    for frame in by_name.each_frame(HEART):
        squares.append(by_name._square(by_name.image, frame))  # pyright: ignore
    with torch.no_grad():
        expected = promptable.encode(torch.stack(squares), frames=len(HEART))

    @settings(max_examples=8, deadline=None)
    @given(window=st.integers(1, 14), backward=st.booleans(), first=st.integers(0, 11))
    def check(window: int, backward: bool, first: int) -> None:
        order = range(first, -1, -1) if backward else range(first, len(HEART))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequences, "WINDOW", window)
            found = dict(sequences.embeddings(promptable, squares.__getitem__, order, len(HEART)))
        assert list(found) == list(order)
        for number, embedding in found.items():
            torch.testing.assert_close(embedding.image[0], expected.image[number])
            assert embedding.maps.keys() == expected.maps.keys()

    check()


def test_a_frame_that_is_set_alone_is_as_in_its_sequence(by_name: ak.Predictor):
    found = dict(by_name.predict_sequence(HEART))
    assert list(found) == list(range(12))
    image = by_name.image
    assert image is not None
    by_name.set_image(image, 5)
    np.testing.assert_allclose(by_name.predict().logits, found[5].logits, rtol=1e-3, atol=1e-3)
    by_name.set_image(HEART[5])
    assert not np.allclose(by_name.predict().logits, found[5].logits, rtol=1e-3, atol=1e-3)
    in_frames = [each.logits for each in by_name.predict_frames(HEART, classes=["b"])]
    np.testing.assert_allclose(in_frames[5][0], found[5].logits[1], rtol=1e-3, atol=1e-3)


def test_without_temporal_parts_each_frame_is_as_before():
    plain = predictor(FeatureAdapter())
    found = dict(plain.predict_sequence(HEART[:3], **CLICK))
    for number, each in found.items():
        plain.set_image(HEART[number])
        assert np.array_equal(each.logits, plain.predict(**CLICK).logits)


def test_masks_of_one_frame_prompt_the_next_in_both_directions(by_name: ak.Predictor):
    prompts = {**CLICK, "classes": ["b"]}
    found = list(by_name.predict_sequence(HEART[:5], frame=2, **prompts))
    assert [number for number, _ in found] == [2, 3, 4, 1, 0]
    masks = {number: each.low_res_logits for number, each in found}
    for frame in (2, 3, 1, 0):
        before = {3: 2, 1: 2, 0: 1}.get(frame)
        for number in by_name.each_frame(HEART[:5], [frame]):
            if before is None:
                again = by_name.predict(**prompts)
            else:
                # Those of `Detail` are of the image's size, and prompts of a quarter's.
                small = torch.nn.functional.interpolate(
                    torch.from_numpy(masks[before])[None], (16, 16), mode="bilinear", antialias=True
                )
                again = by_name.predict(masks=small[0].numpy(), classes=["b"])
            np.testing.assert_allclose(again.low_res_logits, masks[number], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("frame", "prompts", "message"),
    [
        (9, CLICK, "frame is 8, and the array has frames 0 to 4|frame is 9"),
        (5, CLICK, "frame is 5, and the array has frames 0 to 4"),
        (-1, CLICK, "frame is -1, and the array has frames 0 to 4"),
        (1, {}, "frame=1 has no prompt: give points, boxes or masks"),
    ],
)
def test_a_frame_that_is_not_there_is_refused(
    by_name: ak.Predictor, frame: int, prompts: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        list(by_name.predict_sequence(HEART[:5], frame, **prompts))


def test_windows_hold_as_much_of_a_long_sequence_as_of_a_short_one(
    by_name: ak.Predictor, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    encode = by_name.promptable.encode

    def noted(images: torch.Tensor, frames: int = 1) -> Any:
        sizes.append(len(images))
        return encode(images, frames)

    monkeypatch.setattr(by_name.promptable, "encode", noted)
    long = np.concatenate([HEART] * 3)
    assert len(dict(by_name.predict_sequence(long))) == 36
    assert max(sizes) == sequences.WINDOW + 2 * 2
    monkeypatch.setattr(sequences, "MARGIN", 1)
    sizes.clear()
    assert len(dict(by_name.predict_sequence(long))) == 36
    assert max(sizes) == sequences.WINDOW + 2 * 1


def test_the_command_writes_the_frames_as_they_are(tmp_path: Path, run: Any, by_name: ak.Predictor):
    import nibabel

    adapter, base = tmp_path / "heart.safetensors", tmp_path / "base.safetensors"
    save_sam(ak.build_sam(CONFIG, seed=0), base)
    ak.save_adapter(by_name.promptable.model, adapter, classes=["a", "b"])
    nibabel.save(nibabel.Nifti1Image(HEART.T, np.eye(4)), tmp_path / "heart.nii.gz")
    options = ("--adapter", adapter, "--checkpoint", base)
    done = run("predict", tmp_path / "heart.nii.gz", "--out", tmp_path / "masks", *options)
    assert done.status == 0, done
    found = ak.read_image(tmp_path / "masks" / "heart.nii.gz").frames
    assert 0 < (found > 0).mean() < 1
    expected = [each.label_map() for each in by_name.predict_frames(HEART)]
    assert (found == np.stack(expected)).mean() > 0.999
    click = ("--point", "20,10", "--frame", "4", "--out", tmp_path / "carried")
    done = run("predict", tmp_path / "heart.nii.gz", *click, *options)
    assert done.status == 0, done
    carried = ak.read_image(tmp_path / "carried" / "heart.nii.gz").frames
    prompts = {**CLICK, "classes": ["a"]}
    for number, each in by_name.predict_sequence(HEART, 4, **prompts):
        assert (carried[number] == each.label_map()).mean() > 0.999
    done = run("predict", tmp_path / "heart.nii.gz", "--frame", "4", "--out", tmp_path / "no")
    assert "--frame 4: expected 0 or more, with prompts that are in it" in str(done.status)
