"""An adapter file holds what was trained, loads anywhere its base is, and is refused elsewhere."""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.adapters.fingerprint import fingerprint
from adapterkit.parts import FeatureAdapter, Resize
from tests.models import TINY, snapshot, train_one_step
from tests.processes import Process, run

METHODS = {
    "samus": ak.methods.parts_of("samus"),
    "samed": ak.methods.parts_of("samed", rank=2, image_size=256),
    "msa": ak.methods.parts_of("msa", image_size=256),
    "medsam": ak.methods.parts_of("medsam", image_size=256),
    "callable blocks": [Resize(256), FeatureAdapter(blocks=lambda block: block.index > 3)],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sam, Path]:
    """A trained Sam and its file, not to be changed."""
    sam = ak.inject_samus(ak.build_sam(TINY, seed=0))
    train_one_step(sam.image_encoder, torch.rand(1, 3, 256, 256))
    path = tmp_path_factory.mktemp("made") / "adapter.safetensors"
    ak.save_adapter(sam, path, classes=["left ventricle", "myocardium"], training={"epochs": 1})
    return sam, path


@pytest.fixture
def trained(made: tuple[Sam, Path]) -> Sam:
    return copy.deepcopy(made[0])


@pytest.fixture
def file(made: tuple[Sam, Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(made[1], tmp_path))


def segment(sam: Sam, image: Tensor) -> Tensor:
    size = sam.image_encoder.img_size
    with torch.no_grad():
        points = torch.full((len(image), 1, 1, 2), size / 2)
        labels = torch.ones(len(image), 1, 1, dtype=torch.long)
        return ak.Segmenter(sam)(255 * image, ak.Prompts(points, labels)).low_res_logits


def rewrite(file: Path, change) -> None:
    """Save `file` again with its tensors and metadata as `change` leaves them, without digests."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    del metadata["adapterkit digests"]
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


@pytest.mark.parametrize("parts", METHODS.values(), ids=METHODS)
def test_all_that_was_trained_is_saved(sam: Sam, image: Tensor, tmp_path: Path, parts):
    ak.inject(sam, parts)
    before = segment(sam, image)
    parameters = [each for each in sam.parameters() if each.requires_grad]
    for parameter in parameters:
        parameter.data += 0.01 * torch.randn(parameter.shape)
    after = segment(sam, image)
    assert not torch.allclose(before, after)
    ak.save_adapter(sam, tmp_path / "adapter.safetensors")

    fresh = ak.load_adapter(ak.build_sam(TINY, seed=0), tmp_path / "adapter.safetensors")
    assert torch.equal(segment(fresh, image), after)
    saved = load_file(tmp_path / "adapter.safetensors")
    assert sum(each.numel() for each in saved.values()) == sum(p.numel() for p in parameters)


def test_it_loads_in_a_fresh_process_with_equal_outputs(trained: Sam, file: Path, image: Tensor):
    expected = segment(trained, image)
    save_file({"image": image}, file.parent / "image.safetensors")
    torch.save(ak.eject(trained).state_dict(), file.parent / "base.pth")
    script = f"""
import torch, adapterkit as ak
from safetensors import safe_open
from safetensors.torch import load_file, save_file
sam = ak.load_adapter(ak.load_sam("base.pth", decoder_num_heads=4), "{file.name}")
image = 255 * load_file("image.safetensors")["image"]
points, labels = torch.full((2, 1, 1, 2), 128.0), torch.ones(2, 1, 1, dtype=torch.long)
with torch.no_grad():
    logits = ak.Segmenter(sam)(image, ak.Prompts(points, labels)).low_res_logits
save_file({{"logits": logits.contiguous()}}, "logits.safetensors")
"""
    run(Process(script, folder=file.parent))
    assert torch.equal(load_file(file.parent / "logits.safetensors")["logits"], expected)


def test_the_loaded_adapter_goes_on_training_and_ejects(sam: Sam, file: Path, image: Tensor):
    fresh = ak.build_sam(TINY, seed=0)
    before = snapshot(fresh)
    ak.load_adapter(fresh, file)
    trained = [name for name, each in fresh.named_parameters() if each.requires_grad]
    assert len(trained) == len(load_file(file))
    first = segment(fresh, image)
    train_one_step(fresh.image_encoder, image)
    assert not torch.equal(segment(fresh, image), first)
    assert snapshot(ak.eject(fresh)) == before


def test_loading_draws_no_random_number(file: Path):
    fresh = ak.build_sam(TINY, seed=0)
    state = torch.get_rng_state()
    ak.load_adapter(fresh, file)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_header_says_what_the_file_is(file: Path):
    header = ak.inspect_adapter(file)
    assert header.parts == tuple(ak.methods.parts_of("samus"))
    assert header.image_size == 256
    assert header.mean == (0, 0, 0)
    assert header.std == (255, 255, 255)
    assert header.classes == ("left ventricle", "myocardium")
    assert header.family == "segment_anything"
    assert header.training == {"epochs": 1}


def test_without_normalise_the_header_has_the_base_s_statistics(sam: Sam, tmp_path: Path):
    ak.save_adapter(ak.inject(sam, [Resize(256)]), tmp_path / "a.safetensors")
    assert ak.inspect_adapter(tmp_path / "a.safetensors").mean == pytest.approx(
        (123.675, 116.28, 103.53)
    )


def test_an_encoder_s_adapter_fits_the_whole_model_and_back(file: Path, tmp_path, image: Tensor):
    encoder = ak.load_adapter(ak.build_sam(TINY, seed=0).image_encoder, file)
    ak.save_adapter(encoder, tmp_path / "encoder.safetensors")
    sam = ak.load_adapter(ak.build_sam(TINY, seed=0), tmp_path / "encoder.safetensors")
    with torch.no_grad():
        assert torch.equal(sam.image_encoder(image), encoder(image))


def test_a_base_in_bfloat16_is_the_same_base(file: Path, image: Tensor):
    half = ak.load_adapter(ak.build_sam(TINY, seed=0).bfloat16(), file)
    assert {each.dtype for each in half.image_encoder.parameters()} == {torch.bfloat16}


def test_several_adapters_load_under_names(trained: Sam, file: Path, image: Tensor):
    expected = segment(trained, image)
    ak.load_adapter(trained, file, name="second")
    assert torch.equal(segment(trained, image), expected)
    with pytest.raises(ValueError, match="an adapter named 'second' is on this model"):
        ak.load_adapter(trained, file, name="second")
    ak.inject(trained, [FeatureAdapter()], name="features")
    ak.activate(trained, "default", "features")
    with pytest.raises(ValueError, match="2 adapters are active"):
        ak.save_adapter(trained, file)


def test_a_wrong_base_is_refused_by_tensor_unless_meant(file: Path, image: Tensor):
    other = ak.build_sam(TINY, seed=0)
    with torch.no_grad():
        other.get_parameter("image_encoder.blocks.3.mlp.lin1.weight")[0, 0] += 1
    before = snapshot(other)
    with pytest.raises(ak.AdapterFileError, match=r"image_encoder\.blocks\.3\.mlp\.lin1\.weight"):
        ak.load_adapter(other, file)
    assert snapshot(other) == before
    ak.load_adapter(other, file, check_base=False)
    assert snapshot(ak.eject(other)) == before


def header_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_a_file_truncated_at_any_byte_is_refused(file: Path):
    content = file.read_bytes()
    header, whole = header_bytes(content), len(content)
    body = torch.randint(header, whole, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    cuts = {*range(200), *range(200, header, 97), *range(header - 20, header + 20), *body}
    cuts |= set(range(whole - 40, whole))
    assert len(cuts) > 500
    sam = ak.build_sam(TINY, seed=0)
    before = snapshot(sam)
    for cut in sorted(cuts, reverse=True):
        os.truncate(file, cut)
        with pytest.raises(ak.AdapterFileError, match=str(file)):
            ak.load_adapter(sam, file)
    assert snapshot(sam) == before


def test_a_damaged_header_is_refused_or_says_the_same(file: Path):
    """A flipped byte is an error that names the file's fault, unless it leaves the header's sense:
    in a class's name, say, or between two spaces."""
    content = file.read_bytes()
    draw = random.Random(0)
    parts = content.index(b"parts")
    sam = ak.build_sam(TINY, seed=0)
    before = snapshot(sam)
    refused = 0
    for _ in range(200):
        place = draw.choice((range(8), range(header_bytes(content)), range(parts, parts + 1200)))
        at = draw.choice(place)
        damaged = bytearray(content)
        damaged[at] = draw.choice((damaged[at] ^ 1 << draw.randrange(8), *b'0123456789-e."[]{}'))
        file.unlink()
        file.write_bytes(damaged)
        try:
            ak.load_adapter(sam, file)
        except (ValueError, OSError):
            refused += 1
        else:
            ak.eject(sam)
    assert snapshot(sam) == before
    assert refused > 170


def set_header(**fields):
    def change(tensors, metadata):
        metadata["adapterkit"] = json.dumps({**json.loads(metadata["adapterkit"]), **fields})

    return change


UP = "feature_adapter.tokens.up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.clear(), "without adapterkit's header"),
        (lambda t, m: m.update(adapterkit="{"), "a header that cannot be read"),
        (lambda t, m: m.update(adapterkit="[]"), "a header that cannot be read"),
        (set_header(format_version=99), "upgrade adapterkit"),
        (set_header(parts=[{"part": "Warp"}]), "a part 'Warp'"),
        (set_header(parts=[{"part": "Resize", "size": 3}]), "cannot be read"),
        (set_header(family="timm"), "trained on a timm encoder"),
        (lambda t, m: t.pop(UP), f"lacks the tensor {UP}"),
        (lambda t, m: t.update(stray=torch.zeros(1)), "holds a tensor stray"),
        (lambda t, m: t.update({UP: torch.zeros(3, 2)}), r"has shape \(3, 2\)"),
    ],
)
def test_an_unfit_file_is_refused_and_the_model_is_as_before(file: Path, change, message: str):
    rewrite(file, change)
    sam = ak.build_sam(TINY, seed=0)
    before = snapshot(sam)
    with pytest.raises(ak.AdapterFileError, match=message):
        ak.load_adapter(sam, file)
    assert snapshot(sam) == before


