import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adapterkit.evaluation import plots
from adapterkit.evaluation.plots import Case, segmentation_figure, training_curves
from tests.processes import ROOT

STRUCTURES = ["LV endocardium", "myocardium", "left atrium"]


def make_case(title="patient0001_2CH_ED", structures=STRUCTURES):
    rows, columns = np.mgrid[:30, :24]
    masks = np.stack([np.hypot(rows - 9 * k - 5, columns - 12) < 5 for k in range(3)])
    points = np.array([[[12, 9 * k + 5]] for k in range(3)])
    return Case(
        title,
        rows.astype(np.uint8),
        masks,
        np.roll(masks, 2, 2),
        points,
        structures,
        [0.9, 0.5, 0.0],
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, path: (figures.append(f), save(f, path)))
    return figures


def assert_no_text_is_clipped(figure):
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    texts = [axes.title for axes in figure.axes] + [t for g in figure.legends for t in g.texts]
    assert texts
    for text in texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("prefix", ["", "a long descriptive name of "])
def test_segmentation_figure(tmp_path, drawn, rows, prefix):
    case = make_case(structures=[prefix + name for name in STRUCTURES])
    path = tmp_path / "new folder" / "figure.png"
    segmentation_figure([replace(case, title=f"case {i}") for i in range(rows)], path)
    [figure] = drawn
    assert len(figure.axes) == 3 * rows
    assert_no_text_is_clipped(figure)
    assert figure.axes[0].get_title() == "case 0"
    title = figure.axes[2].get_title().replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert all(f"{name} 0." in title for name in case.structures)
    assert "0.900" in title
    with Image.open(path) as image:
        assert image.width == 1320
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_points_are_drawn_as_x_y(tmp_path, drawn):
    segmentation_figure([make_case()], tmp_path / "figure.png")
    offsets = np.concatenate(
        [c.get_offsets() for c in drawn[0].axes[2].collections if len(c.get_offsets()) == 1]
    )
    expected = {(12.0, 5.0), (12.0, 14.0), (12.0, 23.0)}
    assert expected <= {tuple(map(float, offset)) for offset in offsets}


def test_empty_and_full_masks_no_points_and_a_constant_image(tmp_path):
    case = make_case()
    predicted = np.zeros_like(case.predicted)
    predicted[1] = True
    case = replace(case, image=np.zeros((30, 24)), predicted=predicted, points=np.zeros((3, 0, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmentation_figure([case], tmp_path / "figure.png")


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_formats(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    segmentation_figure([make_case()], path)
    assert path.read_bytes()[:5] in (b"%PDF-", b"<?xml")


def test_a_structure_keeps_its_colour():
    swapped = make_case(structures=STRUCTURES[::-1])
    colours = plots._structure_colours([make_case(), swapped])
    assert list(colours) == STRUCTURES
    assert len(set(colours.values())) == 3


def test_failed_drawing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        training_curves([{"epoch": 1, "loss": 0.5}], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_training_curves(tmp_path, drawn):
    history = [{"epoch": e, "loss": 1 / e, "learning_rate": 1e-4} for e in range(1, 6)]
    history[1]["validation_dice"] = 0.7
    history[3]["validation_dice"] = 0.8
    training_curves(history, tmp_path / "curves.png")
    left, right = drawn[0].axes
    np.testing.assert_allclose(left.lines[0].get_xydata()[:, 1], [1 / e for e in range(1, 6)])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[2, 0.7], [4, 0.8]])


def test_training_curves_without_validation(tmp_path, drawn):
    training_curves([{"epoch": 1, "loss": 0.5}], tmp_path / "curves.png")
    assert len(drawn[0].axes) == 1


def test_pyplot_is_not_imported():
    code = "import sys, adapterkit.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((30, 24, 3)), "image"),
        ("reference", np.zeros((3, 30, 25), bool), "reference"),
        ("predicted", np.zeros((3, 30, 24)), "boolean"),
        ("points", np.zeros((2, 1, 2)), "points"),
        ("structures", ["a", "b"], "shape"),
        ("dice", [0.5], "Dice"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_case_errors(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(make_case(), **{field: value})


def test_figure_errors(tmp_path):
    with pytest.raises(ValueError, match="no case"):
        segmentation_figure([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="suffix"):
        segmentation_figure([make_case()], tmp_path / "figure")
    with pytest.raises(ValueError, match="empty"):
        training_curves([], tmp_path / "curves.png")
    with pytest.raises(ValueError, match="record 1"):
        training_curves([{"epoch": 1, "loss": 1.0}, {"epoch": 2}], tmp_path / "curves.png")
