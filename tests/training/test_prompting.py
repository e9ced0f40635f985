"""In what ways a step of training asks."""

import torch

import adapterkit as ak
from adapterkit.promptable.points import choose_prompts
from adapterkit.promptable.protocol import Masks, Promptable
from adapterkit.system.random import seeded_generator
from adapterkit.training.prompting import answers, first_prompts
from tests.models import ECHO

MASKS = torch.zeros(2, 3, 64, 64, dtype=torch.bool)
MASKS[..., 20:40, 10:50] = True


def generators(seed: int) -> list[torch.Generator]:
    return [seeded_generator(seed, name) for name in ("a", "b")]


def nothing(prompts: ak.Prompts) -> Masks:
    return Masks(torch.zeros(2, 3, 1, 64, 64), torch.zeros(2, 3, 1), image_size=64)


def test_a_mixed_step_asks_by_class_and_by_click_or_box():
    steps = [first_prompts(MASKS, "mixed", generators(seed), nothing) for seed in range(60)]
    assert all(list(first.given) == ["classes"] for first, _ in steps)
    kinds = [tuple(second.given) for _, second in steps]
    assert {*kinds} == {("points", "labels"), ("boxes",)}
    assert 5 < kinds.count(("boxes",)) < 30


def test_another_step_asks_in_one_way():
    (only,) = first_prompts(MASKS, "1", generators(0), nothing)
    assert only.points is not None
    assert torch.equal(only.points, choose_prompts(MASKS, "1", generators(0), nothing).points)  # pyright: ignore


def test_each_of_several_prompts_is_asked_again_with_clicks_and_one_alone_is_not():
    sam = ak.inject(
        ak.build_sam(ECHO, seed=0), "samus_plus", image_size=64, structures=["a", "b", "c"]
    )
    segmenter = ak.Segmenter(sam)
    embedding = segmenter.encode(255 * torch.rand(2, 3, 64, 64))
    prompts = first_prompts(MASKS, "mixed", generators(0), nothing)
    found = list(answers(segmenter, embedding, prompts, MASKS, generators(1)))
    assert len(found) == 4
    alone = list(answers(segmenter, embedding, prompts[:1], MASKS, generators(1)))
    assert len(alone) == 1
    assert torch.equal(alone[0].low_res_logits, found[0].low_res_logits)
    assert not torch.equal(found[1].low_res_logits, found[0].low_res_logits)


class Asked(Promptable):
    """Finds nothing, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.with_gradients: list[bool] = []
        self.clicks: list[int] = []
        self.with_mask: list[bool] = []

    def decode(self, embedding: object, prompts: ak.Prompts | None = None) -> Masks:
        assert prompts is not None
        self.with_gradients.append(torch.is_grad_enabled())
        self.with_mask.append(prompts.masks is not None)
        labels = prompts.labels
        self.clicks.append(0 if labels is None else int((labels >= 0).sum(-1).max()))
        return nothing(prompts)


def test_one_to_four_clicks_correct_an_answer_and_the_last_answer_alone_is_learned_from():
    drawn, with_mask = set(), set()
    for seed in range(40):
        asked = Asked()
        prompts = first_prompts(MASKS, "mixed", generators(seed), nothing)[:1]
        found = list(answers(asked, None, [*prompts, *prompts], MASKS, generators(seed)))  # pyright: ignore[reportArgumentType]
        assert len(found) == 4
        assert sum(asked.with_gradients) == 4
        ends = [*[k for k, clicks in enumerate(asked.clicks) if clicks == 0][1:], len(asked.clicks)]
        drawn |= {asked.clicks[end - 1] for end in ends}
        assert all(asked.with_gradients[end - 1] for end in ends)
        with_mask |= {asked.with_mask[end - 1] for end in ends}
    assert drawn == {1, 2, 3, 4}
    assert with_mask == {True, False}
