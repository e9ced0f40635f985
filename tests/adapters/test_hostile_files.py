"""Whatever is wrong with an adapter file, it is one error that names it, soon and in little memory,
and the model is as it was."""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import nn

import adapterkit as ak
from adapterkit.adapters.patterns import ways_to_match
from adapterkit.parts import FeatureAdapter, LoRA, Normalise, Resize, Train
from adapterkit.promptable.stock_sam import SamConfig
from benchmarks.contestant import peak_bytes
from tests.models import snapshot

SMALL = SamConfig(
    width=32, depth=2, num_heads=2, global_blocks=(1,), window_size=4, image_size=64,
    prompt_width=32, decoder_mlp_width=32, iou_head_width=32,
)  # fmt: skip
SECONDS, MEGABYTES = 1.0, 100


def small() -> Sam:
    return ak.build_sam(SMALL, seed=0)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a sound file with parts of every kind."""
    sam = small()
    lora = peft.LoraConfig(r=4, target_modules=r"blocks\.\d+\.mlp\.lin1")
    parts = [Resize(64, 8), Normalise(), LoRA(2), FeatureAdapter(at="mlp"), lora]
    ak.inject(sam, [*parts, Train("rel_pos")])
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    ak.save_adapter(sam, path, classes=["left ventricle"], training={"epochs": 1})
    # What is imported and cached at the first load is no cost of a hostile file.
    ak.load_adapter(small(), path)
    return path.read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    return path


def forge(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Write `file` again with header and tensors as `change` leaves them, and no digests."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["adapterkit"])
    tensors = load_file(file)
    text = change(header, tensors)
    save_file(tensors, file, {"adapterkit": text or json.dumps(header)})


def test_what_it_forges_is_otherwise_sound(file: Path):
    forge(file, lambda header, tensors: None)
    ak.load_adapter(small(), file)


def set_part(index: int, **options: Any):
    return lambda header, _: header["parts"][index].update(options)


def set_option(**options: Any):
    return lambda header, _: header["parts"][4]["options"].update(options)


def set_field(**fields: Any):
    return lambda header, _: header.update(fields)


def set_dtype(dtype: torch.dtype):
    return lambda _, tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()})


def fill(value: float):
    def change(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        next(iter(tensors.values())).fill_(value)

    return change


def widened(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    """A big rank, and a long tensor that makes it plausible."""
    header["parts"][4]["options"]["r"] = 500_000
    tensors["peft.blocks.0.mlp.lin1.layer.lora_A.default.weight"] = torch.zeros(500_000, 1)


NESTED = "[" * 100_000
HEADERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "parts of numbers": set_field(parts=[4]),
    "parts of text": set_field(parts=["LoRA"]),
    "parts are text": set_field(parts="LoRA"),
    "no parts": set_field(parts=[]),
    "many parts": set_field(parts=[{"part": "Normalise"}] * 100_000),
    "image size of text": set_field(image_size="64"),
    "image size a list": set_field(image_size=[64]),
    "image size null": set_field(image_size=None),
    "image size 1e9": set_field(image_size=10**9),
    "image size 1e6 and its part": lambda h, _: (
        h.update(image_size=10**6),
        h["parts"][0].update(image_size=10**6, patch_stride=1),
    )[2:],
    "image size the most and its part": lambda h, _: (
        h.update(image_size=8192),
        h["parts"][0].update(image_size=8192, patch_stride=1),
    )[2:],
    "image size negative": set_field(image_size=-64),
    "another image size than its part's": set_field(image_size=128),
    "rank 4.5": set_part(2, rank=4.5),
    "rank 1e9": set_part(2, rank=10**9),
    "rank true": set_part(2, rank=True),
    "rank of another": set_part(2, rank=16),
    "alpha NaN": set_part(2, alpha=math.nan),
    "alpha infinite": set_part(2, alpha=math.inf),
    "alpha 1e300": set_part(2, alpha=1e300),
    "scale of text": set_part(3, scale="1"),
    "scale 1e9": set_part(3, scale=1e9),
    "site of another": set_part(3, at="qkv"),
    "site a list": set_part(3, at=["mlp"]),
    "blocks a number": set_part(2, blocks=3),
    "blocks of text": set_part(2, blocks=["all"]),
    "blocks absent": set_part(2, blocks=[7]),
    "reduction zero": set_part(3, reduction=0),
    "mean of text": set_field(mean=["a", "b", "c"]),
    "mean a number": set_field(mean=0),
    "std of zeros": set_field(std=[0, 0, 0]),
    "std empty": set_field(std=[]),
    "std alone": set_field(mean=None),
    "classes of numbers": set_field(classes=[1, 2]),
    "classes text": set_field(classes="left ventricle"),
    "classes with terminal escapes": set_field(classes=["\x1b[31mred"]),
    "classes with markup": set_field(classes=["<script>alert(1)</script>"]),
    "300 classes": set_field(classes=[f"class {i}" for i in range(300)]),
    "fingerprint empty": set_field(fingerprint={}),
    "fingerprint a list": set_field(fingerprint=[]),
    "fingerprint of numbers": set_field(fingerprint={"image_encoder.pos_embed": 3}),
    "version -1": set_field(format_version=-1),
    "version true": set_field(format_version=True),
    "version of text": set_field(format_version="1"),
    "version 1e9": set_field(format_version=10**9),
    "training a list": set_field(training=[]),
    "training nested": set_field(training={"a": [[[[[[[[[]]]]]]]]]}),
    "a field of a later version": set_field(precision="bf16"),
    "an option of a later version": set_part(2, dropout=0.1),
    "brackets, 100,000": lambda *_: NESTED,
    "brackets within": lambda *_: '{"format_version": 1, "parts": ' + NESTED,
    "no object": lambda *_: "3",
    "peft rank 1e6": set_option(r=10**6),
    "peft rank 1e6 with a long tensor": widened,
    "peft rank -1": set_option(r=-1),
    "peft rank of text": set_option(r="4"),
    "peft ranks by pattern": set_option(rank_pattern={"lin1": 10**6}),
    "peft alpha infinite": set_option(lora_alpha=math.inf),
    "peft regex": set_option(target_modules="(b|l|.)+(.+)+$"),
    "peft regex of many ways": set_option(target_modules=".*.*.*.*.*.*x"),
    "peft regex of alternatives": set_option(target_modules="(b|b)(l|l|l)" * 20),
    "peft regex by pattern": set_option(rank_pattern={"(.*)*x": 4}),
    "peft regex of layers": set_option(layers_to_transform=[0], layers_pattern="(a+)+"),
    "peft option unknown": set_option(magic=1),
    "peft option nested": set_option(target_modules=[[[[[[[[["qkv"]]]]]]]]]),
    "integers": set_dtype(torch.int32),
    "unsigned integers": set_dtype(torch.uint32),
    "bools": set_dtype(torch.bool),
    "complex": set_dtype(torch.complex64),
    "NaN": fill(math.nan),
    "infinite": fill(math.inf),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_hostile_file_is_refused_soon_and_cheaply(file: Path, change):
    forge(file, change)
    sam = small()
    before = snapshot(sam)
    _forget_peak()
    memory, start = _peak_megabytes(), time.process_time()
    with pytest.raises(ak.AdapterFileError) as caught:
        ak.load_adapter(sam, file)
    assert time.process_time() - start < SECONDS
    assert _peak_megabytes() - memory < MEGABYTES
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 2_000
    assert snapshot(sam) == before


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_megabytes() -> float:
    return peak_bytes() / 2**20


@pytest.mark.parametrize("what", ["a field of a later version", "an option of a later version"])
def test_what_a_later_version_wrote_says_upgrade(file: Path, what: str):
    forge(file, HEADERS[what])
    with pytest.raises(ak.AdapterFileError, match="upgrade adapterkit"):
        ak.inspect_adapter(file)


def test_a_header_that_claims_gigabytes_is_refused(file: Path):
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(ak.AdapterFileError, match="its header would have"):
        ak.inspect_adapter(file)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ("qkv", 1),
        (r"blocks\.\d+\.attn\.qkv", 50),
        (r".*blocks\.(0|1|2)\.(attn\.qkv|mlp\.lin1)", 300),
        (r"(?:image_encoder\.)?blocks\.[0-9]{1,2}\.attn\.qkv", 100),
        (r"a*?b+?", 2500),
    ],
)
def test_usual_expressions_are_bounded(pattern: str, most: float):
    assert 1 <= ways_to_match(pattern) <= most


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|b)*", r"(a)\1", "(?=a)", "(?P<n>a)", ")"])
def test_expressions_without_a_bound_are_known(pattern: str):
    assert ways_to_match(pattern) == math.inf


def test_flipping_any_bit_of_a_tensor_is_found_and_the_tensor_named(file: Path, content: bytes):
    start = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(0)
    sam = small()
    for _ in range(30):
        damaged = bytearray(content)
        damaged[draw.randrange(start, len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ak.AdapterFileError, match=r"a\.safetensors is damaged: its tensor \w+"):
            ak.load_adapter(sam, file)


def fuzz(content: bytes, path: Path, count: int) -> Counter[str]:
    """What becomes of `count` damaged copies of a file, each damaged in one of five ways."""
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    sam = small()
    before = snapshot(sam)
    outcomes: Counter[str] = Counter()
    for i in range(count):
        damaged = bytearray(content)
        at, in_header = draw.randrange(len(content)), draw.randrange(8, header)
        way = ("bit", "byte of the header", "length", "cut", "swap")[i % 5]
        if way == "bit":
            damaged[at] ^= 1 << draw.randrange(8)
        elif way == "byte of the header":
            damaged[in_header] = draw.choice(b'0123456789-e."[]{}:,atn')
        elif way == "length":
            damaged[draw.randrange(8)] ^= 1 << draw.randrange(8)
        elif way == "cut":
            del damaged[at : at + draw.choice((1, 7, 100, len(content)))]
        else:
            other = draw.randrange(len(content) - 64)
            at = min(at, len(content) - 64)
            piece = damaged[at : at + 64]
            damaged[at : at + 64], damaged[other : other + 64] = damaged[other : other + 64], piece
        if damaged == content:
            outcomes[f"{way}: unchanged"] += 1
            continue
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        try:
            ak.load_adapter(sam, path)
        except ak.AdapterFileError as error:
            named = "" if str(path) in str(error) else " without its name"
            outcomes[f"{way}: refused{named}"] += 1
        else:
            ak.eject(sam)
            outcomes[f"{way}: loaded"] += 1
    assert snapshot(sam) == before
    return outcomes


def test_a_sample_of_damaged_files_is_refused(content: bytes, tmp_path: Path):
    outcomes = fuzz(content, tmp_path / "a.safetensors", 100)
    assert {each.partition(": ")[2] for each in outcomes} <= {"refused", "unchanged"}


@pytest.mark.slow
def test_a_thousand_damaged_files_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outcomes = fuzz(content, tmp_path / "a.safetensors", 1000)
    with capsys.disabled():
        print(f"\n{outcomes.total()} damaged adapter files: {dict(outcomes)}")
    assert {each.partition(": ")[2] for each in outcomes} <= {"refused", "unchanged"}


def vit(seed: int, classes: int = 3) -> nn.Module:
    """A timm ViT of fixed weights with a fresh head."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, img_size=32, depth=2)
    torch.manual_seed(seed)
    nn.init.normal_(model.get_parameter("head.weight"))
    nn.init.normal_(model.get_parameter("head.bias"))
    return model.eval()


