"""Tests of the predictor: images in, masks out."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.collections.folders import find_pairs
from adapterkit.data.dataset import SegmentationDataset, to_native
from adapterkit.data.files.images import read_image
from adapterkit.data.image_file import DataError
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import predict
from adapterkit.inference.predictor import Predictor
from adapterkit.promptable.protocol import Masks
from adapterkit.promptable.segmenter import Segmenter
from tests.data.dicom_files import BUNDLED, write_dicom
from tests.models import ECHO

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)
SQUARE = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
STACK = RNG.integers(0, 256, (3, 60, 90), dtype=np.uint8)
CLICK = {"points": [[(30, 20)]], "labels": [[1]]}


@pytest.fixture
def base() -> Sam:
    """A Sam of 256x256 pixels that is surer of its masks than random weights are."""
    sam = ak.build_sam(ECHO, seed=0)
    with torch.no_grad():
        for name, weight in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and "layers.2.weight" in name:
                weight *= 100
    return sam


@pytest.fixture
def predictor(base: Sam) -> Predictor:
    predictor = Predictor(base)
    predictor.set_image(IMAGE)
    return predictor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two adapter files for it."""
    folder = tmp_path_factory.mktemp("files")
    sam = ak.build_sam(ECHO, seed=0)
    torch.save(sam.state_dict(), folder / "sam.pth")
    for seed, (name, size) in enumerate({"echo": 128, "2nd-thyroid.v1": 192}.items()):
        torch.manual_seed(seed)
        ak.inject_samus(sam, size)
        ak.save_adapter(sam, folder / f"{name}.safetensors", classes=[name, "other"])
        ak.eject(sam)
    return folder


@pytest.fixture
def two(files: Path) -> Predictor:
    return Predictor.from_files(
        files / "sam.pth", files / "echo.safetensors", files / "2nd-thyroid.v1.safetensors"
    )


def base_of(predictor: Predictor) -> Sam:
    base = predictor.promptable.model
    assert isinstance(base, Sam)
    return base


def encodings(predictor: Predictor) -> list[int]:
    """Grows by one each time that the encoder runs."""
    calls: list[int] = []
    base_of(predictor).image_encoder.neck.register_forward_hook(lambda *_: calls.append(1))
    return calls


# Masks are those of segment_anything on an image of the model's own size


@pytest.fixture
def stock(base: Sam) -> SamPredictor:
    stock = SamPredictor(base)
    stock.set_image(SQUARE)
    return stock


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kinds", [("points",), ("boxes",), ("points", "boxes"), ("masks",)])
def test_masks_are_those_of_segment_anything(
    base: Sam, stock: SamPredictor, kinds: tuple[str, ...], multimask: bool
):
    predictor = Predictor(base)
    predictor.set_image(SQUARE)
    points, box = np.array([[30, 40], [100.5, 90]]), np.array([20, 30, 200, 180])
    previous = stock.predict(points, np.array([1, 0]), multimask_output=False)[2]
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if "points" in kinds:
        ours |= {"points": [points], "labels": [[1, 0]]}
        theirs |= {"point_coords": points, "point_labels": np.array([1, 0])}
    if "boxes" in kinds:
        ours["boxes"], theirs["box"] = [box], box
    if "masks" in kinds:
        ours["masks"], theirs["mask_input"] = previous, previous
    found = predictor.predict(**ours, multimask=multimask)
    logits, scores, low_res = stock.predict(
        **theirs, multimask_output=multimask, return_logits=True
    )
    shape = (1, 3, 256, 256) if multimask else (1, 256, 256)
    assert found.masks.shape == shape
    assert 0.01 < found.masks.mean() < 0.99
    for one, other in ((found.logits, logits), (found.low_res_logits, low_res)):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.scores.ravel(), scores, rtol=1e-4)
    np.testing.assert_array_equal(found.masks.reshape(logits.shape), logits > 0)


