"""PyTorch's own tools work on a patched model: export, compile, checkpointing, two processes.

They run in processes of their own, as a user runs them: without the shape checks, which compilers
cannot see through.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PREAMBLE = """
import torch
import adapterkit as ak
from tests.models import TINY

torch.manual_seed(0)
sam = ak.inject_samus(ak.build_sam(TINY, seed=0))
encoder = sam.image_encoder
image = torch.rand(2, 3, 256, 256)
trained = [each for each in sam.parameters() if each.requires_grad]
"""


def run(script: str, *command: str, cwd: Path = ROOT) -> None:
    # Importing tests installs the shape checks, on modules that are not imported yet.
    source = "import adapterkit, adapterkit.segmenter\n" + PREAMBLE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, *command, "-c", source], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_export_is_exact():
    run(
        """
        with torch.no_grad():
            expected = encoder(image)
        exported = torch.export.export(encoder, (image,)).module()
        torch.testing.assert_close(exported(image), expected, rtol=0, atol=1e-5)
        """
    )


def test_compile_has_no_graph_break_and_agrees_with_its_gradients():
    run(
        """
        expected = encoder(image)
        gradients = torch.autograd.grad(expected.square().mean(), trained)
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        output = compiled(image)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
        for mine, theirs in zip(torch.autograd.grad(output.square().mean(), trained), gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        """
    )


def test_activation_checkpointing_gives_equal_gradients():
    run(
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


def test_two_processes_train_one_adapter(tmp_path: Path):
    run(
        f"""
        import os
        import torch.distributed as dist
        import torch.multiprocessing as mp
        from torch.nn.parallel import DistributedDataParallel

        sam = ak.eject(sam)


        def gradients(model, images):
            model(images).square().mean().backward()
            named = model.named_parameters()
            return {{name: each.grad for name, each in named if each.requires_grad}}


        def worker(rank, base):
            torch.manual_seed(0)
            encoder = ak.inject_samus(base).image_encoder
            dist.init_process_group(
                "gloo", init_method="file://{tmp_path}/store", rank=rank, world_size=2
            )
            found = gradients(DistributedDataParallel(encoder), image[rank : rank + 1])
            if rank == 0:
                torch.save(found, "{tmp_path}/gradients.pth")
            dist.destroy_process_group()


        mp.start_processes(worker, (sam,), nprocs=2, start_method="fork")
        torch.manual_seed(0)
        alone = gradients(ak.inject_samus(sam).image_encoder, image)
        together = torch.load("{tmp_path}/gradients.pth")
        assert len(alone) == len(together) == len(trained)
        for name, gradient in alone.items():
            torch.testing.assert_close(together["module." + name], gradient, rtol=1e-3, atol=1e-6)
        """
    )
