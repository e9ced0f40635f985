"""The measurement of what a step waits for, in miniature."""

from pathlib import Path

import pytest

from adapterkit.data.synthetic.phantom import write_phantom
from benchmarks.data_loading import Config, main


def test_it_prints_the_share_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_phantom(tmp_path / "echo", patients=1, image_size=32)
    main(Config(data, workers=1, steps=1, batch_size=2))
    said = capsys.readouterr().out
    assert said.startswith("1 workers, 0 for decoded images, 1 steps of 2 images: ")
    assert "%) it waits for images" in said