# Masks of random weights are wide and ragged: their boxes are alike, and few masks are stable.
@pytest.mark.parametrize(("stability", "overlap"), [(0.6, 1.0), (0.0, 0.99)])
def test_automatic_masks_are_those_of_segment_anything(base: Sam, stability: float, overlap: float):
    predictor = Predictor(base)
    predictor.set_image(SQUARE)
    found = predictor.predict_automatic(5, -9, stability, overlap, points_per_batch=7)
    theirs = SamAutomaticMaskGenerator(
        base,
        points_per_side=5,
        pred_iou_thresh=-9,
        stability_score_thresh=stability,
        box_nms_thresh=overlap,
    ).generate(SQUARE)
    theirs = sorted(theirs, key=lambda mask: -mask["predicted_iou"])
    assert 1 < len(found.masks) < 75
    np.testing.assert_array_equal(found.masks, [mask["segmentation"] for mask in theirs])
    np.testing.assert_allclose(found.scores, [mask["predicted_iou"] for mask in theirs], rtol=1e-4)
    fewer = predictor.predict_automatic(5, -9, stability, overlap, count=2)
    np.testing.assert_array_equal(fewer.masks, found.masks[:2])


def test_there_may_be_nothing_to_find(predictor: Predictor):
    found = predictor.predict_automatic(4, min_score=9)
    assert found.masks.shape == (0, 60, 90)
    assert found.label_map().shape == (60, 90)
    assert not found.label_map().any()


