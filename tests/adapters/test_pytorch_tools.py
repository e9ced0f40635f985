"""PyTorch's own tools work on a patched model: export, compile, checkpointing, two processes.

They run in processes of their own, as a user runs them: without the shape checks, which compilers
cannot see through.
"""

import textwrap
from pathlib import Path

import pytest

from tests.processes import Process, run

PREAMBLE = """
from dataclasses import replace
import torch
import adapterkit as ak
from tests.models import TINY

torch.manual_seed(0)
# A block that attends within windows and one that attends globally: what traces takes each anew.
config = replace(TINY, depth=2, global_blocks=(1,), window_size=5)
sam = ak.inject_samus(ak.build_sam(config, seed=0), 128)
encoder = sam.image_encoder
image = torch.rand(2, 3, 128, 128)
trained = [each for each in sam.parameters() if each.requires_grad]
"""


def start(script: str, **environment: str) -> Process:
    # Importing tests installs the shape checks, on modules that are not imported yet.
    imports = (
        "import adapterkit.adapters.file, adapterkit.methods, adapterkit.promptable.segmenter\n"
    )
    source = imports + PREAMBLE + textwrap.dedent(script)
    return Process(source, environment=environment)


def test_export_is_exact():
    run(
        start(
            """
            with torch.no_grad():
                expected = encoder(image)
            exported = torch.export.export(encoder, (image,)).module()
            torch.testing.assert_close(exported(image), expected, rtol=0, atol=1e-5)
            """
        )
    )


def test_a_trace_is_exact_and_a_script_refused():
    run(
        start(
            """
            import peft
            import timm
            from adapterkit.parts import CNNBranch, FeatureAdapter, LoRA, PositionAdapter, Train

            CASES = [
                [CNNBranch(stem_channels=4)],
                [FeatureAdapter(zero_init=False), LoRA()],
                [PositionAdapter(), Train("head")],
                [peft.LoraConfig(r=2, target_modules=["qkv"])],
            ]
            options = {"depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 32}
            first, second = torch.rand(2, 2, 3, 32, 32)
            for parts in CASES:
                model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **options)
                ak.inject(model.eval(), parts)
                with torch.no_grad():
                    for each in model.parameters():
                        each.add_(0.1 * torch.randn_like(each))
                    traced = torch.jit.trace(model, first)
                    assert torch.equal(traced(second), model(second)), parts
                try:
                    torch.jit.script(model)
                except ValueError as error:
                    assert "torch.jit.trace(model, images), or eject or merge" in str(error)
                else:
                    raise AssertionError(parts)
                torch.jit.script(ak.eject(model))
            """
        )
    )


def test_compile_has_no_graph_break_and_agrees_with_its_gradients():
    run(
        start(
            """
            expected = encoder(image)
            gradients = torch.autograd.grad(expected.square().mean(), trained)
            compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
            output = compiled(image)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
            compiled_gradients = torch.autograd.grad(output.square().mean(), trained)
            for mine, theirs in zip(compiled_gradients, gradients):
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
            """
        )
    )


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_follows_every_switch(backend: str):
    run(
        start(
            """
            import os
            import peft
            import timm
            from adapterkit.parts import CNNBranch, FeatureAdapter, LoRA, Resize, Train

            CASES = {
                "ForwardHook": [FeatureAdapter(at="mlp", zero_init=False)],
                "ForwardPreHook": [CNNBranch(stem_channels=4)],
                "Overlay": [LoRA()],
                "Overlay, Override": [Train("norm")],
                "Forward": [peft.LoraConfig(r=2, target_modules=["qkv"])],
                "Attribute": [Resize(32, patch_stride=8), FeatureAdapter()],
            }

            @torch.no_grad()
            def disturb(model):
                for name, each in model.named_parameters():
                    if "adapterkit" in name:
                        each.add_(0.1 * torch.randn_like(each))

            def check(size=64):
                image = torch.rand(1, 3, size, size)
                with torch.no_grad():
                    torch.testing.assert_close(compiled(image), model(image), rtol=0, atol=1e-4)

            def graphs():
                return torch._dynamo.utils.counters["stats"]["unique_graphs"]

            options = {"depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 3}
            options["global_pool"] = ""
            for name, parts in CASES.items():
                size = 32 if name == "Attribute" else 64
                torch._dynamo.reset()
                model = timm.create_model("vit_tiny_patch16_224", img_size=64, **options).eval()
                compiled = torch.compile(model, backend=os.environ["BACKEND"], dynamic=False)
                check()
                disturb(ak.inject(model, parts, "one"))
                check(size)
                disturb(ak.inject(model, parts, "other"))
                check(size)
                for _ in range(2):
                    before = graphs()
                    with ak.disabled(model):
                        check()
                    check(size)
                    ak.activate(model, "one")
                    check(size)
                    ak.activate(model)
                    check()
                    ak.activate(model, "other")
                    check(size)
                # Nothing is compiled again for a state that was there before.
                assert graphs() == before, name
                if size == 64 and name not in ("Forward", "Overlay, Override"):
                    for stacked in (("one", "other"), ("other", "one")):
                        ak.activate(model, *stacked)
                        check()
                ak.eject(model)
                check()
            """,
            BACKEND=backend,
        )
    )


