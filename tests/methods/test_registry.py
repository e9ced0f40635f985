"""Methods by name: ours, and one that a user defines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import adapterkit as ak
from adapterkit.attach.attachment import Attachment, Part
from adapterkit.methods import find_method, method_names, parts_of, register_method
from adapterkit.methods.registry import _METHODS
from adapterkit.parts import PARTS, FeatureAdapter, register_part
from adapterkit.promptable.stock_sam import save_sam
from tests.commands.test_train_command import write_discs
from tests.conftest import Done
from tests.models import ECHO, TINY
from tests.processes import Process, run

MINE = '''
"""A method and a part of a user's own."""

from dataclasses import dataclass

from torch import nn

import adapterkit as ak


@ak.register_part
@dataclass(frozen=True)
class Shift:
    """Adds a trained vector to the tokens."""

    at: str = "tokens"

    def attach(self, to):
        shift = nn.Linear(1, to.site(self.at).width, bias=False)
        nn.init.zeros_(shift.weight)
        to.add("shift", shift)
        to.add_residual(self.at, AddVector(shift))


class AddVector:
    def __init__(self, shift):
        self.shift = shift

    def __call__(self, tokens):
        return self.shift(tokens.new_ones(1)).expand_as(tokens)


@ak.register_method("shifted", title="Shifted tokens")
def shifted(view, at="tokens"):
    return [Shift(at)]
