"""Volumes, ejection fraction and their agreement, against shapes whose volumes are known."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from adapterkit.data.synthetic.heart import (
    biplane_volume,
    contract,
    draw_labels,
    random_contraction,
    random_heart,
    random_view,
)
from adapterkit.data.synthetic.ultrasound import fit_sector
from adapterkit.evaluation.clinical import (
    VIEWS,
    View,
    agreement,
    dice_of_frames,
    find_phases,
    jitter,
    measure_patient,
    measure_sequence,
    measure_view,
    volume_of_area_and_length,
    volume_of_discs,
)
from tests.half_ellipses import Labels, beat, half_ellipses, of_half_ellipsoid


@pytest.mark.parametrize("atrium", [3, None])
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.4, 0.9), (1.1, 0.6)])
@pytest.mark.parametrize("angle", [0, 0.5, math.pi / 2, 2.2, math.pi])
def test_a_heart_in_any_direction_on_pixels_of_any_shape(
    angle: float, spacing: tuple[float, float], atrium: int | None
):
    labels = half_ellipses(60, 24, angle, spacing)
    found = measure_view(labels, spacing, "a", atrium=atrium)
    ventricle = found.ventricle
    assert ventricle.notes == ()
    assert ventricle.length == pytest.approx(60, rel=0.02)
    assert ventricle.area_cm2 == pytest.approx(math.pi / 2 * 60 * 24 / 100, rel=0.01)
    assert ventricle.apex is not None
    apex = np.array(ventricle.apex) * spacing[::-1]
    true = np.array([75 + 60 * math.sin(angle), 80 - 60 * math.cos(angle)])
    np.testing.assert_allclose(apex, true, atol=2)
    volume = volume_of_discs(ventricle, None)
    assert volume == pytest.approx(of_half_ellipsoid(60, 24), rel=0.03)
    if atrium is not None:
        assert found.atrium is not None
        assert found.atrium.length == pytest.approx(30, rel=0.03)
        for of in (volume_of_discs, volume_of_area_and_length):
            assert of(None, found.atrium) == pytest.approx(of_half_ellipsoid(30, 24), rel=0.05)


def test_the_discs_lie_across_the_axis_from_apex_to_base():
    found = measure_view(half_ellipses(), (0.5, 0.5), "a").ventricle
    assert len(found.diameters) == len(found.discs) == 20
    assert found.diameters[0] < found.diameters[5] < found.diameters[19]
    for (left, right), diameter in zip(found.discs[3:], found.diameters[3:], strict=True):
        assert 0.5 * math.dist(left, right) == pytest.approx(diameter, abs=1)
        assert left[1] == pytest.approx(right[1], abs=1)
    assert found.apex is not None
    assert found.apex[1] < found.discs[0][0][1] < found.discs[19][0][1] < 160


def test_a_spike_of_a_mask_is_no_apex():
    labels = half_ellipses(60)
    whole = measure_view(labels, (0.5, 0.5), "a").ventricle
    labels[20:45, 149:152] = 1
    spiked = measure_view(labels, (0.5, 0.5), "a").ventricle
    assert spiked.length == pytest.approx(whole.length, abs=1)


def test_an_atrium_that_is_narrower_or_lies_apart_tells_the_same_plane():
    labels = half_ellipses(60)
    whole = measure_view(labels, (0.5, 0.5), "a").ventricle
    for change in ("narrow", "apart"):
        other = labels.copy()
        away = np.asarray(ndimage.distance_transform_edt(labels == 3)) <= 6
        if change == "narrow":
            away &= np.abs(np.arange(labels.shape[1]) - 150) >= 25
        other[(labels == 3) & away] = 0
        found = measure_view(other, (0.5, 0.5), "a")
        assert found.ventricle.length == pytest.approx(whole.length, rel=0.01), change
        assert found.atrium is not None
        assert found.atrium.is_measured


# Synthetic hearts


def heart(seed: int) -> tuple[dict[tuple[str, str], View], tuple[float, float]]:
    """A synthetic patient's views, measured, and the true volumes at ED and ES in ml."""
    rng = np.random.default_rng([7, seed])
    diastole, contraction = random_heart(rng), random_contraction(rng)
    sector = fit_sector(rng, diastole, 256)
    planes = {view: random_view(rng, diastole, four_chamber=view == "4CH") for view in VIEWS}
    views, volumes = {}, []
    for amount, phase in enumerate(("ED", "ES")):
        shown = {view: contract(plane, contraction, amount) for view, plane in planes.items()}
        volumes.append(biplane_volume(*shown.values()) / 1000)
        for view, cut in shown.items():
            labels = draw_labels(cut, *sector.pixels())
            views[view, phase] = measure_view(labels, sector.spacing, f"{seed}_{view}_{phase}")
    return views, (volumes[0], volumes[1])