@pytest.mark.parametrize("shape", [(60, 90, 3), (300, 120), (256, 256)])
def test_a_base_alone_gives_what_its_own_predictor_gives(base: Sam, shape: tuple[int, ...]):
    """On images of any shape, which it does not squash."""
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    stock, predictor = SamPredictor(base), Predictor(base)
    stock.set_image(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    predictor.set_image(image)
    points, box = (
        np.array([[30.0, 40], [100, 50]]).clip(max=np.array(shape[1::-1]) - 1),
        [5, 9, 50, 55],
    )
    for theirs, ours in (
        (
            {"point_coords": points, "point_labels": [1, 0]},
            {"points": [points], "labels": [[1, 0]]},
        ),
        ({"box": np.array(box)}, {"boxes": [box]}),
    ):
        labels = theirs.get("point_labels")
        theirs = theirs | ({} if labels is None else {"point_labels": np.array(labels)})
        for multimask in (False, True):
            expected, scores, low_res = stock.predict(
                **theirs, multimask_output=multimask, return_logits=True
            )
            found = predictor.predict(**ours, multimask=multimask)
            np.testing.assert_allclose(found.logits.reshape(expected.shape), expected, atol=1e-3)
            np.testing.assert_allclose(found.low_res_logits.ravel(), low_res.ravel(), atol=1e-3)
            np.testing.assert_allclose(found.scores.ravel(), scores, atol=1e-3)


# Structures asked for by name


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and an adapter that knows two structures by name."""
    folder = tmp_path_factory.mktemp("named")
    sam = ak.build_sam(ECHO, seed=0)
    torch.save(sam.state_dict(), folder / "sam.pth")
    torch.manual_seed(0)
    ak.inject(sam, "samus_plus", image_size=128, structures=("atrium", "wall"))
    with torch.no_grad():
        # Trained heads would judge; here the wall is absent, whatever the image.
        adapter = ak.adapters_of(sam)
        assert adapter is not None
        head = adapter["default"].added.get_submodule("class_prompts.presence")
        tokens = adapter["default"].added.get_submodule("class_prompts.tokens")
        assert isinstance(head, torch.nn.Linear)
        assert isinstance(tokens, torch.nn.Embedding)
        tokens.weight.mul_(4)
        torch.nn.init.normal_(head.weight)
    ak.save_adapter(sam, folder / "heart.safetensors")
    return folder


@pytest.fixture
def by_name(named: Path) -> Predictor:
    predictor = Predictor.from_files(named / "sam.pth", named / "heart.safetensors")
    predictor.set_image(IMAGE)
    return predictor


def test_the_file_names_the_classes(named: Path, by_name: Predictor):
    assert ak.inspect_adapter(named / "heart.safetensors").classes == ("atrium", "wall")
    assert by_name.structures == by_name.promptable.structures == ("atrium", "wall")


def test_without_a_prompt_every_named_structure_is_segmented(by_name: Predictor):
    found = by_name.predict()
    assert found.logits.shape == (2, 60, 90)
    assert found.presence is not None
    for k, name in enumerate(("atrium", "wall")):
        for one in (by_name.predict(classes=[name]), by_name.predict(classes=[k])):
            np.testing.assert_allclose(one.logits[0], found.logits[k], rtol=1e-3, atol=1e-4)
            assert one.presence == pytest.approx(found.presence[k : k + 1], abs=1e-5)
    assert np.abs(found.logits[0] - found.logits[1]).max() > 1e-3


def test_an_absent_structure_has_an_empty_mask(by_name: Predictor):
    adapter = ak.adapters_of(by_name.promptable.model)
    assert adapter is not None
    head = adapter["heart"].added.get_submodule("class_prompts.presence")
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(2.0)
        there = by_name.predict()
        head.bias.fill_(-2.0)
        absent = by_name.predict(classes=["atrium"])
    assert there.presence == pytest.approx([0.88, 0.88], abs=0.01)
    assert absent.presence == pytest.approx([0.12], abs=0.01)
    assert not absent.masks.any()
    assert not absent.label_map().any()
    # What is clicked on without a name is there.
    assert (by_name.predict(**CLICK).logits > -19).any()


def test_clicks_correct_a_class(by_name: Predictor):
    together = by_name.predict(
        points=[None, [(30, 20)], [(30, 20)]],
        labels=[None, [1], [1]],
        classes=["wall", "wall", None],
    )
    alone = [
        by_name.predict(classes=["wall"]),
        by_name.predict(**CLICK, classes=["wall"]),
        by_name.predict(**CLICK),
    ]
    for k, one in enumerate(alone):
        np.testing.assert_allclose(together.logits[k], one.logits[0], rtol=1e-3, atol=1e-4)
    differ = [np.abs(a.low_res_logits - b.low_res_logits).max() for a in alone for b in alone[:1]]
    assert min(differ[1:]) > 1e-3


def test_a_name_that_is_none_is_refused(by_name: Predictor, predictor: Predictor):
    with pytest.raises(ValueError, match=r"classes\[0\] is 'lung': expected one of atrium, wall"):
        by_name.predict(classes=["lung"])
    with pytest.raises(ValueError, match="its position, 0 to 1"):
        by_name.predict(classes=[2])
    with pytest.raises(ValueError, match="this model knows no structure by its name"):
        predictor.predict(classes=["wall"])
    with pytest.raises(ValueError, match="no prompt"):
        predictor.predict()


# Results are those of the evaluation


def at_native(points: torch.Tensor, side: int, width: int, height: int) -> np.ndarray:
    """Where pixels of the model's input are in the image."""
    return (points.numpy() + 0.5) * (width / side, height / side) - 0.5


def check_against_evaluation(dataset: SegmentationDataset, paths: list[Path], sam: Sam) -> None:
    predictor = Predictor(sam)
    for each in predict(Segmenter(sam), dataset, seed=0, points="2-random", batch_size=1):
        index = each.indices[0]
        predictor.set_image(paths[index])
        height, width = read_image(paths[index]).frames.shape[1:3]
        points = at_native(each.points[0], dataset.image_size, width, height)
        inside = each.reference[0].any(dim=(1, 2)).long().numpy()
        found = predictor.predict(points, np.stack([inside, inside], axis=1))
        expected = to_native(each.logits[0], (height, width)).numpy()
        np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-4)
        assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("size", [64, 128])
