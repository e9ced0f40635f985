"""Parts in the prompt encoder and the mask decoder: class prompts and detail."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import ClassPrompts, Detail, Resize, Train
from adapterkit.promptable.prompts import every_class
from tests.models import TINY, random_prompts, snapshot
from tests.processes import Process, run

STRUCTURES = ("ventricle", "wall", "atrium")
SIZE = 128


@pytest.fixture
def sam() -> Sam:
    return ak.build_sam(TINY, seed=0)


@pytest.fixture
def images() -> Tensor:
    return 255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def plus(sam: Sam) -> Sam:
    torch.manual_seed(0)
    return ak.inject(sam, "samus_plus", image_size=SIZE, structures=STRUCTURES).eval()


def disturbed(sam: Sam) -> Sam:
    """With trained parameters that are not those at the start."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return sam


@torch.no_grad()
def test_all_that_is_added_starts_as_the_identity(sam: Sam, images: Tensor):
    prompts = ak.Prompts(*random_prompts(2, 3, 2, seed=0, side=SIZE))
    before = snapshot(sam)
    expected = ak.Segmenter(ak.inject(sam, [Resize(SIZE)]))(images, prompts)
    ak.eject(sam)
    found = ak.Segmenter(plus(sam))(images, prompts)
    assert found.low_res_logits.shape == (2, 3, SIZE, SIZE)
    torch.testing.assert_close(found.logits(), expected.logits(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.predicted_iou, expected.predicted_iou)
    assert found.presence is None
    assert snapshot(ak.eject(sam)) == before


@torch.no_grad()
def test_prompts_of_one_call_are_answered_as_one_by_one(sam: Sam, images: Tensor):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    points, labels = random_prompts(2, 3, 2, seed=0, side=SIZE)
    prompts = ak.Prompts(points, labels, classes=torch.tensor([[0, 2, -1], [1, -1, 0]]))
    together = segmenter(images, prompts)
    assert together.presence is not None
    for b in range(2):
        for k in range(3):
            one = prompts.map(lambda each, b=b, k=k: each[b : b + 1, k : k + 1])
            alone = segmenter(images[b : b + 1], one)
            torch.testing.assert_close(
                alone.low_res_logits[0, 0], together.low_res_logits[b, k], rtol=1e-4, atol=1e-4
            )
            assert alone.presence is not None
            torch.testing.assert_close(alone.presence[0, 0], together.presence[b, k])


@torch.no_grad()
def test_without_a_prompt_every_structure_is_segmented(sam: Sam, images: Tensor):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    assert segmenter.structures == STRUCTURES
    without, by_class = segmenter(images), segmenter(images, every_class(2, 3))
    assert torch.equal(without.low_res_logits, by_class.low_res_logits)
    assert not torch.allclose(without.low_res_logits[:, 0], without.low_res_logits[:, 1])


@torch.no_grad()
def test_named_structures_exclude_each_other(
    sam: Sam, images: Tensor, monkeypatch: pytest.MonkeyPatch
):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    points, labels = random_prompts(2, 3, 1, seed=0, side=SIZE)
    clicked = ak.Prompts(points, labels, classes=torch.tensor([[0, 2, -1]] * 2))
    odds, of_clicked = segmenter(images).all_logits, segmenter(images, clicked).all_logits
    monkeypatch.setattr(ak.Segmenter, "classes_exclude", False)
    by_name, alone = segmenter(images).all_logits, segmenter(images, clicked).all_logits
    answers = by_name[:, :, 0]
    probabilities = torch.cat([torch.zeros_like(answers[:, :1]), answers], dim=1).softmax(dim=1)
    torch.testing.assert_close(odds[:, :, 0].sigmoid(), probabilities[:, 1:])
    # With a click, a structure is judged against the others by name, not as they are clicked.
    others = torch.stack([torch.zeros_like(answers[:, 0]), answers[:, 1], answers[:, 2]])
    expected = alone[:, 0] - others.logsumexp(dim=0)[:, None]
    torch.testing.assert_close(of_clicked[:, 0], expected)
    assert torch.equal(of_clicked[:, 2], alone[:, 2])


@torch.no_grad()
def test_embeddings_kept_from_before_are_decoded_as_their_images(sam: Sam, images: Tensor):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    expected = [segmenter(images[i : i + 1]).low_res_logits for i in range(2)]
    kept = [segmenter.encode(images[i : i + 1]) for i in range(2)]
    for embedding, logits in zip(kept, expected, strict=True):
        assert torch.equal(segmenter.decode(embedding).low_res_logits, logits)


@torch.no_grad()
def test_a_class_alone_is_what_it_is_beside_others_with_a_click(sam: Sam, images: Tensor):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    classes = torch.tensor([[0, 1], [0, 1]])
    points, labels = random_prompts(2, 2, 1, seed=0, side=SIZE)
    labels[:, 0] = -1
    beside = segmenter(images, ak.Prompts(points, labels, classes=classes)).low_res_logits
    alone = segmenter(images, ak.Prompts(classes=classes[:, :1])).low_res_logits
    torch.testing.assert_close(beside[:, :1], alone)


@torch.no_grad()
def test_a_structure_that_is_judged_absent_has_an_empty_mask(sam: Sam, images: Tensor):
    found = ak.adapters_of(plus(sam))
    assert found is not None
    segmenter = ak.Segmenter(sam)
    assert (segmenter(images).presence == 0).all()
    found["default"].added.get_parameter("class_prompts.presence.bias").fill_(-1)
    masks = segmenter(images)
    assert (masks.logits() < 0).all()
    points, labels = random_prompts(2, 1, 1, seed=0, side=SIZE)
    clicked = segmenter(images, ak.Prompts(points, labels, classes=torch.full((2, 1), -1)))
    assert clicked.presence is not None
    assert (clicked.presence > 0).all()
    classes = torch.zeros(2, 1, dtype=torch.long)
    inside = segmenter(images, ak.Prompts(points, torch.ones_like(labels), classes=classes))
    beside = segmenter(images, ak.Prompts(points, torch.zeros_like(labels), classes=classes))
    boxes = torch.tensor([4.0, 4, 20, 20]).expand(2, 1, 4)
    within = segmenter(images, ak.Prompts(boxes=boxes, classes=classes))
    for masks, judged_there in ((inside, True), (beside, False), (within, True)):
        assert masks.presence is not None
        assert ((masks.presence > 0) == judged_there).all()


def test_all_of_it_is_trained(sam: Sam, images: Tensor):
    segmenter = ak.Segmenter(plus(sam)).train()
    prompts = ak.Prompts(
        *random_prompts(2, 3, 1, seed=0, side=SIZE), classes=torch.arange(3).expand(2, 3)
    )

    trained = {name: each for name, each in sam.named_parameters() if each.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    # What lies behind a layer of zeros gets a gradient from the second step on.
    for _ in range(3):
        optimizer.zero_grad()
        masks = segmenter(images, prompts)
        assert masks.presence is not None
        (masks.low_res_logits.square().mean() + (masks.presence - 1).square().mean()).backward()
        optimizer.step()
    without = [name for name, each in trained.items() if each.grad is None or not each.grad.any()]
    # The loss reads the first mask alone, and not the decoder's estimates of quality.
    others = ("mask_decoder.output_hypernetworks_mlps", "mask_decoder.iou_prediction_head")
    unexplained = [name for name in without if not any(other in name for other in others)]
    assert not unexplained


def test_a_file_gives_the_same_masks_in_a_fresh_process(sam: Sam, images: Tensor, tmp_path: Path):
    segmenter = ak.Segmenter(disturbed(plus(sam)))
    segmenter.train()
    with torch.no_grad():
        segmenter(images)  # which moves the running statistics of the batch norms
        expected = segmenter.eval()(images).logits()
    ak.save_adapter(sam, tmp_path / "plus.safetensors", classes=STRUCTURES)
    torch.save({"images": images, "expected": expected}, tmp_path / "tensors.pt")
    script = f"""
        import torch
        import adapterkit as ak
        from tests.models import TINY
        folder = {str(tmp_path)!r}
        sam = ak.load_adapter(ak.build_sam(TINY, seed=0), folder + "/plus.safetensors").eval()
        found = torch.load(folder + "/tensors.pt", weights_only=True)
        segmenter = ak.Segmenter(sam)
        assert segmenter.structures == {STRUCTURES!r}
        with torch.no_grad():
            assert torch.equal(segmenter(found["images"]).logits(), found["expected"])
    """
    run(Process(script))


@torch.no_grad()
def test_the_stock_predictor_sees_the_detail_and_takes_its_masks_back(sam: Sam, images: Tensor):
    disturbed(plus(sam))
    predictor = SamPredictor(sam)
    predictor.set_torch_image(images[:1], (SIZE, SIZE))
    points, labels = random_prompts(1, 1, 1, seed=0, side=SIZE)
    _, _, low_res = predictor.predict_torch(points[0], labels[0], multimask_output=False)
    prompts = ak.Prompts(points, labels)
    segmenter = ak.Segmenter(sam)
    ours = segmenter(images[:1], prompts).low_res_logits
    torch.testing.assert_close(low_res, ours, rtol=1e-4, atol=1e-4)
    again = predictor.predict_torch(points[0], labels[0], mask_input=low_res)[2]
    assert again.shape[-1] == SIZE
    segmenter(images[:1], ak.Prompts(points, labels, masks=low_res))


def test_bad_arguments_are_explained(sam: Sam, images: Tensor):
    for structures in ((), ("a", "a"), "ventricle", ("",)):
        with pytest.raises(ValueError, match="expected the names of one or more structures"):
            ClassPrompts(structures)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected a multiple of 16"):
        ak.inject(sam, [Resize(72, 8), Detail()])
    with pytest.raises(ValueError, match="Detail attaches to a prompt encoder and a mask decoder"):
        ak.inject(sam.image_encoder, [Detail()])
    with pytest.raises(ValueError, match="classes are given, and this model has no class prompts"):
        ak.Segmenter(ak.inject(sam, [Resize(SIZE)]))(images, every_class(2, 1))
    segmenter = ak.Segmenter(plus(ak.eject(sam)))
    with pytest.raises(ValueError, match=r"classes go from 0 to 3: expected 0 to 2 \(ventricle"):
        segmenter(images, every_class(2, 4))


def test_a_part_at_a_module_of_the_decoder_that_is_not_called_is_refused(sam: Sam):
    @dataclass(frozen=True)
    class AtTheDecoder:
        def attach(self, to) -> None:
            decoder = to.view.components["mask_decoder"]
            to.after(decoder.get_submodule("output_hypernetworks_mlps"), lambda *_: None)

    before = snapshot(sam)
    with pytest.raises(ValueError, match=r"output_hypernetworks_mlps of this segment_anything"):
        ak.inject(sam, [AtTheDecoder()])
    assert snapshot(sam) == before


@torch.no_grad()
def test_a_part_at_the_whole_mask_decoder_changes_its_masks(sam: Sam, images: Tensor):
    @dataclass(frozen=True)
    class Halved:
        def attach(self, to) -> None:
            to.after(
                to.view.components["mask_decoder"],
                lambda module, args, output: (output[0] / 2, output[1] - 1),
            )

    prompts = ak.Prompts(*random_prompts(2, 3, 2, seed=0, side=SIZE))
    segmenter = ak.Segmenter(ak.inject(sam, [Resize(SIZE)]))
    before, state = segmenter(images, prompts), snapshot(sam.mask_decoder)
    ak.inject(sam, [Halved()], "other")
    ak.activate(sam, "default", "other")
    after = segmenter(images, prompts)
    assert torch.equal(after.all_logits, before.all_logits / 2)
    assert torch.equal(after.all_iou, before.all_iou - 1)
    ak.remove(sam, "other")
    assert snapshot(sam.mask_decoder) == state


def test_the_parts_of_a_method_for_an_encoder_alone():
    encoder = ak.build_sam(TINY, seed=0).image_encoder
    parts = ak.methods.parts_of("samus_plus", ak.view(encoder), image_size=SIZE)
    assert Train("mask_decoder") not in parts
    assert not any(isinstance(part, Detail | ClassPrompts) for part in parts)


def test_classes_have_weights_of_their_own_in_the_detail(
    sam: Sam, images: Tensor, monkeypatch: pytest.MonkeyPatch
):
    segmenter = ak.Segmenter(plus(sam))
    monkeypatch.setattr(ak.Segmenter, "classes_exclude", False)
    classes, points = torch.tensor([[0, 1, -1]] * 2), torch.full((2, 3, 1, 2), 20.0)
    prompts = ak.Prompts(points, torch.ones(2, 3, 1, dtype=torch.long), classes=classes)
    before = segmenter(images, prompts).low_res_logits
    found = ak.adapters_of(sam)
    assert found is not None
    with torch.no_grad():
        found["default"].added.get_parameter("detail.of_classes.weight")[1].fill_(1.0)
    after = segmenter(images, prompts).low_res_logits
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])