def test_of_synthetic_hearts_ejection_fraction_and_volumes_are_the_true_ones():
    """Shown with -s: 30 patients of 256 x 256 pixels."""
    of_ef, of_volumes = [], []
    for seed in range(30):
        views, (edv, esv) = heart(seed)
        ed, es = ({view: views[view, phase] for view in VIEWS} for phase in ("ED", "ES"))
        found = measure_patient(f"patient {seed}", ed, es)
        assert found.method == "biplane"
        of_ef.append(found.ef - 100 * (1 - esv / edv))
        of_volumes += [found.edv / edv - 1, found.esv / esv - 1]
    ef, volumes = np.abs(of_ef), 100 * np.abs(of_volumes)
    print(
        f"\nEF: off by {ef.mean():.2f} points on average, {ef.max():.2f} at most, bias "
        f"{np.mean(of_ef):+.2f}\nvolumes: by {volumes.mean():.2f} % on average, "
        f"{volumes.max():.2f} % at most, bias {100 * np.mean(of_volumes):+.2f} %"
    )
    assert ef.mean() < 0.5
    assert volumes.mean() < 2
    assert volumes.max() < 5


# What is not as it should be


def views(**labels: Labels) -> dict[str, View]:
    """By view; "two" and "four"."""
    names = {"two": "2CH", "four": "4CH"}
    return {names[k]: measure_view(each, (0.5, 0.5), names[k]) for k, each in labels.items()}


def test_views_whose_axes_differ_are_flagged():
    ed = views(two=half_ellipses(70), four=half_ellipses(60))
    es = views(two=half_ellipses(55), four=half_ellipses(52))
    found = measure_patient("anna", ed, es)
    assert [note for note in found.notes if "ED" in note and "foreshortened" in note]
    assert not [note for note in found.notes if "ES" in note]
    product = volume_of_discs(ed["2CH"].ventricle, ed["4CH"].ventricle)
    assert found.edv == pytest.approx(product / 1000)
    assert found.edv == pytest.approx(of_half_ellipsoid(70, 24) / 1000, rel=0.03)


def test_a_missing_view_makes_it_monoplane_and_says_so():
    ed, es = views(two=half_ellipses(70), four=half_ellipses(70)), views(four=half_ellipses(56))
    found = measure_patient("anna", ed, es)
    assert found.method == "monoplane 4CH"
    assert found.ef == pytest.approx(20, abs=0.5)
    assert found.stroke_volume == pytest.approx(found.edv - found.esv)
    assert any("2CH was not measured" in note for note in found.notes)
    nothing = measure_patient("anna", views(two=half_ellipses(70)), es)
    assert math.isnan(nothing.ef)
    assert nothing.method == "none"
    with pytest.raises(ValueError, match="3CH"):
        measure_patient("anna", {"3CH": ed["2CH"]}, es)


def test_without_spacing_there_is_an_ejection_fraction_and_no_volume():
    def of(scale: float | None) -> list[dict[str, View]]:
        spacing = None if scale is None else (scale, scale)
        return [
            {v: measure_view(half_ellipses(k * 70, k * 24), spacing, v) for v in VIEWS}
            for k in (1, 0.8)
        ]

    known, unknown = (measure_patient("anna", *of(scale)) for scale in (0.5, None))
    assert unknown.ef == pytest.approx(known.ef)
    assert unknown.ef == pytest.approx(100 * (1 - 0.8**3), abs=0.5)
    assert math.isnan(unknown.edv)
    assert math.isnan(unknown.atrium_discs)
    assert math.isnan(unknown.ed["2CH"].ventricle.area_cm2)
    assert any("size of a pixel is not known" in note for note in unknown.notes)
    assert known.notes == ()
    # Where one view has a spacing, volumes are of that one.
    ed, es = (
        {"2CH": one["2CH"], "4CH": other["4CH"]}
        for one, other in zip(of(0.5), of(None), strict=True)
    )
    mixed = measure_patient("anna", ed, es)
    assert mixed.method == "monoplane 2CH"
    assert mixed.edv == pytest.approx(known.edv, rel=0.01)


def test_a_faulty_mask_is_told_by_the_name_of_its_frame():
    whole = half_ellipses(60)
    empty = np.zeros_like(whole)
    pieces, holes, cut = whole.copy(), whole.copy(), half_ellipses(60, middle=(75, 40))
    pieces[5:25, 5:25] = 1
    holes[120:140, 140:160] = 0
    named = {"empty": empty, "is in pieces (2)": pieces, "has holes": holes, "border": cut}
    for word, labels in named.items():
        found = measure_view(labels, (0.5, 0.5), "anna_2CH_ES").ventricle
        assert any("anna_2CH_ES" in note and word in note for note in found.notes), word
    for labels in (pieces, holes):
        found = measure_view(labels, (0.5, 0.5), "a").ventricle
        assert found.length == pytest.approx(measure_view(whole, (0.5, 0.5), "a").ventricle.length)
    without = measure_view(empty, (0.5, 0.5), "a")
    assert not without.ventricle.is_measured
    assert math.isnan(volume_of_discs(without.ventricle, None))
    far = whole.copy()
    far[far == 3] = 0
    far[300:310, 10:40] = 3
    found = measure_view(far, (0.5, 0.5), "a")
    assert any("does not meet" in note for note in found.notes)
    assert found.atrium is not None
    assert not found.atrium.is_measured


