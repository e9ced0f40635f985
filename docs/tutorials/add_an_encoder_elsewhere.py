"""The adapter of add_an_encoder.py in a process of its own."""

# --8<-- [start:elsewhere]
import torch
from torch import nn

import adapterkit as ak
from add_an_encoder_mine import Mine  # which registers the family

model = Mine(outputs=2)
model.load_state_dict(torch.load("mine.pth"))
model.head = nn.Linear(model.head.in_features, 1)  # the file brings the trained one
ak.load_adapter(model, "lora.safetensors")

expected = torch.load("expected.pth")
with torch.no_grad():
    found = model.eval()(expected["images"])[:, 0]
assert torch.equal(found, expected["found"])
print("the same outputs, to the bit, in another process")
# --8<-- [end:elsewhere]
