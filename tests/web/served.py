"""Small work lists, models and servers that the tests of the page share."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

import adapterkit as ak
from adapterkit.inference.predictor import Predictor
from adapterkit.web.model import Model
from adapterkit.web.server import Service, application
from tests.models import ECHO

HERE = "127.0.0.1"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 90), dtype=np.uint8)
STACK = RNG.integers(0, 256, (3, 60, 90), dtype=np.uint8)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HERE, 0))
        return trial.getsockname()[1]


def make_predictor(folder: Path) -> Predictor:
    """A small Sam with two adapters: "named" knows atrium and wall by name, "clicked" nothing."""
    sam = ak.build_sam(ECHO, seed=0)
    with torch.no_grad():  # Surer of its masks than random weights are.
        for name, weight in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and "layers.2.weight" in name:
                weight *= 100
    torch.manual_seed(0)
    structures = ("atrium", "wall")
    for name, method in {"clicked": "samus", "named": "samus_plus"}.items():
        options: dict[str, Any] = {"structures": structures} if method == "samus_plus" else {}
        ak.inject(sam, method, image_size=64, **options)
        ak.save_adapter(sam, folder / f"{name}.safetensors", classes=list(structures))
        ak.eject(sam)
    return Predictor(sam)


def make_model(folder: Path) -> Model:
    predictor = make_predictor(folder)
    files = [folder / f"{name}.safetensors" for name in ("named", "clicked")]
    return Model(predictor, {predictor.load(file): file for file in files})


def write_images(folder: Path, count: int = 3) -> Path:
    """A folder to be annotated: pictures, and a sequence of three frames."""
    (folder / "images").mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.roll(PIXELS, k)).save(folder / "images" / f"scan{k}.png")
    nifti = nibabel.Nifti1Image(STACK.T, np.diag([0.5, 0.25, 1, 1.0]))
    nifti.header.set_xyzt_units("mm")
    nibabel.save(nifti, folder / "images" / "tape.nii.gz")
    return folder


@contextmanager
def client(service: Service, temporary: Path) -> Iterator[TestClient]:
    """Of the server's application, in this process."""
    with application(replace(service, annotator="anna"), temporary) as app:
        yield TestClient(app, base_url=f"http://{HERE}")