def test_what_contracts_to_more_is_doubted():
    ed, es = views(two=half_ellipses(50)), views(two=half_ellipses(60))
    found = measure_patient("anna", ed, es)
    assert found.ef < 0
    assert any("exchanged" in note for note in found.notes)


# Sequences


def test_a_sequence_tells_its_phases_and_its_measures_there():
    sequence = beat()
    found = measure_sequence(sequence, (1, 1), "anna_4CH")
    assert found.ed == 0
    assert found.es == pytest.approx(11, abs=1)
    assert found.at_ed is not None
    assert found.at_ed.name == "anna_4CH frame 0"
    assert found.at_ed.ventricle.length == pytest.approx(60, rel=0.03)
    assert found.areas[0] == found.at_ed.ventricle.area
    assert found.notes == ()
    stated = measure_sequence(sequence, (1, 1), "anna_4CH", ed=3, es=9)
    assert (stated.ed, stated.es) == (3, 9)
    sequence[[4, 15]] = 0
    holed = measure_sequence(sequence, (1, 1), "anna_4CH")
    assert (holed.ed, holed.es) == (found.ed, found.es)
    assert holed.notes == ("anna_4CH: in 2 of 21 frames (4, 15) the left ventricle is empty",)
    nothing = measure_sequence(np.zeros_like(sequence), None, "anna_4CH")
    assert (nothing.ed, nothing.at_es) == (None, None)
    assert "all 21 frames" in nothing.notes[0]


def test_flicker_is_jitter_and_does_not_move_the_phases():
    areas = np.array([each.sum() for each in beat(41) == 1], dtype=float)
    flickering = areas * np.random.default_rng(0).normal(1, 0.02, 41)
    assert jitter(areas) < 0.02
    assert jitter(flickering) > 3 * jitter(areas)
    assert jitter(2 * areas) == pytest.approx(jitter(areas))
    assert math.isnan(jitter(areas[:2]))
    assert math.isnan(jitter(np.ones(9)))
    odd = areas.copy()
    odd[7] *= 1.02
    assert find_phases(odd) == find_phases(areas)
    assert find_phases(np.full(5, np.nan)) is None


def test_dice_of_each_frame():
    one = np.zeros((3, 4, 4), dtype=bool)
    other = one.copy()
    one[0, :2], other[0, 1:3] = True, True
    one[1, 0] = True
    np.testing.assert_allclose(dice_of_frames(one, other), [0.5, 0, 1])


# Agreement


def test_agreement_is_that_of_bland_and_altman():
    rng = np.random.default_rng(1)
    reference = rng.uniform(20, 75, 60)
    measured = reference + rng.normal(2, 4, 60)
    found = agreement(measured, reference)
    differences = measured - reference
    assert found.count == 60
    assert found.bias.value == pytest.approx(differences.mean())
    assert found.upper.value == pytest.approx(differences.mean() + 1.96 * differences.std(ddof=1))
    assert found.lower.value == pytest.approx(differences.mean() - 1.96 * differences.std(ddof=1))
    assert found.mae.value == pytest.approx(np.abs(differences).mean())
    assert found.correlation.value == pytest.approx(stats.pearsonr(measured, reference)[0])
    for each in (found.bias, found.lower, found.upper, found.mae, found.correlation):
        assert each.low < each.value < each.high
    # As the normal distribution has it: bias ± 1.96 standard errors.
    error = differences.std(ddof=1) / math.sqrt(60)
    assert found.bias.low == pytest.approx(found.bias.value - 1.96 * error, abs=0.3 * error)
    assert found == agreement(measured, reference)
    holed = np.append(measured, np.nan), np.append(reference, 50)
    assert agreement(*holed).count == 60


def test_agreement_of_few_patients_has_no_interval_and_of_none_is_refused():
    one = agreement(np.array([50.0]), np.array([45.0]))
    assert one.bias.value == 5
    assert math.isnan(one.bias.low)
    assert math.isnan(one.upper.value)
    assert (str(one.bias), one.limits, str(one.correlation)) == ("5.00", "unknown", "unknown")
    same = agreement(np.array([50.0, 50, 50]), np.array([45.0, 55, 50]))
    assert math.isnan(same.correlation.value)
    with pytest.raises(ValueError, match="no patient"):
        agreement(np.array([np.nan]), np.array([1.0]))
