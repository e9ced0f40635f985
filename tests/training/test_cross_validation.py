"""Cross-validation: a run for each fold, a table over them, and it goes on where it stopped."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import adapterkit as ak
from adapterkit.training import cross_validation, runner
from tests.commands.test_train_command import write_discs

pytestmark = pytest.mark.usefixtures("blank_figures")

SHORT: dict[str, Any] = {"method": "samed", "epochs": 1, "image_size": 64, "batch_size": 4}


def test_folds_are_trained_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_discs(tmp_path / "discs", images=8)
    calls, performed = 0, runner._performed

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return performed(*arguments)

    monkeypatch.setattr(runner, "_performed", interrupted)
    root = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"--resume {root}$"):
        ak.train(data, folds=3, group=r"\d", out=root, **SHORT)
    first = (root / "fold_1" / "metrics.json").stat().st_mtime_ns
    (root / ".table.part-x3d").mkdir()  # What a process leaves that is killed while it writes.
    found = ak.train(resume=root)
    assert not list(root.glob(".*"))
    assert calls == 4
    assert (root / "fold_1" / "metrics.json").stat().st_mtime_ns == first

    assert isinstance(found, cross_validation.CrossValidation)
    assert found.folder == root
    assert [path.parent.name for path in found.adapters] == ["fold_1", "fold_2", "fold_3"]
    metrics = json.loads((root / "metrics.json").read_text())
    assert metrics == found.metrics
    tested = [name for fold in metrics["folds"] for name in fold["groups"]["test"]]
    assert sorted(tested) == [str(i) for i in range(8)]
    means = [fold["test"]["SAMed"]["foreground"]["dice"]["mean"] for fold in metrics["folds"]]
    over = metrics["test"]["SAMed"]["folds"]["foreground"]["dice"]
    assert over == {"mean": statistics.mean(means), "std": statistics.stdev(means)}
    table = (root / "table.md").read_text()
    assert f"{100 * over['mean']:.2f} ± {100 * over['std']:.2f}" in table
    assert f"| fold_2 | SAMed | {100 * means[1]:.2f} |" in table
    with pytest.raises(ValueError, match="this run is finished"):
        ak.train(resume=root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2}, "2 folds of 8 groups: expected 3 to 8"),
        ({"folds": 9}, "9 folds of 8 groups"),
        ({"folds": 3, "split": "split.csv"}, "--split and --folds both say"),
        ({"split": "nowhere.csv"}, "--split nowhere.csv cannot be read"),
    ],
)
def test_what_cannot_be_folded_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    data = write_discs(tmp_path / "discs", images=8)
    with pytest.raises(ValueError, match=message):
        ak.train(data, out=tmp_path / "run", **SHORT, **options)
    assert not (tmp_path / "run").exists()


def test_a_split_from_a_file_is_kept(tmp_path: Path):
    data = write_discs(tmp_path / "discs", images=6)
    parts = ["train", "train", "test", "train", "val", "train"]
    lines = [f"scan{i}.png,{part}" for i, part in enumerate(parts)]
    (tmp_path / "split.csv").write_text("\n".join(["image,split", *lines]))
    run = ak.train(data, split=tmp_path / "split.csv", out=tmp_path / "run", **SHORT)
    assert run is not None
    assert run.metrics["groups"] == {
        "train": ("scan0", "scan1", "scan3", "scan5"),
        "validation": ("scan4",),
        "test": ("scan2",),
    }
