import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance

from adapterkit.evaluation.metrics import segmentation_metrics, summarise

NAMES = {"dice", "iou", "hausdorff", "hausdorff95", "average_surface_distance"}
DISTANCES = sorted(NAMES - {"dice", "iou"})


def disc(height, width, row, column, radius):
    r, c = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (r - row) ** 2 + (c - column) ** 2 <= radius**2


def scene(height=48, width=40):
    """A cavity, a wall around it, and a chamber below: (1, 3, H, W)."""
    cavity = disc(height, width, 16, 19, 7)
    wall = disc(height, width, 16, 19, 11) & ~cavity
    return torch.stack([cavity, wall, disc(height, width, 36, 20, 6)])[None]


def boundary(mask):
    """Foreground pixels with a 4-neighbour in the background or outside, one by one."""
    height, width = mask.shape
    return [
        (r, c)
        for r, c in mask.nonzero().tolist()
        if any(
            not (0 <= y < height and 0 <= x < width) or not mask[y, x]
            for y, x in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
        )
    ]


def brute_force(predicted, reference, spacing):
    def nearest(a, b):
        return [
            min(math.hypot((p[0] - q[0]) * spacing[0], (p[1] - q[1]) * spacing[1]) for q in b)
            for p in a
        ]

    p, r = boundary(predicted), boundary(reference)
    forward, backward = nearest(p, r), nearest(r, p)
    return {
        "hausdorff": max(forward + backward),
        "hausdorff95": max(np.percentile(forward, 95), np.percentile(backward, 95)),
        "average_surface_distance": np.mean(forward + backward),
    }


def one(predicted, reference, spacing=(1.0, 1.0)):
    values = segmentation_metrics(predicted[None, None], reference[None, None], spacing)
    return {name: value.item() for name, value in values.items()}


