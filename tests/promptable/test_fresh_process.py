"""A model by its name on the Hub, and an adapter file for it, answer alike in another process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import adapterkit as ak
from tests.transformers_models import edgetam_model, sam2_model, sam3_tracker_model

MODELS: dict[str, Callable[[], Any]] = {
    "tiny/sam2": sam2_model,
    "tiny/sam3-tracker": sam3_tracker_model,
    "tiny/edgetam": edgetam_model,
}
COMMIT = 40 * "a"
ANSWER = """
import sys
import torch
import adapterkit as ak
from safetensors.torch import load_file, save_file

file, *names = sys.argv[1:]
given, found = load_file(file), {}
for name in names:
    model = ak.load_adapter(ak.load(name), name.replace("/", "-") + ".safetensors")
    model = ak.Segmenter(model.eval())
    asked = ak.Prompts(given["points"], given["labels"])
    with torch.no_grad():
        found[name] = model(given["images"], asked).all_logits
        found[name + " by name"] = model(given["images"]).all_logits
save_file(found, "found.safetensors")
"""


def cached(model: Any, name: str, home: Path) -> None:
    """As huggingface_hub keeps what it has downloaded, here a repository with code of its own."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    model.save_pretrained(snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel"), "harm.Harm")
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "harm.py").write_text("raise SystemExit('the code of a checkpoint was run')")
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        shutil.move(path, blobs / str(number))
        path.symlink_to(Path("..", "..", "blobs", str(number)))


def test_by_name_and_with_its_adapter_a_model_answers_alike_in_another_process(tmp_path: Path):
    draw = torch.Generator().manual_seed(0)
    given = {
        "images": 255 * torch.rand(1, 3, 32, 32, generator=draw),
        "points": 32 * torch.rand(1, 2, 1, 2, generator=draw),
        "labels": torch.ones(1, 2, 1, dtype=torch.int64),
    }
    asked_for = ak.Prompts(given["points"], given["labels"])
    expected: dict[str, torch.Tensor] = {}
    for name, make in MODELS.items():
        model = make()
        cached(model, name, tmp_path / "home")
        ak.inject(model, "samus_plus", image_size=32, structures=("a", "b"))
        with torch.no_grad():
            for each in model.parameters():
                if each.requires_grad:
                    each.add_(0.02 * torch.randn(each.shape, generator=draw))
            segmenter = ak.Segmenter(model.eval())
            expected[name] = segmenter(given["images"], asked_for).all_logits
            expected[f"{name} by name"] = segmenter(given["images"]).all_logits
        ak.save_adapter(model, tmp_path / f"{name.replace('/', '-')}.safetensors")
    save_file(given, tmp_path / "given.safetensors")
    # One that has imported nothing yet: huggingface_hub reads these when it is imported.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    program = [sys.executable, "-c", ANSWER, "given.safetensors", *MODELS]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-5, atol=1e-6, msg=name)
