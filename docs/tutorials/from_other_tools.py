"""From other tools: what peft, the papers' repositories and micro-sam leave, in adapterkit.

The files of those tools are made here, in their formats, around the small Sam that comes with
adapterkit; needs no files.
"""

# --8<-- [start:peft_file]
import peft
import torch
from safetensors.torch import load_file

import adapterkit as ak
from adapterkit.attach.attachment import Adapter

torch.manual_seed(0)
image = 255 * torch.rand(1, 3, 512, 512)

elsewhere = ak.mini_sam()
lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], init_lora_weights=False)
wrapped = peft.get_peft_model(elsewhere.image_encoder, lora)
wrapped.save_pretrained("peft_lora")
with torch.no_grad():
    of_peft = wrapped(image)
# --8<-- [end:peft_file]


# --8<-- [start:peft]
def load_weights_of_peft(adapter: Adapter, folder: str) -> None:
    """Fill the part of a configuration of peft with the weights that lie beside it."""
    saved = load_file(f"{folder}/adapter_model.safetensors")
    named = {key.removeprefix("base_model.model."): value for key, value in saved.items()}
    own = adapter.added.state_dict(keep_vars=True)
    for key, value in own.items():
        plain = key.removeprefix("peft.").replace(".layer.", ".").replace(".default", "")
        with torch.no_grad():
            value.copy_(named.pop(plain))
    assert not named, f"no place for {[*named]}"


sam = ak.mini_sam()
config = peft.PeftConfig.from_pretrained("peft_lora")
config.inference_mode = False
ak.inject(sam, [config], name="from_peft")
attached = ak.adapters_of(sam)
assert attached is not None
load_weights_of_peft(attached["from_peft"], "peft_lora")
with torch.no_grad():
    torch.testing.assert_close(sam.image_encoder(image), of_peft)
ak.save_adapter(sam, "from_peft.safetensors")
print(ak.inspect_adapter("from_peft.safetensors").parts)
# --8<-- [end:peft]

# --8<-- [start:samed]
width, blocks, rank = 192, range(8), 4
published = {f"w_a_{2 * i + j:03d}": torch.randn(rank, width) for i in blocks for j in (0, 1)}
published |= {f"w_b_{2 * i + j:03d}": torch.randn(width, rank) for i in blocks for j in (0, 1)}
published |= {
    key: value + 0.01
    for key, value in elsewhere.state_dict().items()
    if key.startswith("mask_decoder.")
}
torch.save(published, "samed.pth")  # in the form of hitachinsk/SAMed

sam = ak.mini_sam()
ak.load_published(sam, "samed.pth", method="samed", image_size=256)
ak.save_adapter(sam, "samed.safetensors")
print(*ak.inspect_adapter("samed.safetensors").parts, sep="\n")
# --8<-- [end:samed]

# --8<-- [start:medsam]
fully_trained = {key: value + 0.01 for key, value in ak.mini_sam().state_dict().items()}
torch.save({f"module.{key}": value for key, value in fully_trained.items()}, "medsam.pth")

medsam = ak.load_sam("medsam.pth")
weight = torch.as_tensor(medsam.mask_decoder.iou_token.weight)
assert torch.equal(weight, fully_trained["mask_decoder.iou_token.weight"])
# --8<-- [end:medsam]

# --8<-- [start:micro_sam]
checkpoint = {"model_state": {f"sam.{key}": value for key, value in fully_trained.items()}}
torch.save({**checkpoint, "epoch": 10, "best_metric": 0.1}, "best.pt")  # as training leaves it

micro_sam = ak.load_sam("best.pt")
position = micro_sam.get_parameter("image_encoder.pos_embed")
assert torch.equal(position, fully_trained["image_encoder.pos_embed"])
ak.inject(micro_sam, "samed", image_size=256)
print(ak.summary(micro_sam))
# --8<-- [end:micro_sam]

# --8<-- [start:back]
sam = ak.load_adapter(ak.mini_sam(), "from_peft.safetensors")
ak.merge(sam)
torch.save(sam.state_dict(), "sam_merged.pth")

anywhere = ak.mini_sam()  # or sam_model_registry["vit_b"]("sam_merged.pth") of segment_anything
anywhere.load_state_dict(torch.load("sam_merged.pth"))
with torch.no_grad():
    difference = (anywhere.image_encoder(image) - of_peft).abs().max().item()
print(f"merged and saved, the embedding differs by {difference:.1g}")
# --8<-- [end:back]
