"""Class prompts: structures asked for by their name instead of a click."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Context
from adapterkit.parts.registry import register_part
from adapterkit.parts.structures import checked_names

CLASSES = "classes"
"""Under this name the context of a pass holds the class of each prompt, (P,); -1 for none."""

POINTED_AT = "pointed at"
"""Under this one, whether a click or a box says where its structure is, (P,); absent: none does."""

PRESENCE = "presence"
"""And under this one, after the decoder's forward, the logits that each is there, (P,)."""


class AddClassTokens:
    """A forward hook on the prompt encoder that puts a class's tokens before the sparse ones."""

    def __init__(self, tokens: nn.Embedding, context: Context):
        self.tokens = tokens
        self.context = context

    def __call__(
        self, module: nn.Module, args: object, output: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "*p n c"], Float[Tensor, "_ c h w"]]:
        sparse, dense = output
        classes = self.context.values.get(CLASSES)
        if classes is None:
            return output
        # Of a prompt that names no class, the last row; of one with nothing else, the stock
        # encoder has made a batch of one.
        rows = torch.where(classes < 0, self.tokens.num_embeddings - 1, classes)
        prompts = classes.shape[0]
        if math.prod(sparse.shape[:-2]) < prompts:
            sparse = sparse.expand(prompts, *sparse.shape[1:])
            dense = dense.expand(prompts, -1, -1, -1)
        tokens = self.tokens(rows).to(sparse.dtype)
        tokens = tokens.view(*sparse.shape[:-2], -1, sparse.shape[-1])
        return torch.cat([tokens, sparse], dim=-2), dense


class JudgePresence:
    """A forward hook on the head that reads the prompt's token: is what was asked for there?"""

    def __init__(self, head: nn.Linear, context: Context):
        self.head = head
        self.context = context

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        classes = self.context.values.get(CLASSES)
        if classes is not None:
            presence = self.head(args[0].to(self.head.weight.dtype)).flatten()
            # A prompt without a class points at something that is there, if only by a mask.
            certain = classes < 0
            if POINTED_AT in self.context.values:
                certain = certain | self.context.values[POINTED_AT]
            self.context.values[PRESENCE] = presence.masked_fill(certain, _CERTAIN)


_CERTAIN = 20.0


@register_part
@dataclass(frozen=True)
class ClassPrompts:
    """Lets a structure be asked for by its class, with or without clicks that correct it.

    Each class has learned tokens, which stand before those of points and boxes in the mask
    decoder; without these, they are the whole prompt. From the decoder's token of the whole prompt
    a trained head judges whether the structure is in the image at all: where its logit is below 0,
    the mask is empty. A click inside of it, or a box, says that it is there. Prompts that name no
    class are as without this part.

    Structures exclude each other, as in the label maps that they are learned from: the logits of a
    mask are its log odds against background and the other structures, which are asked for by their
    names.

    Args:
        structures: the names of the classes, each once.
        tokens: of each class.
    """

    structures: tuple[str, ...]
    tokens: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", checked_names(self, self.structures))
        if not 1 <= self.tokens <= 64:
            raise ValueError(f"ClassPrompts(tokens={self.tokens}): expected 1 to 64")

    def attach(self, to: Attachment) -> None:
        decoder = to.decoder("ClassPrompts")
        tokens = nn.Embedding(len(self.structures) + 1, self.tokens * decoder.width)
        nn.init.normal_(tokens.weight, std=0.5)
        head = nn.Linear(decoder.width, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        to.add("class_prompts.tokens", tokens)
        to.add("class_prompts.presence", head)
        to.after(decoder.prompt_encoder, AddClassTokens(tokens, to.context))
        to.after(decoder.token_head, JudgePresence(head, to.context))
