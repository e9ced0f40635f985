"""The command `adapterkit pull`."""

from pathlib import Path

from tyro.conf import Positional

from adapterkit.system.command_line import check_free, console


def pull(
    repo: Positional[str], out: Path, revision: str | None = None, force: bool = False
) -> None:
    """Get an adapter file from the Hugging Face Hub.

    Example: adapterkit pull anna/echo --out echo.safetensors

    Args:
        repo: the repository, owner/name.
        out: the adapter file.
        revision: a branch, tag or commit. By default the newest.
        force: replace OUT if it exists.
    """
    from adapterkit.adapters.hub import pull_adapter

    check_free(out, force)
    header = pull_adapter(repo, out, revision)
    parts = ", ".join(type(part).__name__ for part in header.parts)
    console.print(f"the adapter is in {out}: {parts}", soft_wrap=True)
