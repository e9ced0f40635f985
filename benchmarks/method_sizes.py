"""What each method trains on SAM's ViT-B, and how big its adapter file is.

python -m benchmarks.method_sizes
"""

import tempfile
from pathlib import Path

import adapterkit as ak

METHODS = {
    "SAMUS": ak.inject_samus,
    "SAMed, rank 4": ak.inject_samed,
    "MSA": ak.inject_msa,
    "MedSAM": ak.inject_medsam,
}


def main() -> None:
    sam = ak.build_sam()
    total = sum(each.numel() for each in sam.parameters())
    print("| method | trained parameters | of the base's | adapter file |")
    print("|---|---|---|---|")
    for name, inject in METHODS.items():
        trained = ak.summary(inject(sam)).trained_parameters
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.safetensors"
            ak.save_adapter(sam, path)
            size = path.stat().st_size
        ak.eject(sam)
        print(f"| {name} | {trained:,} | {trained / total:.1%} | {size / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
