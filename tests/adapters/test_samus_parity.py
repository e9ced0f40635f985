"""SAMUS as a list of parts computes what the published implementation computes."""

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.methods.samus import checkpoint_names
from adapterkit.promptable.protocol import Embedding
from adapterkit.training.losses import dice_bce_loss

pytestmark = pytest.mark.usefixtures("small_layers_are_fast")

Reference = dict[str, Tensor]


def published(reference: Reference) -> Reference:
    prefix = "official/"
    return {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}


@pytest.fixture
def base(sam: Sam, samus_reference: Reference) -> Sam:
    """The SAM that the reference was made from. Its global relative-position tables, which SAMUS
    resized and trained, are not in the reference and stay random."""
    weights = published(samus_reference)
    own = sam.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    assert len(own) - len(fitting) == 4
    sam.load_state_dict({**own, **fitting})
    return sam


@pytest.fixture(params=["stock", "fast"])
def samus(base: Sam, samus_reference: Reference, request: pytest.FixtureRequest) -> Sam:
    if request.param == "fast":
        ak.fast(base)
    return ak.load_published(base, published(samus_reference), method="samus")


def low_res_logits(sam: Sam, embedding: Tensor, reference: Reference) -> Tensor:
    masks = ak.Segmenter(sam).decode(
        Embedding(embedding, 256),
        ak.Prompts(reference["in/points"][:, None], reference["in/labels"][:, None].long()),
    )
    return masks.low_res_logits


def test_outputs_are_the_published_ones(samus: Sam, samus_reference: Reference):
    embedding = samus.image_encoder(samus_reference["in/image"])
    logits = low_res_logits(samus, embedding, samus_reference)
    torch.testing.assert_close(embedding, samus_reference["out/image_embedding"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, samus_reference["out/low_res_logits"], rtol=0, atol=1e-5)
    loss = dice_bce_loss(logits, samus_reference["in/target"])
    torch.testing.assert_close(loss, samus_reference["out/loss"][0], rtol=0, atol=1e-5)


def test_gradients_are_the_published_ones(samus: Sam, base: Sam, samus_reference: Reference):
    embedding = samus.image_encoder(samus_reference["in/image"])
    logits = low_res_logits(samus, embedding, samus_reference)
    dice_bce_loss(logits, samus_reference["in/target"]).backward()

    adapters = ak.adapters_of(samus)
    assert adapters is not None
    ours = dict(adapters["default"].added.named_parameters())
    names = checkpoint_names(ak.view(samus), published(samus_reference))
    expected = {k.removeprefix("grad/"): v for k, v in samus_reference.items() if "grad/" in k}
    assert set(names) == set(expected)
    assert set(names.values()) == set(ours)
    for published_name, name in names.items():
        gradient = ours[name].grad
        assert gradient is not None
        difference = (gradient - expected[published_name]).norm()
        if name.startswith("cnn_branch.attention.") and name.endswith(".k.bias"):
            # A bias of the keys shifts all of a query's logits alike, which softmax ignores: the
            # true gradient is zero, and both sides are rounding noise.
            assert difference < 1e-10
        else:
            assert difference < 1e-4 * expected[published_name].norm(), published_name


def test_it_trains_as_many_parameters_as_published(samus: Sam):
    assert ak.summary(samus).trained_parameters == 572_948


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_published_checkpoint_loads_from_a_file(
    base: Sam, samus_reference: Reference, tmp_path, prefix: str, suffix: str
):
    from safetensors.torch import save_file

    weights = {prefix + key: value for key, value in published(samus_reference).items()}
    path = tmp_path / f"samus{suffix}"
    torch.save(weights, path) if suffix == ".pth" else save_file(weights, path)
    ak.load_published(base, path, method="samus")
    with torch.no_grad():
        embedding = base.image_encoder(samus_reference["in/image"])
    torch.testing.assert_close(embedding, samus_reference["out/image_embedding"], rtol=0, atol=1e-5)


def test_another_base_is_refused_unless_it_is_to_be_loaded(sam: Sam, samus_reference: Reference):
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    weights = published(samus_reference)
    with pytest.raises(ValueError, match=r"another base: .* differs .* load_base=True"):
        ak.load_published(sam, weights, method="samus")
    assert ak.adapters_of(sam) is None
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())

    ak.load_published(sam, weights, method="samus", load_base=True)
    with torch.no_grad():
        embedding = sam.image_encoder(samus_reference["in/image"])
    torch.testing.assert_close(embedding, samus_reference["out/image_embedding"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("image_encoder.input_Adapter.D_fc1.weight"), "tokens.down.weight"),
        (lambda w: w.update({"image_encoder.stray": torch.zeros(1)}), "image_encoder.stray"),
        (lambda w: [w.pop(k) for k in list(w) if "rel_pos" in k], "rel_pos_h"),
        (lambda w: w.update({"epoch": 3}), "'epoch' is a int"),
    ],
)
def test_an_unfit_checkpoint_is_refused_by_name(
    base: Sam, samus_reference: Reference, change, message: str
):
    weights = published(samus_reference)
    change(weights)
    with pytest.raises(ValueError, match=message):
        ak.load_published(base, weights, method="samus")
    assert ak.adapters_of(base) is None


def test_an_unknown_method_is_refused(base: Sam):
    with pytest.raises(ValueError, match="method 'sammy': expected one of samus, autosamus"):
        ak.load_published(base, {"a": torch.zeros(1)}, method="sammy")