def test_a_missing_file_and_a_missing_folder_are_named(trained: Sam, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no adapter file at .*absent"):
        ak.load_adapter(trained, tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        ak.save_adapter(trained, tmp_path / "absent" / "adapter.safetensors")


def test_a_failed_save_keeps_the_old_file(trained: Sam, file: Path, monkeypatch):
    content = file.read_bytes()

    def disk_full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("adapterkit.system.files.save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        ak.save_adapter(trained, file)
    assert file.read_bytes() == content
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_the_fingerprint_sees_structure_and_content(sam: Sam):
    before = fingerprint(sam)
    assert len(before) == len(sam.state_dict())
    ak.inject_samus(sam)
    assert fingerprint(sam) == before
    assert fingerprint(sam.image_encoder) == {
        key: value for key, value in before.items() if key.startswith("image_encoder.")
    }


def test_the_fingerprint_sees_where_values_are(sam: Sam):
    before = fingerprint(sam)
    with torch.no_grad():
        weight = sam.get_parameter("image_encoder.blocks.3.mlp.lin1.weight")
        weight.copy_(weight.flip(0))
    assert [key for key, value in fingerprint(sam).items() if value != before[key]] == [
        "image_encoder.blocks.3.mlp.lin1.weight"
    ]


def test_a_loaded_adapter_does_not_depend_on_its_file(trained: Sam, file: Path, image: Tensor):
    fresh = ak.load_adapter(ak.build_sam(TINY, seed=0), file)
    content = file.read_bytes()
    file.write_bytes(content[: header_bytes(content)].ljust(len(content), b"?"))
    assert torch.equal(segment(fresh, image), segment(trained, image))