def test_predicting_on_an_image_of_a_data_set_is_evaluating_it(tmp_path: Path, size: int):
    frames = find_frames(write_phantom(tmp_path / "release", 1, image_size=100))
    torch.manual_seed(0)
    sam = ak.inject_samus(ak.build_sam(ECHO, seed=0), size)
    check_against_evaluation(CamusDataset(frames, size), [frame.image for frame in frames], sam)


def test_so_it_is_for_pictures_of_16_bits_that_are_not_square(tmp_path: Path):
    for name, shape in {"a": (70, 180), "b": (300, 40)}.items():
        for folder, most in (("images", 40_000), ("masks", 2)):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = RNG.integers(0, most, shape).astype(np.uint16)
            Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    pairs = find_pairs(tmp_path)
    sam = ak.inject_samus(ak.build_sam(ECHO, seed=0), 128)
    check_against_evaluation(SegmentationDataset(pairs, 128), [each.image for each in pairs], sam)


def test_where_things_are_is_kept(base: Sam):
    """A decoder that answers with the prompt's place shows that place in the image."""
    predictor = Predictor(base)
    predictor.set_image(np.zeros((50, 200), np.uint8))
    side = predictor.promptable.image_size

    def bright_at_the_point(embedding, prompts):
        rows = torch.arange(64)[:, None] * side / 64 + 2
        columns = torch.arange(64)[None] * side / 64 + 2
        x, y = (prompts.points[0, :, 0, i, None, None] + 0.5 for i in (0, 1))
        logits = 8 - (rows - y).abs() - (columns - x).abs()
        all_logits = logits[None, :, None].expand(-1, -1, 4, -1, -1)
        return Masks(all_logits, torch.ones(1, len(x), 4), side)

    predictor.promptable.decode = bright_at_the_point  # pyright: ignore[reportAttributeAccessIssue]
    places = [(40, 10), (150, 30), (100, 25)]
    found = predictor.predict([[place] for place in places], [[1]] * 3)
    for mask, place in zip(found.masks, places, strict=True):
        y, x = np.argwhere(mask).mean(axis=0)
        assert (x, y) == pytest.approx(place, abs=1)


# Prompts


