"""The command `adapterkit push`."""

from pathlib import Path

from tyro.conf import Positional

from adapterkit.system.command_line import console


def push(
    file: Positional[Path],
    repo: Positional[str],
    base: str = "",
    licence: str = "",
    public: bool = False,
) -> None:
    """Put an adapter file on the Hugging Face Hub, with a model card.

    The card says what `adapterkit inspect` shows. Log in first: hf auth login

    Example: adapterkit push echo.safetensors anna/echo --base sam_vit_b_01ec64.pth --licence \
apache-2.0

    Args:
        file: the adapter file.
        repo: the repository, owner/name. It is made if there is none.
        base: the checkpoint that the adapter was trained on, in a word.
        licence: of the adapter, as the Hub calls it.
        public: make a repository that anybody can see. By default it is private.
    """
    from adapterkit.adapters.hub import push_adapter

    url = push_adapter(file, repo, base, licence, public)
    console.print(f"the adapter is at {url}", soft_wrap=True)
