"""peft's methods are parts like any other: attached, saved, loaded, stacked, merged and ejected."""

import copy
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import FeatureAdapter, LoRA, Peft, Train
from adapterkit.parts.peft import METHODS, REFUSED
from tests.models import ECHO, snapshot, train_one_step
from tests.processes import Process, run

peft = pytest.importorskip("peft")

CONFIG = replace(ECHO, image_size=64)
QKV = {"target_modules": ["qkv"]}
BOTH = {"target_modules": ["qkv", "lin2"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "AdaLoraConfig": {**BOTH, "total_step": 10},
    "BOFTConfig": {**BOTH, "boft_block_size": 4},
    "C3AConfig": {**BOTH, "block_size": 8},
    "DeloraConfig": BOTH,
    "FourierFTConfig": {**BOTH, "n_frequency": 50},
    "GraloraConfig": {**BOTH, "r": 4},
    "HRAConfig": BOTH,
    "HiraConfig": {**BOTH, "r": 4},
    "IA3Config": {**BOTH, "feedforward_modules": ["lin2"]},
    "LNTuningConfig": {"target_modules": ["norm1", "norm2"]},
    "LoHaConfig": {**BOTH, "r": 4},
    "LoKrConfig": {**BOTH, "r": 4},
    "LoraConfig": {**BOTH, "r": 4},
    "MissConfig": {**BOTH, "r": 4},
    "OFTConfig": {**BOTH, "oft_block_size": 4},
    "RandLoraConfig": {**BOTH, "r": 4},
    "RoadConfig": {**BOTH, "group_size": 16},
    "ShiraConfig": {**BOTH, "r": 2},
    "VBLoRAConfig": {**BOTH, "vector_length": 16, "num_vectors": 8},
    "VeraConfig": {**BOTH, "r": 8},
    "WaveFTConfig": {**BOTH, "n_frequency": 50},
}
VARIANTS: dict[str, Peft] = {name: Peft(name, options) for name, options in OPTIONS.items()} | {
    "DoRA": Peft("LoraConfig", {**BOTH, "use_dora": True}),
    "rsLoRA": Peft("LoraConfig", {**BOTH, "use_rslora": True, "init_lora_weights": "gaussian"}),
    "LoRA by block": Peft(
        "LoraConfig", {"target_modules": r"blocks\.[13]\.attn\.qkv", "rank_pattern": {"3.*": 2}}
    ),
    "LoRA with dropout": Peft("LoraConfig", {**QKV, "lora_dropout": 0.5}),
    "LoRA on the patches": Peft("LoraConfig", {"target_modules": ["patch_embed.proj"]}),
    "LoRA on all linear layers": Peft("LoraConfig", {"target_modules": "all-linear"}),
    "LoHa on convolutions": Peft("LoHaConfig", {"target_modules": ["neck.2", "qkv"]}),
}


@pytest.fixture(autouse=True)
def _quiet():
    # Some of peft's methods say what they will do with a layer, and that there is no CUDA.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def small() -> Sam:
    return ak.build_sam(CONFIG, seed=0)


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def encode(sam: Sam, image: Tensor) -> Tensor:
    with torch.no_grad():
        return sam.image_encoder(image)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, **QKV, **options})


DECODER = "mask_decoder.transformer.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        (
            {"target_modules": ["qkv"], "layers_to_transform": [0]},
            {"image_encoder.blocks.0.attn.qkv": 4},
        ),
        (
            {"target_modules": r"image_encoder\.blocks\.[12]\.attn\.qkv"},
            {f"image_encoder.blocks.{i}.attn.qkv": 4 for i in (1, 2)},
        ),
        (
            {"target_modules": r"blocks\.3\.attn\.qkv"},  # as within the encoder
            {"image_encoder.blocks.3.attn.qkv": 4},
        ),
        (
            {
                "target_modules": ["0.attn.qkv", "1.attn.qkv"],
                "rank_pattern": {"image_encoder.blocks.0.attn.qkv": 2},
            },
            {"image_encoder.blocks.0.attn.qkv": 2, "image_encoder.blocks.1.attn.qkv": 4},
        ),
        ({"target_modules": [DECODER]}, {DECODER: 4}),
        ({"target_modules": r"mask_decoder.*layers\.0\.self_attn\.q_proj"}, {DECODER: 4}),
    ],
)
def test_names_and_patterns_are_those_of_the_user_s_model(
    small: Sam, options: dict[str, Any], adapted: dict[str, int], tmp_path: Path
):
    ak.inject(small, [peft.LoraConfig(r=4, **options)])
    found = {
        name: small.get_submodule(name)
        for name, module in small.named_modules()
        if "forward" in vars(module)
    }
    ranks = {
        name: vars(each)["forward"].__self__.layer.r["default"] for name, each in found.items()
    }
    assert ranks == adapted
    ak.save_adapter(small, tmp_path / "a.safetensors")
    other = ak.load_adapter(ak.build_sam(CONFIG, seed=0), tmp_path / "a.safetensors")
    assert [name for name, module in other.named_modules() if "forward" in vars(module)] == [*found]


