import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterkit.promptable.points import (
    boxes_around,
    choose_prompts,
    corrected,
    entropy_point,
    farthest_point,
    random_points,
)
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Masks
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.random import seeded_generator

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 10**6)


def random_masks(shape, seed):
    """Masks of all densities, about one in five without foreground."""
    generator = torch.Generator().manual_seed(seed)
    density = (1.25 * torch.rand(*shape[:-2], 1, 1, generator=generator) - 0.25).clamp(min=0)
    return torch.rand(shape, generator=generator) < density


def assert_valid(points, labels, masks):
    """Integer pixels inside the image; foreground with label 1, or none and label 0."""
    assert points.dtype == torch.float32
    assert points.shape == (*labels.shape, 2)
    assert torch.equal(points, points.round())
    for mask, mask_points, mask_labels in zip(
        masks.flatten(0, -3), points.flatten(0, -3), labels.flatten(0, -2), strict=True
    ):
        height, width = mask.shape
        for (x, y), label in zip(mask_points.long().tolist(), mask_labels.tolist(), strict=True):
            assert 0 <= x < width
            assert 0 <= y < height
            assert label == int(mask.any())
            assert bool(mask[y, x]) == bool(label)


@settings(deadline=None, max_examples=60)
@given(SHAPES, SEEDS, st.integers(1, 4))
def test_all_strategies_choose_foreground(shape, seed, count):
    masks = random_masks(shape, seed)
    points, labels = random_points(masks, torch.Generator().manual_seed(seed), count)
    assert labels.shape == (*shape[:-2], count)
    assert_valid(points, labels, masks)
    assert_valid(*farthest_point(masks, points[..., 0, :]), masks)
    probabilities = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    assert_valid(*entropy_point(masks, probabilities), masks)


@settings(deadline=None, max_examples=40)
@given(SHAPES, SEEDS, st.integers(1, 3), st.integers(0, 3))
def test_random_is_repeatable_and_a_greater_count_keeps_the_first_points(shape, seed, count, more):
    masks = random_masks(shape, seed)
    few, _ = random_points(masks, torch.Generator().manual_seed(seed), count)
    again, _ = random_points(masks, torch.Generator().manual_seed(seed), count)
    many, _ = random_points(masks, torch.Generator().manual_seed(seed), count + more)
    assert torch.equal(few, again)
    assert torch.equal(few, many[..., :count, :])


def test_random_is_uniform_over_the_foreground():
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[0, 0] = mask[2, 3] = mask[2, 4] = mask[5, 4] = True
    count = 8000
    points, _ = random_points(mask, torch.Generator().manual_seed(0), count)
    drawn, times = points.unique(dim=0, return_counts=True)
    assert {tuple(p) for p in drawn.tolist()} == {(0, 0), (3, 2), (4, 2), (4, 5)}
    deviation = math.sqrt(count * 0.25 * 0.75)
    assert (times - count / 4).abs().max() < 4 * deviation


def test_random_without_foreground_covers_the_background():
    points, labels = random_points(
        torch.zeros(2, 3, dtype=torch.bool), torch.Generator().manual_seed(0), 300
    )
    assert len(points.unique(dim=0)) == 6
    assert (labels == 0).all()


def test_random_reaches_the_last_pixel_of_a_large_image():
    mask = torch.zeros(4100, 4100, dtype=torch.bool)  # above 2**24, float32's integers
    mask[-1, -1] = True
    points, _ = random_points(mask, torch.Generator().manual_seed(0))
    assert points.tolist() == [[4099, 4099]]


@settings(deadline=None, max_examples=30)
@given(st.permutations([f"patient{i:04d}_2CH_ED" for i in range(5)]), SEEDS)
def test_prompts_of_an_image_do_not_depend_on_the_others(names, seed):
    masks = {name: random_masks((3, 7, 8), i) for i, name in enumerate(sorted(names))}

    def evaluate(subset):
        return {name: random_points(masks[name], seeded_generator(seed, name)) for name in subset}

    every, some = evaluate(sorted(names)), evaluate(names[:3])
    for name, (points, labels) in some.items():
        assert torch.equal(points, every[name][0])
        assert torch.equal(labels, every[name][1])