'''


@pytest.fixture
def forgets():
    """Takes out what a test registers."""
    methods, parts = set(_METHODS), set(PARTS)
    yield
    for name in _METHODS.keys() - methods:
        del _METHODS[name]
    for name in PARTS.keys() - parts:
        del PARTS[name]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", method_names())
def test_each_method_is_injected_by_its_name(name: str):
    sam = ak.inject(ak.build_sam(TINY, seed=0), name, image_size=64)
    found = ak.adapters_of(sam)
    assert found is not None
    assert list(found["default"].parts) == parts_of(name, image_size=64)


def test_a_methods_options_reach_its_parts():
    assert ak.parts.LoRA(8, targets=("q", "v")) in parts_of("samed", rank=8)


def test_what_an_encoder_has_no_place_for_is_left_out():
    sam = ak.build_sam(TINY, seed=0)
    parts = parts_of("samed", ak.view(sam.image_encoder))
    assert not any(isinstance(part, ak.parts.Train) for part in parts)


def test_an_unknown_method_or_option_is_refused_with_those_that_there_are():
    sam = ak.build_sam(TINY, seed=0)
    with pytest.raises(
        ValueError, match=r"method 'sames': expected one of samus, autosamus, medsam, msa"
    ):
        ak.inject(sam, "sames")
    with pytest.raises(ValueError, match="method 'samed' has no option 'ranks'; it has rank, im"):
        ak.inject(sam, "samed", ranks=8)
    with pytest.raises(ValueError, match="options rank are for a named method"):
        ak.inject(sam, [FeatureAdapter(at="mlp")], rank=8)
    assert ak.adapters_of(sam) is None


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("samed", {"rank": "big"}, "method 'samed': rank='big', expected int"),
        ("samed", {"rank": 4.0}, r"rank=4\.0, expected int"),
        ("samed", {"rank": True}, "rank=True, expected int"),
        ("samus_plus", {"patch_stride": "8"}, "patch_stride='8', expected int or None"),
        ("samus_plus", {"structures": "disc"}, "structures='disc', expected a sequence of str"),
        ("samus_plus", {"structures": (1, 2)}, "expected a sequence of str"),
    ],
)
def test_an_option_of_another_type_is_refused(method: str, options: dict[str, Any], message: str):
    sam = ak.build_sam(TINY, seed=0)
    with pytest.raises(ValueError, match=message):
        ak.inject(sam, method, **options)
    assert ak.adapters_of(sam) is None


@pytest.mark.usefixtures("forgets")
def test_an_option_of_a_type_that_is_not_plain_is_the_methods_own_matter():
    def heard(
        view: Any = None,
        at: Literal["mlp", "tokens"] = "mlp",
        sizes: tuple[int, float] = (1, 2.0),
        blocks: Any = "all",
    ) -> list[Part]:
        return [FeatureAdapter(at=at)]

    def unheard(view: Any = None, rank: int = 1, other: "Unheard" = 1):  # pyright: ignore[reportUndefinedVariable]
        return []

    register_method("heard")(heard)
    register_method("unheard")(unheard)
    parts = parts_of("heard", at="tokens", sizes=(1, 0.5), blocks=range(2))
    assert parts == [FeatureAdapter(at="tokens")]
    with pytest.raises(ValueError, match="at='block_out', expected one of 'mlp', 'tokens'"):
        parts_of("heard", at="block_out")
    assert parts_of("unheard", rank="of a file that cannot be read") == []


@pytest.mark.parametrize(
    "parts",
    [lambda: [], lambda rank=2: [], lambda view, rank: [], lambda view, **options: []],
)
def test_a_method_takes_a_view_and_options_with_defaults(parts: Any):
    with pytest.raises(ValueError, match="expected a function that takes the view of an encoder"):
        register_method("of_mine")(parts)


def test_a_published_checkpoint_needs_a_method_that_has_some():
    with pytest.raises(ValueError, match="no checkpoints of method 'samus_plus' are published"):
        ak.load_published(ak.build_sam(TINY, seed=0), {"a": torch.ones(1)}, "samus_plus")


@pytest.mark.usefixtures("forgets")
def test_names_are_taken_once():
    with pytest.raises(ValueError, match=r"a method named 'samus' is defined in adapterkit\."):
        register_method("samus")(lambda view: [])
    with pytest.raises(ValueError, match="method name 'a b': expected letters"):
        register_method("a b")

    @dataclass(frozen=True)
    class Resize:
        def attach(self, to: Attachment) -> None: ...

    with pytest.raises(ValueError, match=r"a part named Resize is defined in adapterkit\."):
        register_part(Resize)
    with pytest.raises(TypeError, match=r"Linear: expected a class with @dataclass.*method attach"):
        register_part(nn.Linear)


@pytest.mark.usefixtures("forgets")
def test_a_method_of_ones_own_is_saved_and_loaded_in_a_fresh_process(plugin: Path, tmp_path: Path):
    assert ak.methods.load_plugin(plugin) == ("shifted",)
    assert find_method("shifted").title == "Shifted tokens"
    sam = ak.inject(ak.build_sam(TINY, seed=0), "shifted")
    image = torch.rand(1, 3, TINY.image_size, TINY.image_size)
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.3)
        expected = sam.image_encoder(image)
    ak.save_adapter(sam, tmp_path / "mine.safetensors")
    torch.save({"image": image, "expected": expected}, tmp_path / "tensors.pt")
    script = f"""
        import sys
        import torch
        import adapterkit as ak
        from tests.models import TINY
        sam = ak.build_sam(TINY, seed=0)
        folder = {str(tmp_path)!r}
        try:
            ak.load_adapter(sam, folder + "/mine.safetensors")
        except ak.AdapterFileError as error:
            assert "a part 'Shift'" in str(error) and "import the module" in str(error), error
        else:
            sys.exit("loaded without its part")
        ak.methods.load_plugin(folder + "/mine.py")
        ak.load_adapter(sam, folder + "/mine.safetensors")
        found = torch.load(folder + "/tensors.pt", weights_only=True)
        with torch.no_grad():
            assert torch.equal(sam.image_encoder(found["image"]), found["expected"])
    """
    run(Process(script))


@pytest.mark.usefixtures("forgets")
@pytest.mark.usefixtures("blank_figures")
def test_the_command_trains_parts_of_a_file_of_ones_own(tmp_path: Path, run: Callable[..., Done]):
    path = tmp_path / "my_parts.py"
    path.write_text(
        "from adapterkit.parts import LoRA, Resize\n\n"
        "def queries(view, rank=2, image_size=64):\n"
        "    return [Resize(image_size), LoRA(rank, targets=('q',))]\n"
        "def fixed(view):\n    return [LoRA(2)]\n"
    )
    data, out = write_discs(tmp_path / "discs", images=6), tmp_path / "run"
    options = ("--set", "rank=3", "--epochs", "1", "--image-size", "64", "--out", out)
    done = run("train", data, "--method", f"{path}:queries", *options)
    assert done.status == 0, done
    header = ak.inspect_adapter(out / "adapter.safetensors")
    assert ak.parts.LoRA(3, targets=("q",)) in header.parts
    done = run("train", data, "--method", f"{path}:fixed", "--image-size", "64")
    assert "method fixed has no option image_size; expected the base's, 512" in str(done.status)
    done = run("train", data, "--method", f"{path}:values", "--out", tmp_path / "other")
    assert "my_parts.py has no function values" in str(done.status)


@pytest.mark.usefixtures("forgets")
def test_a_function_in_a_file_is_a_method(tmp_path: Path):
    path = tmp_path / "plain_parts.py"
    path.write_text(
        "from adapterkit.parts import LoRA\n\n"
        "def low_rank(view, rank=2):\n    return [LoRA(rank)]\n"
    )
    assert ak.methods.from_file(f"{path}:low_rank") == "low_rank"
    sam = ak.inject(ak.build_sam(TINY, seed=0), "low_rank", rank=3)
    assert "LoRA(rank=3" in str(ak.summary(sam))
    assert ak.methods.from_file(f"{path}:low_rank") == "low_rank"
    with pytest.raises(ValueError, match=r"plain_parts\.py has no function high_rank"):
        ak.methods.from_file(f"{path}:high_rank")
    with pytest.raises(ValueError, match="expected a file and a function in it"):
        ak.methods.from_file("samus")


@pytest.mark.usefixtures("forgets")
def test_the_command_line_knows_a_method_and_a_part_of_ones_own(
    plugin: Path, tmp_path: Path, run: Callable[..., Done]
):
    plugin = plugin.rename(tmp_path / "on_the_command_line.py")
    save_sam(ak.build_sam(ECHO, seed=0), tmp_path / "base.safetensors")
    listed = run("--plugin", plugin, "methods", "--checkpoint", tmp_path / "base.safetensors")
    assert listed.status == 0
    assert "shifted" in listed.output
    ak.save_adapter(
        ak.inject(ak.build_sam(ECHO, seed=0), "shifted"), tmp_path / "shifted.safetensors"
    )
    inspected = run("--plugin", plugin, "inspect", tmp_path / "shifted.safetensors")
    assert inspected.status == 0
    assert "Shift(at='tokens')" in inspected.output
    assert "--plugin: expected a Python file" in str(run("--plugin").status)
    late = str(run("inspect", tmp_path / "shifted.safetensors", "--plugin", plugin).status)
    assert "--plugin stands before the command: adapterkit --plugin FILE.py inspect" in late


def test_a_plugin_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nothing\.py: no such file"):
        ak.methods.load_plugin(tmp_path / "nothing.py")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        ak.methods.load_plugin(tmp_path / "broken.py")