def test_structures_do_not_influence_each_other(predictor: Predictor):
    prompts: list[dict[str, Any]] = [
        {"points": [(30, 20)], "labels": [1]},
        {"points": [(80, 50), (3, 4)], "labels": [1, 0]},
        {"boxes": (10, 5, 60, 40)},
        {"points": [(50, 9)], "labels": [1]},
        {"points": [(1, 59)], "labels": [0], "boxes": (0, 0, 90, 60)},
        {"masks": IMAGE[..., 0] > 128},
    ]
    names = ("points", "labels", "boxes", "masks")
    merged: dict[str, Any] = {name: [each.get(name) for each in prompts] for name in names}
    together = predictor.predict(**merged)
    for k, prompt in enumerate(prompts):
        entries: dict[str, Any] = {name: [value] for name, value in prompt.items()}
        alone = predictor.predict(**entries)
        np.testing.assert_allclose(together.logits[k], alone.logits[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.scores[k], alone.scores[0], rtol=1e-4)


def test_a_rough_mask_reaches_the_decoder_in_its_place(predictor: Predictor):
    seen = []
    encoder = base_of(predictor).prompt_encoder
    encoder.register_forward_pre_hook(lambda m, a, options: seen.append(options), with_kwargs=True)
    rough = np.zeros((60, 90), dtype=bool)
    rough[:30, 45:] = True  # The upper right quarter.
    predictor.predict(masks=[rough])
    logits = seen[0]["masks"][0, 0]
    assert logits.shape == (64, 64)
    # The image keeps its proportions: it is two thirds as high as the input.
    torch.testing.assert_close(logits[:20, 33:], torch.full((20, 31), math.log(999)))
    assert (logits[23:] < 0).all()
    assert (logits[:, :31] < 0).all()


def test_points_and_boxes_may_touch_the_borders(predictor: Predictor):
    corners = [[(0, 0), (89, 0), (0, 59), (89, 59)]]
    predictor.predict(corners, [[1, 0, 1, 0]], [(0, 0, 90, 60)])


def test_the_result_of_a_prediction_refines_it(predictor: Predictor):
    first = predictor.predict(**CLICK, multimask=True).best()
    second = predictor.predict(**CLICK, masks=first.low_res_logits)
    assert not np.allclose(second.logits, first.logits)


def test_a_result_of_the_size_of_the_input_refines_it_too(by_name: Predictor):
    first = by_name.predict(classes=["atrium"])
    assert first.low_res_logits.shape == (1, 128, 128)
    assert by_name.mask_size == (32, 32)
    click = {**CLICK, "classes": ["atrium"]}
    second = by_name.predict(**click, masks=first.low_res_logits)
    assert not np.allclose(second.logits, by_name.predict(**click).logits)


# Images


@pytest.mark.parametrize(
    "array",
    [IMAGE[..., 0], IMAGE, IMAGE[..., 0] * np.uint16(256), IMAGE / 255.0, IMAGE[::-1, ::-2]],
    ids=["grey", "colour", "16 bits", "float", "view"],
)
def test_arrays_of_any_kind_are_taken(base: Sam, array: np.ndarray):
    predictor = Predictor(base)
    predictor.set_image(array)
    assert predictor.predict(**CLICK).masks.shape == (1, *array.shape[:2])


def test_a_grey_image_is_that_image_in_colour(base: Sam):
    predictor = Predictor(base)
    grey = IMAGE[..., 0]
    found = []
    for array in (grey, np.stack([grey] * 3, axis=-1)):
        predictor.set_image(array)
        found.append(predictor.predict(**CLICK).logits)
    np.testing.assert_array_equal(*found)


def test_files_give_what_their_pixels_give(base: Sam, tmp_path: Path):
    predictor = Predictor(base)
    predictor.set_image(STACK[0])
    expected = predictor.predict(**CLICK)
    assert expected.areas_mm2 is None
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    affine = np.diag([0.5, 0.25, 1, 1])
    nibabel.save(nibabel.Nifti1Image(STACK[0].T, affine), tmp_path / "a.nii.gz")
    write_dicom(tmp_path / "a.dcm", STACK[0], PixelSpacing=[0.25, 0.5])
    for name, spacing in (("a.png", None), ("a.nii.gz", (0.25, 0.5)), ("a.dcm", (0.25, 0.5))):
        predictor.set_image(tmp_path / name)
        found = predictor.predict(**CLICK)
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert found.spacing == spacing
        if found.areas_mm2 is not None:
            np.testing.assert_allclose(found.areas_mm2, 0.125 * expected.areas)


def test_the_encoder_runs_once_for_all_prompts(predictor: Predictor):
    calls = encodings(predictor)
    predictor.set_image(IMAGE)
    for x in (10, 20, 30):
        predictor.predict([[(x, 20)]], [[1]])
    predictor.predict_automatic(2)
    assert len(calls) == 1
    predictor.set_image(IMAGE)
    predictor.predict(**CLICK)
    assert len(calls) == 2


# Sequences and stacks


@pytest.fixture(params=["nii.gz", "dcm"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"stack.{request.param}"
    if request.param == "dcm":
        return write_dicom(path, STACK, "THW")
    nibabel.save(nibabel.Nifti1Image(STACK.T, np.eye(4)), path)
    return path


def test_frames_are_segmented_one_by_one(base: Sam, stack: Path):
    predictor = Predictor(base)
    of_array = [each.logits for each in predictor.predict_frames(STACK, **CLICK)]
    calls = encodings(predictor)
    found = predictor.predict_frames(stack, **CLICK)
    assert isinstance(found, Iterator)
    frames = []
    for t, prediction in enumerate(found):
        assert len(calls) == t + 1
        assert predictor.frame == t
        frames.append(prediction)
    assert len(frames) == len(of_array) == 3
    np.testing.assert_array_equal(of_array, [each.logits for each in frames])
    for frame, prediction in zip(STACK, frames, strict=True):
        predictor.set_image(frame)
        np.testing.assert_array_equal(predictor.predict(**CLICK).logits, prediction.logits)


def test_one_frame_is_chosen(base: Sam, stack: Path):
    predictor = Predictor(base)
    with pytest.raises(ValueError, match=r"stack\..* has 3 frames: choose one with frame="):
        predictor.set_image(stack)
    with pytest.raises(ValueError, match=r"frame is 3, and .* has frames 0 to 2"):
        predictor.set_image(stack, frame=3)
    assert predictor.image is None
    predictor.set_image(stack, frame=1)
    found = predictor.predict(**CLICK).logits
    predictor.set_image(STACK[1])
    np.testing.assert_array_equal(predictor.predict(**CLICK).logits, found)


def test_from_a_file_to_a_file(base: Sam, tmp_path: Path):
    predictor = Predictor(base)
    image = ak.read_image(BUNDLED / "examples_ybr_color.dcm")
    image = replace(image, frames=image.frames[:3])
    predicted = predictor.predict_frames(image, points=[[(150, 90)]], labels=[[1]])
    labels = np.stack([each.label_map() for each in predicted])
    ak.write_masks(tmp_path / "labels.nii.gz", labels, image)
    np.testing.assert_array_equal(ak.read_image(tmp_path / "labels.nii.gz").frames, labels)


# Adapters


def test_adapters_are_used_by_name(two: Predictor, files: Path):
    assert two.names == ("echo", "_2nd_thyroid_v1")
    assert (two.in_use, two.structures) == ("echo", ("echo", "other"))
    for file in ("echo", "2nd-thyroid.v1"):
        name = two.names[0] if file == "echo" else two.names[1]
        two.use(name)
        assert two.in_use == name
        assert two.structures == (file, "other")
        alone = Predictor(ak.load_sam(files / "sam.pth"), files / f"{file}.safetensors")
        for each in (two, alone):
            each.set_image(IMAGE)
        np.testing.assert_array_equal(two.predict(**CLICK).logits, alone.predict(**CLICK).logits)
    two.use(None)
    assert (two.in_use, two.structures) == (None, ())
    bare = Predictor(ak.load_sam(files / "sam.pth"))
    bare.set_image(IMAGE)
    np.testing.assert_array_equal(two.predict(**CLICK).logits, bare.predict(**CLICK).logits)


def test_the_image_is_encoded_once_for_each_adapter(two: Predictor):
    calls = encodings(two)
    two.set_image(IMAGE)
    echo = two.predict(**CLICK).logits
    two.use(two.names[1])
    thyroid = two.predict(**CLICK).logits
    assert len(calls) == 2
    assert not np.allclose(echo, thyroid)
    two.use("echo")
    np.testing.assert_array_equal(two.predict(**CLICK).logits, echo)
    # Also where it is switched without the predictor.
    ak.activate(two.promptable.model, two.names[1])
    np.testing.assert_array_equal(two.predict(**CLICK).logits, thyroid)
    assert len(calls) == 2
    two.set_image(IMAGE[::-1])
    two.predict(**CLICK)
    assert len(calls) == 3


def test_another_adapter_of_the_same_name_is_another(two: Predictor, files: Path):
    two.set_image(IMAGE)
    echo = two.predict(**CLICK).logits
    ak.remove(two.promptable.model, "echo")
    two.load(files / "2nd-thyroid.v1.safetensors", "echo")
    assert not np.allclose(two.predict(**CLICK).logits, echo)


def test_several_images_share_a_model(two: Predictor):
    calls = encodings(two)
    two.set_image(IMAGE)
    expected = two.predict(**CLICK).logits
    other = two.sharing()
    other.set_image(IMAGE[::-1])
    assert not np.allclose(other.predict(**CLICK).logits, expected)
    np.testing.assert_array_equal(two.predict(**CLICK).logits, expected)
    assert len(calls) == 2
    other.use(other.names[1])
    assert other.structures == two.structures == ("2nd-thyroid.v1", "other")
    two.use("echo")
    np.testing.assert_array_equal(two.predict(**CLICK).logits, expected)
    assert len(calls) == 2


def test_a_patched_base_is_taken_as_it_is(base: Sam):
    ak.inject_samus(base, 128, name="heart")
    predictor = Predictor(base)
    assert (predictor.names, predictor.in_use, predictor.structures) == (("heart",), "heart", ())
    predictor.set_image(IMAGE)
    assert predictor.embedding().image.shape == (1, 32, 16, 16)
    predictor.use(None)
    assert predictor.embedding().image.shape == (1, 32, 16, 16)


def test_nothing_is_trained_or_remembered(base: Sam):
    base.train()
    predictor = Predictor(base)
    assert not base.training
    predictor.set_image(IMAGE)
    assert not predictor.embedding().image.requires_grad


def test_an_adapter_of_another_base_changes_nothing(two: Predictor, files: Path):
    other = Predictor(ak.build_sam(ECHO, seed=1))
    with pytest.raises(ak.AdapterFileError, match=r"echo\.safetensors was trained on another base"):
        other.load(files / "echo.safetensors")
    assert (other.names, other.in_use) == ((), None)
    with pytest.raises(ValueError, match="an adapter named 'echo' is on this model"):
        two.load(files / "echo.safetensors")
    with pytest.raises(FileNotFoundError, match="no adapter file at nowhere"):
        two.load("nowhere.safetensors")
    with pytest.raises(ValueError, match=r"no adapter is named 'liver'; loaded are: echo, _2nd"):
        two.use("liver")
    with pytest.raises(ValueError, match=r"no adapter is named 'echo'; loaded are: none"):
        other.use("echo")
    other.use(None)
    assert two.in_use == "echo"


# What a prediction says


def test_a_label_map_gives_a_pixel_to_the_highest_logit():
    logits = np.array([[[1, 3, -1, -2]], [[2, 1, -3, 4]]], dtype=np.float32)
    found = ak.Prediction(logits, np.array([0.5, 0.6], np.float32), logits, (0.5, 2))
    np.testing.assert_array_equal(found.masks, logits > 0)
    np.testing.assert_array_equal(found.label_map(), [[2, 1, 0, 2]])
    np.testing.assert_array_equal(found.areas, [2, 3])
    np.testing.assert_array_equal(found.areas_mm2, [2, 3])
    assert found.best() is found


def test_the_best_of_three():
    logits = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    scores = np.array([[0.1, 0.9, 0.2], [0.5, 0.4, 0.3]], dtype=np.float32)
    three = ak.Prediction(logits, scores, logits, None)
    with pytest.raises(ValueError, match=r"of three masks, take best\(\)"):
        three.label_map()
    best = three.best()
    np.testing.assert_array_equal(best.logits, [logits[0, 1], logits[1, 0]])
    np.testing.assert_array_equal(best.scores, scores.max(axis=1))


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[0, 0], r"array has the shape \(3,\) and type uint8: expected numbers, \(H, W\) or"),
        (IMAGE.transpose(2, 0, 1), r"shape \(3, 60, 90\)"),
        (np.zeros((60, 90, 4)), r"shape \(60, 90, 4\)"),
        (IMAGE > 9, "type bool"),
        (np.zeros((60, 0)), "expected some pixels"),
        (np.zeros((1, 1)), r"is 1 x 1 pixels \(rows x columns\): expected at least 8 x 8"),
        (np.full((60, 90), np.nan), "5400 of 5400 values that are NaN or infinite"),
        ("nowhere.png", r"nowhere\.png cannot be read .*: expected a file"),
    ],
)
def test_what_is_no_image_is_refused_and_the_one_before_stays(
    predictor: Predictor, image: Any, message: str
):
    before = predictor.predict(**CLICK).logits
    with pytest.raises(DataError, match=message):
        predictor.set_image(image)
    np.testing.assert_array_equal(predictor.predict(**CLICK).logits, before)