def test_seeded_generator_is_the_same_everywhere_and_differs_by_seed_and_name():
    # The literal guards published results: whoever changes it changes every fixed prompt.
    assert seeded_generator(0, "patient0001_2CH_ED").initial_seed() == 1585226706
    assert seeded_generator(-1, "échographie").initial_seed() >= 0
    names = [f"patient{i:04d}" for i in range(50)]
    seeds = {seeded_generator(seed, name).initial_seed() for seed in range(20) for name in names}
    assert len(seeds) == 1000
    assert seeded_generator(1, "1").initial_seed() != seeded_generator(11, "").initial_seed()


@settings(deadline=None, max_examples=60)
@given(SHAPES, SEEDS)
def test_farthest_matches_a_search(shape, seed):
    masks = random_masks(shape, seed)
    first, _ = random_points(masks, torch.Generator().manual_seed(seed))
    points, _ = farthest_point(masks, first[..., 0, :])
    for mask, start, found in zip(
        masks.flatten(0, 1), first.flatten(0, -2), points.flatten(0, -2), strict=True
    ):
        candidates = (mask if mask.any() else ~mask).nonzero().tolist()  # row-major
        x, y = start.tolist()
        best = max(candidates, key=lambda p: (p[1] - x) ** 2 + (p[0] - y) ** 2)  # first of equals
        assert found.tolist() == [best[1], best[0]]


def test_farthest_is_x_y_and_ties_go_to_the_first():
    mask = torch.ones(5, 9, dtype=torch.bool)
    assert farthest_point(mask, torch.tensor([8.0, 0.0]))[0].tolist() == [[0, 4]]
    assert farthest_point(mask, torch.tensor([4.0, 2.0]))[0].tolist() == [[0, 0]]


def test_entropy_is_greatest_next_to_one_half_and_ties_go_to_the_first():
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 0] = False
    probabilities = torch.tensor([[0.5, 0.0, 1.0], [0.75, 0.25, 0.9]])
    points, labels = entropy_point(mask, probabilities)
    assert points.tolist() == [[0, 1]]  # 0.75 and 0.25 tie; the 0.5 is background
    assert labels.tolist() == [1]


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_entropy_is_maximal(seed):
    mask = random_masks((4, 6, 6), seed)
    p = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points, _ = entropy_point(mask, p)
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    for k in range(4):
        x, y = points[k, 0].long().tolist()
        allowed = entropy[k][mask[k]] if mask[k].any() else entropy[k]
        assert entropy[k, y, x] >= allowed.max() - 1e-12


def test_strategies_concatenate():
    masks = random_masks((2, 3, 8, 8), 3)
    first, labels = random_points(masks, torch.Generator().manual_seed(0))
    second, second_labels = farthest_point(masks, first[..., 0, :])
    assert torch.cat([first, second], dim=-2).shape == (2, 3, 2, 2)
    assert torch.cat([labels, second_labels], dim=-1).shape == (2, 3, 2)


@pytest.mark.usefixtures("unchecked_shapes")
def test_errors():
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    generator = torch.Generator()
    with pytest.raises(ValueError, match="boolean"):
        random_points(masks.float(), generator)
    with pytest.raises(ValueError, match="axes"):
        random_points(masks[0, 0], generator)
    with pytest.raises(ValueError, match="axes"):
        random_points(masks[:, :0], generator)
    with pytest.raises(ValueError, match="count"):
        random_points(masks, generator, 0)
    with pytest.raises(ValueError, match="first"):
        farthest_point(masks, torch.zeros(2, 1, 2))
    with pytest.raises(ValueError, match="shape"):
        entropy_point(masks, torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="sigmoid"):
        entropy_point(masks, torch.full((2, 4, 4), 3.0))
    with pytest.raises(ValueError, match="sigmoid"):
        entropy_point(masks, torch.full((2, 4, 4), float("nan")))


def answer(*logits: torch.Tensor, presence: torch.Tensor | None = None) -> Masks:
    """What a model answers, of one mask for each prompt or several."""
    every = torch.stack(logits, dim=2)
    return Masks(every, torch.zeros(every.shape[:3]), every.shape[-1], presence)