def test_what_is_replaced_as_a_whole_is_no_part_of_the_base(tmp_path: Path):
    model = ak.inject(vit(1), [LoRA(2), Train("head")])
    ak.save_adapter(model, tmp_path / "a.safetensors")
    loaded = ak.load_adapter(vit(2), tmp_path / "a.safetensors")
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(image), model(image))


def test_a_head_that_the_adapter_lacks_is_part_of_the_base(tmp_path: Path):
    ak.save_adapter(ak.inject(vit(1), [LoRA(2)]), tmp_path / "a.safetensors")
    with pytest.raises(ak.AdapterFileError, match=r"another base: head\.\w+ is"):
        ak.load_adapter(vit(2), tmp_path / "a.safetensors")


def test_a_parameter_trained_outside_the_adapter_is_refused(tmp_path: Path):
    model = ak.inject(vit(1), [LoRA(2)])
    model.get_submodule("head").requires_grad_(True)
    with pytest.raises(ValueError, match=r'head\.weight is trained .* Train\("head"\) saves it'):
        ak.save_adapter(model, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_base_cast_to_another_precision_is_the_same_base(file: Path, dtype: torch.dtype):
    ak.load_adapter(small().to(dtype), file)
    cast = ak.inject(small().to(dtype), [FeatureAdapter()])
    ak.save_adapter(cast, file)
    ak.load_adapter(small(), file)


@pytest.mark.parametrize("name", ["class", "two words", "1", "names"])
def test_a_name_that_no_attribute_can_have_is_refused(file: Path, name: str):
    with pytest.raises(ValueError, match="a Python identifier that is no keyword"):
        ak.load_adapter(small(), file, name=name)