def test_a_file_of_one_pixel_is_refused(predictor: Predictor, tmp_path: Path):
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "dot.png")
    with pytest.raises(DataError, match=r"dot\.png is 1 x 1 pixels"):
        predictor.set_image(tmp_path / "dot.png")


def test_predicting_without_an_image_is_refused(base: Sam):
    for predict_something in (Predictor(base).predict, Predictor(base).predict_automatic):
        with pytest.raises(ValueError, match="give set_image one first"):
            predict_something()


POINT = [[(30, 20)]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt: give points with labels, boxes, or masks, or take predict_automatic"),
        ({"points": []}, "points has no entry"),
        ({"points": POINT}, "structure 0 lacks labels: give both"),
        ({"labels": [[1]]}, "structure 0 lacks points: give both"),
        ({"points": POINT, "labels": [None]}, "structure 0 lacks labels"),
        ({"points": [*POINT, None], "labels": [[1], None]}, "structure 1 has no prompt"),
        ({"points": POINT, "labels": [[1], [1]]}, "there are: points 1, labels 2"),
        ({"points": POINT, "labels": [[1, 1]]}, r"labels\[0\] has the shape \(2,\): expected \(1,"),
        ({"points": POINT, "labels": [[2]]}, r"labels\[0\] is \[2.0\]: expected 1 inside, 0 outs"),
        ({"points": POINT, "labels": 1}, "labels is 1: expected an entry for each structure"),
        ({"points": POINT[0], "labels": [1]}, r"points\[0\] has the shape \(2,\): expected \(n, 2"),
        ({"points": [[("a", 1)]], "labels": [[1]]}, r"points\[0\] is .*: expected numbers"),
        ({"points": [[(90, 20)]], "labels": [[1]]}, r"points\[0\] has \(90, 20\), outside .* 89"),
        ({"points": [[(9, 9), (9, 60)]], "labels": [[1, 1]]}, r"has \(9, 60\), outside .* 0 to 59"),
        ({"points": [[(-1, 20)]], "labels": [[1]]}, r"has \(-1, 20\), outside"),
        ({"points": [[(math.nan, 20)]], "labels": [[1]]}, r"points\[0\] has values that are NaN"),
        ({"boxes": [(10, 20, 5, 30)]}, r"boxes\[0\] is \[10.0, 20.0, 5.0, 30.0\]: expected \(x0"),
        ({"boxes": [(0, 0, 91, 60)]}, r"boxes\[0\] is .* x1 <= 90 and 0 <= y0 < y1 <= 60"),
        ({"boxes": [(0, 0, 5)]}, r"boxes\[0\] has the shape \(3,\): expected \(4,\)"),
        (
            {"masks": [np.zeros((9, 9), bool)]},
            r"masks\[0\] has the shape \(9, 9\): expected \(60, ",
        ),
        ({"masks": np.zeros((1, 60, 90))}, r"expected \(60, 90\), bool, or \(64, 64\), low_res_lo"),
    ],
)
def test_bad_prompts_are_explained(predictor: Predictor, prompts: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompts)


def test_a_grid_of_no_points_is_refused(predictor: Predictor):
    with pytest.raises(ValueError, match="points_per_side and points_per_batch: expected 1 or"):
        predictor.predict_automatic(0)


def test_what_is_found_prints_shapes_rather_than_values(sam: Sam):
    predictor = ak.Predictor(sam)
    predictor.set_image(np.zeros((60, 90), np.uint8))
    assert "frames=u8[1,60,90]" in f"{predictor.image}"
    found = f"{predictor.predict(points=[[(5, 5)]], labels=[[1]])}"
    assert "logits=f32[1,60,90]" in found
    assert len(found) < 200