def random_mask(seed, height=9, width=11):
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand((), generator=generator)
    return torch.rand(height, width, generator=generator) < density


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.2, 3), st.floats(0.2, 3))
def test_distances_match_brute_force(seed, row, column):
    predicted, reference = random_mask(seed), random_mask(seed + 1)
    if not (predicted.any() and reference.any()):
        return
    values = one(predicted, reference, (row, column))
    for name, expected in brute_force(predicted, reference, (row, column)).items():
        assert values[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_bounds_and_symmetry(seed):
    predicted, reference = random_mask(seed), random_mask(seed + 1)
    values, swapped = one(predicted, reference), one(reference, predicted)
    assert values == pytest.approx(swapped, rel=1e-6, abs=1e-6)
    assert 0 <= values["iou"] <= values["dice"] <= 1
    assert values["dice"] == pytest.approx(2 * values["iou"] / (1 + values["iou"]), abs=1e-6)
    tolerance = 1e-5
    assert values["average_surface_distance"] <= values["hausdorff"] + tolerance
    assert values["hausdorff95"] <= values["hausdorff"] + tolerance
    assert values["hausdorff"] <= math.hypot(9, 11)


# MONAI 1.6's own metrics call its own deprecated option.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_agrees_with_monai_where_monai_is_defined():
    reference = scene()
    predicted = reference.roll((2, -3), (2, 3))
    spacing = (0.5, 0.8)
    values = segmentation_metrics(predicted, reference, spacing)
    options = {"include_background": True, "spacing": spacing}
    torch.testing.assert_close(
        values["hausdorff"], compute_hausdorff_distance(predicted, reference, **options)
    )
    torch.testing.assert_close(
        values["hausdorff95"],
        compute_hausdorff_distance(predicted, reference, percentile=95, **options),
    )
    torch.testing.assert_close(
        values["average_surface_distance"],
        compute_average_surface_distance(predicted, reference, symmetric=True, **options),
    )


def test_the_95th_percentile_is_of_each_direction_and_not_of_both_pooled():
    reference = torch.zeros(40, 60, dtype=torch.bool)
    reference[10:20, 10:40] = True
    predicted = reference.clone()
    predicted[14, 40:46] = True
    p, r = boundary(predicted), boundary(reference)
    forward = [min(math.dist(a, b) for b in r) for a in p]
    backward = [min(math.dist(a, b) for b in p) for a in r]
    pooled = np.percentile(forward + backward, 95)  # As MedPy has it.
    found = one(predicted, reference)["hausdorff95"]
    assert found == pytest.approx(max(np.percentile(forward, 95), np.percentile(backward, 95)))
    assert abs(found - pooled) > 0.1 * pooled


def test_planted_perfect():
    values = segmentation_metrics(scene(), scene())
    assert values.keys() == NAMES
    for name, value in values.items():
        assert value.shape == (1, 3)
        assert value.dtype == torch.float32
        expected = 0.0 if name in DISTANCES else 1.0
        assert (value == expected).all(), name


def test_planted_shift_by_three_pixels():
    reference = scene()
    predicted = reference.roll(3, dims=3)
    values = segmentation_metrics(predicted, reference, spacing=(7.0, 0.5))
    # Of the discs; a shift of a ring is not the farthest that one ring's pixel is from the other.
    torch.testing.assert_close(values["hausdorff"][0, [0, 2]], torch.tensor([1.5, 1.5]))
    overlap = (predicted & reference).sum((2, 3)).float()
    total = (predicted.sum((2, 3)) + reference.sum((2, 3))).float()
    torch.testing.assert_close(values["dice"], 2 * overlap / total)
    torch.testing.assert_close(values["iou"], overlap / (total - overlap))
    assert (values["dice"] < 0.9).all()


def test_planted_swap_of_two_structures():
    reference = scene()
    values = segmentation_metrics(reference[:, [0, 2, 1]], reference)
    assert values["dice"].tolist() == [[1.0, 0.0, 0.0]]
    assert values["iou"].tolist() == [[1.0, 0.0, 0.0]]
    for name in DISTANCES:
        assert values[name][0, 0] == 0
        assert (values[name][0, 1:] > 5).all(), name


def test_images_and_structures_keep_their_places():
    perfect, shifted = scene(), scene().roll(3, dims=2)
    predicted = torch.cat([perfect, shifted])
    predicted[0, 1] = False
    together = segmentation_metrics(predicted, scene().expand(2, -1, -1, -1))
    for b in range(2):
        alone = segmentation_metrics(predicted[b : b + 1], scene())
        for name in NAMES:
            torch.testing.assert_close(together[name][b], alone[name][0])
    assert together["dice"][0].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_empty_masks(spacing):
    mask, empty = disc(48, 40, 20, 20, 5), torch.zeros(48, 40, dtype=torch.bool)
    diagonal = math.hypot(48 * spacing[0], 40 * spacing[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = one(empty, empty, spacing)
        missed, invented = one(empty, mask, spacing), one(mask, empty, spacing)
    assert both == {"dice": 1, "iou": 1, **dict.fromkeys(DISTANCES, 0)}
    expected = {"dice": 0, "iou": 0, **dict.fromkeys(DISTANCES, diagonal)}
    assert missed == pytest.approx(expected)
    assert invented == pytest.approx(expected)


def test_a_miss_is_worse_than_any_wrong_prediction():
    corner, opposite = torch.zeros(2, 6, 9, dtype=torch.bool)
    corner[0, 0] = opposite[-1, -1] = True
    empty = torch.zeros(6, 9, dtype=torch.bool)
    for name in DISTANCES:
        assert one(corner, opposite)[name] < one(empty, opposite)[name]


@pytest.mark.parametrize(
    ("predicted", "reference", "spacing", "message"),
    [
        (scene(), scene()[:, :2], (1.0, 1.0), "shape"),
        (scene()[0], scene()[0], (1.0, 1.0), "axes"),
        (scene().float(), scene(), (1.0, 1.0), "boolean"),
        (scene(), scene().long(), (1.0, 1.0), "boolean"),
        (scene()[:0], scene()[:0], (1.0, 1.0), "no masks"),
        (scene(), scene(), (1.0, 0.0), "spacing"),
        (scene(), scene(), (1.0, float("nan")), "spacing"),
        (scene(), scene(), (1.0, 1.0, 1.0), "spacing"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_metric_errors(predicted, reference, spacing, message):
    with pytest.raises(ValueError, match=message):
        segmentation_metrics(predicted, reference, spacing)


def test_summary_by_hand():
    summary = summarise({"dice": torch.tensor([[0.5, 0.9], [0.7, 0.5]])}, ["cavity", "wall"])
    assert list(summary) == ["cavity", "wall", "mean"]
    assert summary["cavity"]["dice"] == pytest.approx({"mean": 0.6, "std": 0.2 / math.sqrt(2)})
    assert summary["wall"]["dice"] == pytest.approx({"mean": 0.7, "std": 0.4 / math.sqrt(2)})
    # The images' means are 0.7 and 0.6.
    assert summary["mean"]["dice"] == pytest.approx({"mean": 0.65, "std": 0.1 / math.sqrt(2)})


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.permutations(range(4)), st.integers(0, 1000))
def test_summary_does_not_depend_on_order(images, structure_order, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(images, 4, generator=generator)
    names = ["a", "b", "c", "d"]
    order = torch.randperm(images, generator=generator)
    shuffled = summarise(
        {"dice": values[order][:, structure_order]}, [names[k] for k in structure_order]
    )
    summary = summarise({"dice": values}, names)
    for row in [*names, "mean"]:
        assert shuffled[row]["dice"] == pytest.approx(summary[row]["dice"])
    means = [summary[name]["dice"]["mean"] for name in names]
    assert summary["mean"]["dice"]["mean"] == pytest.approx(sum(means) / 4)


def test_summary_of_one_image_has_no_spread():
    summary = summarise(segmentation_metrics(scene(), scene()), ["cavity", "wall", "chamber"])
    for row in summary.values():
        assert row.keys() == NAMES
        assert all(value["std"] == 0.0 for value in row.values())


@pytest.mark.parametrize(
    ("values", "structures", "message"),
    [
        ({}, ["a"], "no metric"),
        ({"dice": torch.ones(2, 1)}, [], "distinct"),
        ({"dice": torch.ones(2, 2)}, ["a", "a"], "distinct"),
        ({"dice": torch.ones(2, 2)}, ["a", "mean"], "distinct"),
        ({"dice": torch.ones(2, 3)}, ["a", "b"], "shape"),
        ({"dice": torch.ones(0, 2)}, ["a", "b"], "shape"),
        ({"dice": torch.ones(2, 1), "iou": torch.ones(3, 1)}, ["a"], "number of images"),
        ({"dice": torch.tensor([[float("nan")]])}, ["a"], "finite"),
    ],
)
def test_summary_errors(values, structures, message):
    with pytest.raises(ValueError, match=message):
        summarise(values, structures)