def least_certain(masks, where):
    """Logits that say nothing at the pixel `where` of each mask, and are sure elsewhere."""
    logits = torch.full(masks.shape, 9.0)
    logits[..., where[1], where[0]] = 0
    return logits


@pytest.mark.parametrize("strategy", ["1", "2-random", "2-entropy", "2-max-distance"])
def test_strategies_share_the_first_point(strategy):
    masks = random_masks((2, 3, 9, 8), 7) | (torch.arange(8) == 5)
    asked = []

    def segment(prompts: Prompts) -> Masks:
        asked.append(prompts)
        assert prompts.shape is not None
        return answer(least_certain(masks[-prompts.shape[0] :], (5, 6)))

    def generators():
        return [seeded_generator(0, name) for name in ("a", "b")]

    first, _ = points_of(choose_prompts(masks, "1", generators(), segment))
    points, labels = points_of(choose_prompts(masks, strategy, generators(), segment))
    count = 1 if strategy == "1" else 2
    assert points.shape == (2, 3, count, 2)
    assert_valid(points, labels, masks)
    assert torch.equal(points[:, :, :1], first)
    assert len(asked) == (strategy == "2-entropy")
    if strategy == "2-entropy":
        assert torch.equal(asked[0].points, first)
        assert (points[:, :, 1] == torch.tensor([5.0, 6.0])).all()
    elif strategy == "2-max-distance":
        assert torch.equal(points[:, :, 1:], farthest_point(masks, first[:, :, 0])[0])
    alone = choose_prompts(masks[1:], strategy, generators()[1:], segment)
    assert torch.equal(points_of(alone)[0], points[1:])


