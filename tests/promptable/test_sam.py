"""SAM checkpoints of every size load by their shapes, and nothing else loads."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit.data.synthetic.scenes import draw_scene
from adapterkit.promptable.stock_sam import MINI, SamConfig, resized_sam, save_sam
from benchmarks import held_out_scenes
from tests.models import ECHO, TINY


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"model": d}, lambda d: {"state_dict": d}])
def test_a_checkpoint_loads_by_its_shapes(sam: Sam, tmp_path: Path, wrap):
    torch.save(wrap(sam.state_dict()), tmp_path / "sam.pth")
    loaded = ak.load_sam(tmp_path / "sam.pth", decoder_num_heads=TINY.decoder_num_heads)
    state = sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize(
    ("name", "width", "global_blocks"),
    [
        ("vit_b", 768, (2, 5, 8, 11)),
        ("vit_l", 1024, (5, 11, 17, 23)),
        ("vit_h", 1280, (7, 15, 23, 31)),
    ],
)
def test_the_released_sizes_are_recognised(name: str, width: int, global_blocks: tuple[int, ...]):
    with torch.device("meta"):
        stock = sam_model_registry[name]()
    config = SamConfig.of(stock.state_dict())
    assert (config.width, config.global_blocks) == (width, global_blocks)
    assert (config.image_size, config.window_size, config.patch_size) == (1024, 14, 16)
    with torch.device("meta"):
        built = ak.build_sam(config)
    shapes = {key: value.shape for key, value in stock.state_dict().items()}
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes
    for mine, theirs in zip(built.modules(), stock.modules(), strict=True):
        assert type(mine) is type(theirs)
        for attribute in ("num_heads", "window_size", "img_size", "eps", "mask_input_size"):
            assert getattr(mine, attribute, None) == getattr(theirs, attribute, None)


def test_the_defaults_are_vit_b_s():
    with torch.device("meta"):
        stock = sam_model_registry["vit_b"]()
    assert SamConfig.of(stock.state_dict()) == SamConfig()


@pytest.fixture(scope="module")
def mini() -> Sam:
    return ak.mini_sam()


def test_the_small_sam_is_small_and_stock(mini: Sam):
    assert SamConfig.of(mini.state_dict()) == MINI
    assert sum(each.numel() for each in mini.parameters()) < 5_000_000
    file = Path(ak.__file__).parent / "weights" / "mini_sam.safetensors"
    assert file.stat().st_size < 12e6
    assert not mini.training
    assert {type(each).__module__.split(".")[0] for each in mini.modules()} == {
        "segment_anything", "torch",
    }  # fmt: skip


def test_the_small_sam_answers_prompts_and_knows_how_well(mini: Sam):
    segmenter, answers = ak.Segmenter(mini), []
    for number in range(6):
        scene = draw_scene(held_out_scenes.held_out(number), 512)
        answers.append(held_out_scenes.ask(segmenter, scene.image, scene.masks[:4]))
    box, oracle = (
        torch.cat([getattr(each, name) for each in answers]) for name in ("box", "oracle")
    )
    assert box.mean() > 0.5
    assert oracle.mean() > 0.65
    predicted, true = (torch.cat([getattr(a, n) for a in answers]) for n in ("predicted", "true"))
    assert torch.corrcoef(torch.stack([predicted.flatten(), true.flatten()]))[0, 1] > 0.6


@pytest.mark.parametrize("method", ["samus", "samed", "msa", "medsam"])
def test_all_parts_of_every_method_fit_the_small_sam(method: str):
    sam = ak.inject(ak.mini_sam(), method, image_size=128)
    with torch.no_grad():
        embedding = sam.image_encoder(torch.rand(1, 3, 128, 128))
    side = 16 if method == "samus" else 8
    assert embedding.shape == (1, MINI.prompt_width, side, side)
    if method == "samus":
        found = ak.adapters_of(sam)
        assert found is not None
        # Its position embedding is pooled from 32x32 to 16x16.
        assert found["default"].get_parameter("added.position_adapter.stages.0.1.weight").ndim == 4


class Command:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning:torch")
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path):
    torch.save({"image_encoder.pos_embed": Command(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint of tensors alone"):
            ak.load_sam(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"hello, I am a text file", "not a readable checkpoint"),
        ({"a": torch.zeros(1)}, r"not a checkpoint of a segment_anything Sam .*\['a'\]"),
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"a": 1}, "'a' is a int, not a tensor"),
    ],
)
def test_what_is_no_sam_is_refused_by_name(tmp_path: Path, content, message: str):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        ak.load_sam(path)
    assert str(path) in str(caught.value)


def test_a_truncated_or_incomplete_checkpoint_is_refused(sam: Sam, tmp_path: Path):
    path = tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    content = path.read_bytes()
    for cut in (10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=str(path)):
            ak.load_sam(path)
    state = sam.state_dict()
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"mask_decoder\.iou_token\.weight"):
        ak.load_sam(path, decoder_num_heads=4)


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pth"):
        ak.load_sam(tmp_path / "none.pth")


def test_resizing_to_the_same_size_copies(sam: Sam):
    copy, state = resized_sam(sam, TINY.image_size).state_dict(), sam.state_dict()
    for key, value in copy.items():
        assert torch.equal(value, state[key]), key
        assert value.data_ptr() != state[key].data_ptr(), key


def test_a_resized_sam_takes_images_of_its_size():
    sam, size = ak.build_sam(ECHO, seed=0), 2 * ECHO.image_size
    positions = sam.image_encoder.get_parameter("pos_embed")
    positions.data.fill_(0.5)
    large = resized_sam(sam, size)
    assert SamConfig.of(large.state_dict()) == replace(ECHO, image_size=size)
    # A constant stays one, and what does not depend on the grid stays as it was.
    resized = large.image_encoder.get_parameter("pos_embed")
    torch.testing.assert_close(resized, torch.full_like(resized, 0.5))
    neck = "image_encoder.neck.0.weight"
    assert torch.equal(large.get_parameter(neck), sam.get_parameter(neck))
    with torch.no_grad():
        masks = ak.Segmenter(large)(
            torch.zeros(1, 3, size, size),
            ak.Prompts(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1).long()),
        )
    assert masks.low_res_logits.shape[-1] == size // ECHO.patch_size * 4


def test_saved_weights_load(sam: Sam, tmp_path: Path):
    save_sam(sam, tmp_path / "sam.safetensors", torch.float16)
    loaded = ak.load_sam(tmp_path / "sam.safetensors", TINY.decoder_num_heads)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, sam.state_dict()[key].half().float()), key


def test_windows_stay_windows_where_the_grid_is_no_larger():
    config = replace(ECHO, image_size=64, window_size=4)
    resized = resized_sam(ak.build_sam(config, seed=0), 128)
    assert [block.window_size for block in resized.image_encoder.blocks] == [4, 0, 4, 0]
    assert SamConfig.of(resized.state_dict()) == replace(config, image_size=128)