def test_a_file_of_a_sam_s_encoder_loads_onto_the_encoder_alone(small: Sam, tmp_path: Path):
    ak.inject(small, [lora(target_modules=r"image_encoder\.blocks\.0\.attn\.qkv")])
    ak.save_adapter(small, tmp_path / "a.safetensors")
    encoder = ak.build_sam(CONFIG, seed=0).image_encoder
    ak.load_adapter(encoder, tmp_path / "a.safetensors")
    assert "forward" in vars(encoder.get_submodule("blocks.0.attn.qkv"))


@pytest.mark.parametrize("config", [lora(), peft.IA3Config(**QKV, feedforward_modules=[])])
def test_a_model_without_values_takes_them(config: Any):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64)
    ak.inject(model, [config])
    assert all(each.is_meta for each in model.parameters())
    assert model(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_every_method_is_tried():
    assert set(OPTIONS) == set(METHODS)


@pytest.mark.parametrize("part", VARIANTS.values(), ids=VARIANTS)
def test_a_method_trains_saves_loads_and_ejects(
    small: Sam, picture: Tensor, part: Peft, tmp_path: Path
):
    config = getattr(peft, part.config)(**part.options)
    before, plain, keys = snapshot(small), encode(small, picture), list(small.state_dict())
    ak.inject(small, [config])
    assert [key for key in small.state_dict() if "adapterkit" not in key] == keys
    for name, parameter in small.named_parameters():
        assert "adapterkit" in name or not parameter.requires_grad

    small.train()
    start = encode(small, picture)
    train_one_step(small.image_encoder, picture)
    for name, parameter in small.named_parameters():
        assert "adapterkit" in name or parameter.grad is None, name
    small.eval()
    adapted = encode(small, picture)
    assert not torch.equal(adapted, start)
    with ak.disabled(small):
        assert torch.equal(encode(small, picture), plain)
    assert torch.equal(encode(small, picture), adapted)

    ak.save_adapter(small, tmp_path / "a.safetensors")
    fresh = ak.build_sam(CONFIG, seed=0).eval()
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    ak.load_adapter(fresh, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(encode(fresh, picture), adapted)
    [loaded] = ak.inspect_adapter(tmp_path / "a.safetensors").parts
    assert loaded == Peft.of(config)
    table = ak.summary(fresh)
    assert part.config in str(table)
    assert table.bytes == sum(
        each.nbytes for each in load_file(tmp_path / "a.safetensors").values()
    )
    trained = sum(each.numel() for each in fresh.parameters() if each.requires_grad)
    assert trained == table.trained_parameters
    assert trained == sum(each.numel() for each in small.parameters() if each.requires_grad)

    assert snapshot(ak.eject(small)) == before


@pytest.mark.parametrize("part", VARIANTS.values(), ids=VARIANTS)
def test_merging_a_method_computes_the_same(small: Sam, picture: Tensor, part: Peft):
    ak.inject(small, [part, FeatureAdapter(zero_init=False)])
    train_one_step(small.image_encoder, picture)
    small.eval()
    adapted = encode(small, picture)
    ak.merge(small)
    torch.testing.assert_close(encode(small, picture), adapted, rtol=1e-3, atol=1e-4)
    assert [row.part for row in ak.summary(small).parts] == ["FeatureAdapter(zero_init=False)"]
    assert list(ak.eject(small).state_dict()) == list(ak.build_sam(CONFIG).state_dict())


def test_what_cannot_be_merged_leaves_the_model_as_it_was(small: Sam, picture: Tensor):
    ak.inject(small, [lora()])
    with torch.no_grad():
        small.get_parameter("image_encoder.blocks.3.attn.qkv.weight")[0, 0] = torch.inf
    before = snapshot(small)
    with pytest.raises(ValueError, match="peft cannot merge a Linear layer: NaNs detected"):
        ak.merge(small)
    assert snapshot(small) == before


def test_a_file_loads_in_a_fresh_process(small: Sam, picture: Tensor, tmp_path: Path):
    ak.inject(small, [peft.VeraConfig(r=8, **BOTH), FeatureAdapter()])
    train_one_step(small.image_encoder, picture)
    ak.save_adapter(small, tmp_path / "a.safetensors")
    save_file({"image": picture, "expected": encode(small.eval(), picture)}, tmp_path / "io")
    script = """
        import sys, torch
        from safetensors.torch import load_file
        import adapterkit as ak

        folder, config = sys.argv[1], ak.SamConfig(
            width=32, depth=4, num_heads=2, global_blocks=(1, 3), image_size=64, prompt_width=32,
            decoder_mlp_width=64,
        )
        assert ak.inspect_adapter(folder + "/a.safetensors").parts[0].config == "VeraConfig"
        assert "peft" not in sys.modules, "reading a header imports peft"
        sam = ak.load_adapter(ak.build_sam(config, seed=0).eval(), folder + "/a.safetensors")
        io = load_file(folder + "/io")
        with torch.no_grad():
            assert torch.equal(sam.image_encoder(io["image"]), io["expected"])
        """
    run(Process(script, tmp_path))


def test_what_layers_share_is_saved_once(small: Sam, tmp_path: Path):
    ak.inject(small, [peft.VeraConfig(r=8, **BOTH)])
    ak.save_adapter(small, tmp_path / "a.safetensors")
    keys = load_file(tmp_path / "a.safetensors")
    assert sum("vera_A" in key for key in keys) == 1
    assert sum("vera_lambda_b" in key for key in keys) == 8 + 2  # of blocks, and of the decoder
    replica = copy.deepcopy(small)
    first, *others = {
        id(layer.vera_A) for layer in replica.modules() if hasattr(layer, "vera_lambda_b")
    }
    assert first not in {id(module) for module in small.modules()}
    assert not others


def test_it_stacks_with_our_parts_and_switches(small: Sam, picture: Tensor):
    before, plain = snapshot(small), encode(small, picture)
    ak.inject(small, [lora(), FeatureAdapter(zero_init=False)], name="both")
    train_one_step(small.image_encoder, picture)
    both = encode(small, picture)
    ak.inject(small, [peft.IA3Config(target_modules=["lin1"], feedforward_modules=[])], name="ia3")
    train_one_step(small.image_encoder, picture)
    ia3 = encode(small, picture)
    assert not torch.equal(encode(ak.activate(small, "both", "ia3"), picture), both)
    assert torch.equal(encode(ak.activate(small, "both"), picture), both)
    assert torch.equal(encode(ak.activate(small, "ia3"), picture), ia3)
    assert torch.equal(encode(ak.activate(small), picture), plain)
    ak.activate(small, "both")
    assert torch.equal(encode(ak.remove(small, "ia3"), picture), both)
    assert snapshot(ak.remove(small, "both")) == before


def test_one_module_takes_one_method(small: Sam):
    before = snapshot(small)
    with pytest.raises(ValueError, match=r"two parts add a module 'peft\.blocks\.0\.attn\.qkv'"):
        ak.inject(small, [lora(), peft.LoHaConfig(**QKV)])
    for parts in ([lora(), LoRA()], [LoRA(), lora()], [Train("image_encoder"), lora()]):
        with pytest.raises(ValueError, match="adapts a Linear with peft, and another"):
            ak.inject(small, parts)
    assert snapshot(small) == before

    ak.inject(small, [lora()], name="a")
    ak.inject(small, [lora()], name="b")
    ak.inject(small, [LoRA()], name="c")
    before = snapshot(small)
    with pytest.raises(ValueError, match="cannot be stacked: 2 of them set the Linear's forward"):
        ak.activate(small, "a", "b")
    with pytest.raises(ValueError, match="cannot be stacked: one adapts a Linear with peft"):
        ak.activate(small, "a", "c")
    assert snapshot(small) == before


def test_copies_and_pickles_are_independent(small: Sam, picture: Tensor):
    ak.inject(small, [lora(use_dora=True)])
    train_one_step(small.image_encoder, picture)
    adapted = encode(small, picture)
    replicas = [copy.deepcopy(small), pickle.loads(pickle.dumps(small))]
    train_one_step(small.image_encoder, picture)
    assert not torch.equal(encode(small, picture), adapted)
    ak.eject(small)
    for replica in replicas:
        assert torch.equal(encode(replica, picture), adapted)
        train_one_step(replica.image_encoder, picture)
        assert not torch.equal(encode(replica, picture), adapted)
        assert snapshot(ak.eject(replica)) == snapshot(small)


def test_a_base_checkpoint_loads_strictly_and_its_dtype_follows(small: Sam, picture: Tensor):
    ak.inject(small, [lora(), peft.BOFTConfig(target_modules=["lin1"], boft_block_size=4)])
    other = ak.build_sam(CONFIG, seed=1)
    small.load_state_dict(other.state_dict(), strict=True)
    # Both methods start as the identity, so that this is the other base's output.
    torch.testing.assert_close(encode(small, picture), encode(other, picture))
    small.bfloat16()
    assert encode(small, picture.bfloat16()).dtype == torch.bfloat16


def test_hooks_of_the_user_on_a_target_still_run_once(small: Sam, picture: Tensor):
    qkv = small.get_submodule("image_encoder.blocks.0.attn.qkv")
    calls: list[int] = []
    qkv.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    ak.inject(small, [lora()])
    assert calls == []
    encode(small, picture)
    assert len(calls) == 1


def test_a_replaced_forward_of_the_user_stays(small: Sam, picture: Tensor):
    qkv: Any = small.get_submodule("image_encoder.blocks.0.attn.qkv")
    own = qkv.forward
    qkv.forward = lambda x: 2 * own(x)
    before, plain, replaced = snapshot(small), encode(small, picture), qkv.forward
    ak.inject(small, [lora()])
    assert torch.equal(encode(small, picture), plain)
    assert snapshot(ak.eject(small)) == before
    assert qkv.forward is replaced


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: lora(target_modules=["c_attn"]), "linear layers named 0, 1, 2, k_proj, lin1"),
        (
            lambda: lora(target_modules=["mask_decoder.iou_prediction_head"]),
            r"target mask_decoder\.iou_prediction_head is a MLP",
        ),
        (
            lambda: lora(target_modules=["mlp"]),
            r"target image_encoder\S+\.0\.mlp is a MLPB",
        ),
        (
            lambda: lora(target_modules=["act"]),
            r"image_encoder\S+\.0\.mlp\.act is a GELU",
        ),
        (lambda: peft.LoraConfig(), "give target_modules"),
        (lambda: lora(task_type="SEQ_CLS"), "task_type='SEQ_CLS'.*wraps the whole model"),
        (lambda: lora(modules_to_save=["neck"]), "adapterkit.parts.Train"),
        (lambda: lora(bias="all"), "bias='all'.*adapterkit.parts.Train"),
        (lambda: lora(init_lora_weights="pissa"), "changing the base's weights"),
        (lambda: lora(init_lora_weights="olora"), "measuring data"),
        (lambda: lora(lora_dropout=torch.zeros(1) + 0.5), "holds a Tensor"),
        (lambda: lora(runtime_config=peft.LoraRuntimeConfig(True)), "holds a LoraRuntimeConfig"),
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=4), "expected one of AdaLoraConfig"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=4), "expected one of AdaLoraConfig"),
        (lambda: peft.OSFConfig(**QKV), "expected one of AdaLoraConfig"),
        (lambda: peft.BOFTConfig(**QKV, boft_block_size=5), "peft cannot attach it: Val.*5"),
        (lambda: peft.C3AConfig(target_modules=["neck.0"], block_size=8), "peft cannot attach it"),
        (lambda: Peft("LoraConfig", {**QKV, "rank": 4}), "peft refuses it: .*'rank'"),
        (lambda: Peft("AdaLoraConfig", QKV), "peft refuses it: .*total_step"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(small: Sam, config: Any, message: str):
    before = snapshot(small)
    with pytest.raises(ValueError, match=message):
        ak.inject(small, [FeatureAdapter(), config()])
    assert snapshot(small) == before


def test_a_method_that_changes_the_base_is_refused(small: Sam, monkeypatch: pytest.MonkeyPatch):
    # PiSSA does, and slips through here as an initialisation to come might.
    monkeypatch.setattr("adapterkit.parts.peft._INITIALISATIONS", (True, "pissa"))
    before = snapshot(small)
    with pytest.raises(
        ValueError, match=r"changes the base's own image_encoder\.blocks\.0\.attn\.qkv\.weight"
    ):
        ak.inject(small, [lora(init_lora_weights="pissa")])
    assert snapshot(small) == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("PeftModel", {}, "expected one of"),
        ("os.system", {}, "expected one of"),
        ("LoraConfig", 5, "Mapping"),
        ("LoraConfig", {**QKV, "megatron_config": {}, "megatron_core": "os"}, "Megatron"),
        ("LoraConfig", {**QKV, "modules_to_save": ["neck"]}, "modules_to_save"),
    ],
)
def test_a_file_can_name_known_configurations_only(
    small: Sam, tmp_path: Path, name: str, options: Any, message: str
):
    path = tmp_path / "a.safetensors"
    ak.inject(small, [lora()])
    ak.save_adapter(small, path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()["adapterkit"]
    forged = json.loads(header)
    forged["parts"] = [{"part": "Peft", "config": name, "options": options}]
    save_file(load_file(path), path, {"adapterkit": json.dumps(forged)})
    with pytest.raises(ak.AdapterFileError, match=message):
        ak.load_adapter(ak.build_sam(CONFIG, seed=0), path)


def test_every_option_is_refused_with_what_to_do():
    for option in REFUSED:
        with pytest.raises(ValueError, match=option):
            Peft("LoraConfig", {**QKV, option: "something"})


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch16_dinov3", "samvit"])
def test_it_attaches_to_encoders_of_timm(name: str, picture: Tensor):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 2, "img_size": 64}
    if name == "samvit":
        sizes |= {"global_attn_indexes": (1,), "neck_chans": 16}
        name = "samvit_base_patch16"
    model = timm.create_model(name, **sizes).eval()
    before, plain = snapshot(model), model(picture)
    parts = [lora(layers_to_transform=[0, 2], layers_pattern="blocks"), FeatureAdapter()]
    ak.inject(model, parts)
    assert torch.equal(model(picture), plain)
    container = ak.adapters_of(model)
    assert container is not None
    blocks = container["default"].added.get_submodule("peft.blocks")
    assert [name for name, _ in blocks.named_children()] == ["0", "2"]
    train_one_step(model, picture)
    assert not torch.equal(model(picture), plain)
    assert snapshot(ak.eject(model)) == before