def test_activation_checkpointing_gives_equal_gradients():
    run(
        start(
            """
            from torch.utils.checkpoint import checkpoint

            expected = torch.autograd.grad(encoder(image).square().mean(), trained)
            for block in encoder.blocks:
                plain = block.forward
                block.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
            whole = torch.autograd.grad(encoder(image).square().mean(), trained)
            for mine, theirs in zip(whole, expected):
                assert torch.equal(mine, theirs)
            """
        )
    )


def test_two_processes_train_one_adapter(tmp_path: Path):
    script = """
        import os
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        rank, folder = int(os.environ["RANK"]), os.environ["FOLDER"]
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
        )
        alone = torch.autograd.grad(encoder(image).square().mean(), trained)
        together = DistributedDataParallel(encoder)
        together(image[rank : rank + 1]).square().mean().backward()
        for parameter, gradient in zip(trained, alone):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
        dist.destroy_process_group()
        """
    run(*(start(script, RANK=str(rank), FOLDER=str(tmp_path)) for rank in range(2)))


def test_what_fsdp1_flattens_is_refused(tmp_path: Path):
    script = """
        import os
        import timm
        import torch.distributed as dist
        from torch.distributed.fsdp import FullyShardedDataParallel
        from adapterkit.parts import CNNBranch, FeatureAdapter, LoRA, PositionAdapter, Train

        rank, folder = int(os.environ["RANK"]), os.environ["FOLDER"]
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
        )

        def refused(call):
            try:
                call()
            except ValueError as error:
                assert "fully_shard (FSDP2) or DistributedDataParallel instead" in str(error)
            else:
                raise AssertionError("not refused")

        def wrap(model):
            return FullyShardedDataParallel(
                model, use_orig_params=True, device_id=torch.device("cpu")
            )

        options = {"depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 64}
        for parts in [[LoRA()], [Train("norm")], [PositionAdapter()]]:
            model = timm.create_model("vit_tiny_patch16_224", global_pool="", **options)
            ak.inject(model, parts)
            refused(lambda: wrap(model))
        model = timm.create_model("vit_tiny_patch16_224", global_pool="", **options)
        ak.inject(model, [FeatureAdapter(zero_init=False), CNNBranch(stem_channels=4)])
        image = torch.rand(2, 3, 64, 64)
        expected = model(image)
        wrapped = wrap(model)
        torch.testing.assert_close(wrapped(image), expected)
        file = f"{folder}/{rank}.safetensors"
        for each in (wrapped, model):
            refused(lambda: ak.save_adapter(each, file))
            refused(lambda: ak.summary(each))
            refused(lambda: ak.inject(each, [LoRA()], "other"))
        assert not os.path.exists(file)
        dist.destroy_process_group()
        """
    run(*(start(script, RANK=str(rank), FOLDER=str(tmp_path)) for rank in range(2)))


@pytest.mark.slow
def test_two_processes_shard_one_model(tmp_path: Path):
    script = """
        import os
        import timm
        import torch.distributed as dist
        from safetensors.torch import load_file
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from adapterkit.parts import CNNBranch, FeatureAdapter, LoRA, PositionAdapter, Train

        rank, folder = int(os.environ["RANK"]), os.environ["FOLDER"]
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
        )
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, global_pool="avg")
        parts = [FeatureAdapter(zero_init=False), CNNBranch(stem_channels=4), Train("fc_norm")]
        ak.inject(model, [*parts, LoRA(), PositionAdapter()])
        image = torch.rand(2, 3, 64, 64)
        names = [name for name, each in model.named_parameters() if each.requires_grad]
        trained = [model.get_parameter(name) for name in names]
        expected = model(image).detach()
        alone = torch.autograd.grad(model(image).square().mean(), trained)
        ak.save_adapter(model, f"{folder}/before{rank}.safetensors")

        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        own = slice(rank, rank + 1)
        output = model(image[own])
        torch.testing.assert_close(output, expected[own], rtol=1e-4, atol=1e-5)
        output.square().mean().backward()
        for name, gradient in zip(names, alone):
            mine = model.get_parameter(name).grad.full_tensor()
            torch.testing.assert_close(mine, gradient, rtol=1e-3, atol=1e-6)

        ak.save_adapter(model, f"{folder}/after{rank}.safetensors")
        files = [f"{folder}/{when}{rank}.safetensors" for when in ("before", "after")]
        assert str(ak.inspect_adapter(files[0])) == str(ak.inspect_adapter(files[1]))
        before, after = map(load_file, files)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        with ak.disabled(model):
            base = model(image[own])
        again = model(image[own])
        assert not torch.allclose(base, again)
        torch.testing.assert_close(again, output)
        dist.destroy_process_group()
        """
    run(*(start(script, RANK=str(rank), FOLDER=str(tmp_path)) for rank in range(2)))