def points_of(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    assert prompts.points is not None
    assert prompts.labels is not None
    return prompts.points, prompts.labels


def chosen(masks: torch.Tensor, strategy: PromptStrategy, wrong: torch.Tensor) -> Prompts:
    generators = [seeded_generator(0, name) for name in ("a", "b")]
    predicted = torch.where(masks ^ wrong, 9.0, -9.0)
    return choose_prompts(masks, strategy, generators, lambda _: answer(predicted))


def at(logits: torch.Tensor, x: int, y: int, value: float) -> torch.Tensor:
    logits = logits.clone()
    logits[..., y, x] = value
    return logits


def test_second_points_by_what_the_model_says_of_presence_of_ambiguity_and_of_the_class():
    masks = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    sure = torch.full((1, 2, 8, 8), 9.0)
    generators = [seeded_generator(0, "a")]

    def second(strategy: PromptStrategy, segment) -> list[list[float]]:
        points, labels = points_of(choose_prompts(masks, strategy, generators, segment))
        assert points.shape == (1, 2, 2, 2)
        assert labels.all()
        return points[0, :, 1].tolist()

    # The first is there, and its mask undecided at (2, 3). The second may be absent: then half
    # certain is what its mask is sure of at (4, 5), the more so than at (2, 3).
    presence = torch.tensor([[9.0, 0.0]])
    undecided = at(at(sure, 2, 3, 0.0), 4, 5, 20.0)

    def by_class(prompts: Prompts) -> Masks:
        assert prompts.classes is not None
        assert prompts.points is not None
        return answer(undecided, presence=presence)

    assert second("2-uncertain", by_class) == [[2, 3], [4, 5]]
    without = second("2-uncertain", lambda _: answer(undecided))
    assert without == [[2, 3], [2, 3]]

    three = [at(sure, 6, 1, value) for value in (-9.0, 0.0, 9.0)]
    assert second("2-disagreement", lambda _: answer(sure, *three)) == [[6, 1], [6, 1]]
    with pytest.raises(ValueError, match="2-disagreement: this model gives one mask"):
        second("2-disagreement", lambda _: answer(sure))

    def other_than_by_click(prompts: Prompts) -> Masks:
        return answer(at(sure, 7, 0, -9.0) if prompts.classes is None else sure)

    assert second("2-prior", other_than_by_click) == [[7, 0], [7, 0]]


def test_further_points_are_where_the_prediction_is_wrong():
    masks = random_masks((2, 3, 9, 8), 7) | (torch.arange(8) == 5)
    wrong = torch.zeros_like(masks)
    wrong[..., 4, 2] = True
    strategies: list[tuple[PromptStrategy, int]] = [("3", 3), ("5", 5)]
    for strategy, count in strategies:
        points, labels = points_of(chosen(masks, strategy, wrong))
        assert points.shape == (2, 3, count, 2)
        assert (points[:, :, 1:] == torch.tensor([2.0, 4.0])).all()
        assert torch.equal(
            labels[:, :, 1:], masks[..., 4, 2, None].long().expand(-1, -1, count - 1)
        )


def test_structures_are_asked_for_by_name_by_point_and_by_both():
    masks = torch.ones(2, 40, 4, 4, dtype=torch.bool)
    nothing = torch.zeros_like(masks)
    by_name = chosen(masks, "class", nothing)
    assert list(by_name.given) == ["classes"]
    assert by_name.classes is not None
    assert by_name.classes.tolist() == [list(range(40))] * 2
    wrong = torch.zeros_like(masks)
    wrong[..., 1, 2] = True
    both = chosen(masks, "class+1", wrong)
    assert (points_of(both)[0] == torch.tensor([2, 1])).all()
    assert both.classes is not None
    assert torch.equal(both.classes, by_name.classes)


def test_a_correction_adds_a_point_where_what_was_given_is_wrong():
    masks = torch.ones(1, 2, 4, 4, dtype=torch.bool)
    logits = torch.ones(1, 2, 4, 4)
    logits[0, 0, 3, 1], logits[0, 1, 0, 2] = -1, -1
    named = Prompts(classes=torch.tensor([[0, 1]]))
    once = corrected(named, masks, answer(logits), [seeded_generator(0, "a")])
    assert once.masks is not None
    assert torch.equal(once.masks, logits)
    alone = corrected(named, masks, answer(logits), [seeded_generator(0, "a")], with_mask=False)
    assert alone.masks is None
    assert torch.equal(points_of(alone)[0], points_of(once)[0])
    assert points_of(once)[0].tolist() == [[[[1, 3]], [[2, 0]]]]
    assert points_of(once)[1].tolist() == [[[1], [1]]]
    assert once.classes is named.classes
    twice = corrected(once, masks, answer(logits), [seeded_generator(0, "b")])
    assert points_of(twice)[0].shape == (1, 2, 2, 2)
    assert torch.equal(points_of(twice)[0][:, :, :1], points_of(once)[0])


def test_boxes_are_moved_within_the_image_and_are_all_of_it_around_nothing():
    masks = torch.zeros(2, 2, 20, 30, dtype=torch.bool)
    masks[:, 0, 5:15, 10:30] = True
    boxes = chosen(masks, "box", torch.zeros_like(masks)).boxes
    assert boxes is not None
    exact = torch.tensor([10.0, 5, 30, 15])
    assert ((boxes[:, 0] - exact).abs() <= torch.tensor([2.0, 1, 2, 1])).all()
    assert not torch.equal(boxes[0, 0], exact)
    assert boxes[..., 2].max() <= 30
    assert (boxes[:, 1] == torch.tensor([0.0, 0, 30, 20])).all()


@pytest.mark.usefixtures("unchecked_shapes")
def test_strategy_errors():
    masks = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="'3-random': expected one of"):
        choose_prompts(masks, "3-random", [torch.Generator()] * 2, lambda _: answer(masks.float()))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="2 images, but 1 generators"):
        choose_prompts(masks, "1", [torch.Generator()], lambda _: answer(masks.float()))


def test_a_box_goes_from_edge_to_edge_of_the_pixels():
    masks = torch.zeros(2, 9, 12, dtype=torch.bool)
    masks[0, 2:5, 3:10] = True
    masks[1, 8, 0] = True
    assert boxes_around(masks).tolist() == [[3, 2, 10, 5], [0, 8, 1, 9]]


def test_there_is_no_box_around_nothing():
    with pytest.raises(ValueError, match="no foreground"):
        boxes_around(torch.zeros(1, 4, 4, dtype=torch.bool))