def test_it_attaches_to_the_sam_of_transformers(picture: Tensor):
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
    vision |= {"image_size": 64, "patch_size": 16, "window_size": 3, "output_channels": 32}
    vision |= {"global_attn_indexes": [1], "num_pos_feats": 16}
    model = transformers.SamVisionModel(transformers.SamVisionConfig(**vision)).eval()
    before, plain = snapshot(model), model(picture).last_hidden_state
    ak.inject(model, [lora(init_lora_weights=False)])
    assert not torch.equal(model(picture).last_hidden_state, plain)
    # The probe's forward is not the first of this model's: it still collects hidden states.
    assert len(model(picture, output_hidden_states=True).hidden_states) == 3
    ak.eject(model)
    assert torch.equal(model(picture).last_hidden_state, plain)
    assert {*before} <= {*snapshot(model)}


def test_compile_has_no_graph_break():
    script = """
        import torch, peft
        import adapterkit as ak

        config = ak.SamConfig(
            width=32, depth=2, num_heads=2, global_blocks=(1,), image_size=64, prompt_width=32,
            decoder_mlp_width=64,
        )
        torch.manual_seed(0)
        sam = ak.build_sam(config, seed=0)
        ak.inject(sam, [peft.LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False)])
        encoder, image = sam.image_encoder, torch.rand(2, 3, 64, 64)
        trained = [each for each in sam.parameters() if each.requires_grad]
        expected = encoder(image)
        gradients = torch.autograd.grad(expected.square().mean(), trained)
        output = torch.compile(encoder, fullgraph=True, backend="aot_eager")(image)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
        for mine, theirs in zip(torch.autograd.grad(output.square().mean(), trained), gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        exported = torch.export.export(encoder, (image,)).module()
        torch.testing.assert_close(exported(image), expected, rtol=0, atol=1e-4)
        """
    run(Process(script))
