"""Adapter files on the Hugging Face Hub, each in a repository of its own with a model card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from adapterkit.adapters.file import inspect_adapter
from adapterkit.adapters.header import AdapterFileError, AdapterHeader
from adapterkit.system.files import atomic_write

_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of the HTTP client that the installed huggingface_hub uses: requests, httpx or httpx2."""

FILE = "adapter.safetensors"
"""What an adapter file is called in its repository."""


def push_adapter(
    path: str | Path, repo: str, base: str = "", licence: str = "", public: bool = False
) -> str:
    """Upload an adapter file and a model card, in one commit, and give the repository's address.

    The token is the one that `hf auth login` stored, or the environment's HF_TOKEN. What was in the
    repository under these names is replaced; the Hub keeps its history.

    Args:
        path: of the file.
        repo: "owner/name"; made if there is none.
        base: the checkpoint that it was trained on, in a word: the name of its file, or of its
            repository.
        licence: the Hub's identifier of one, "apache-2.0" say.
        public: whether anybody may see a repository that is made.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is none of an adapter.
        OSError: the Hub cannot be reached, or refuses.
        ValueError: the Hub has no such names of repositories.
    """
    card = model_card(inspect_adapter(path), repo, base, licence)
    api = HfApi()
    with clear_errors(repo):
        url = api.create_repo(repo, private=not public, exist_ok=True)
        api.create_commit(
            repo,
            [
                CommitOperationAdd("README.md", card.encode()),
                CommitOperationAdd(FILE, Path(path)),
            ],
            commit_message="Adapter and model card",
        )
    return str(url)


def pull_adapter(repo: str, path: str | Path, revision: str | None = None) -> AdapterHeader:
    """Download the adapter file of a repository, and give its header.

    Args:
        repo: "owner/name".
        path: the file, written atomically when what was downloaded is an adapter file.
        revision: a branch, tag or commit; None: the newest.

    Raises:
        AdapterFileError: the repository's file is none of an adapter.
        OSError: the Hub cannot be reached, or has no such repository, revision or file; or `path`
            cannot be written.
        ValueError: the Hub has no such names of repositories.
    """
    with TemporaryDirectory() as folder:
        with clear_errors(repo):
            # Asked for first, since downloading would try again and again where there is no Hub.
            commit = HfApi().model_info(repo, revision=revision).sha
            found = HfApi().hf_hub_download(repo, FILE, revision=commit, local_dir=folder)
        try:
            header = inspect_adapter(found)
        except AdapterFileError as error:
            raise AdapterFileError(str(error).replace(str(found), f"{repo}/{FILE}")) from error
        with atomic_write(path) as temporary:
            shutil.copyfile(found, temporary)
    return header


def model_card(header: AdapterHeader, repo: str, base: str = "", licence: str = "") -> str:
    """What a repository's README.md says of an adapter; the arguments are `push_adapter`'s."""
    data = ModelCardData(
        license=licence or None,
        library_name="adapterkit",
        pipeline_tag="image-segmentation",
        tags=["adapterkit", "adapter", "medical-imaging", "segment-anything"],
        base_model=base if base.count("/") == 1 else None,
    )
    rows = [
        ("base", f"{base or 'not named'} ({header.family}, {len(header.fingerprint)} tensors)"),
        ("input", f"{header.image_size}x{header.image_size} pixels"),
        ("structures", ", ".join(header.classes) or "not named"),
        *((f"training: {key}", value) for key, value in header.training.items()),
        ("made with", f"adapterkit {version('adapterkit')}"),
    ]
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)
    parts = "\n".join(f"{part}" for part in header.parts)
    return f"""---
{data.to_yaml()}
---
# {repo.split("/")[-1]}

An adapter for a pretrained vision transformer, made with adapterkit. It holds what was trained
alone, and works on the base that it was trained on: `load_adapter` checks that.

**For research only. Not for clinical use, and not a medical device.**

| | |
|---|---|
{table}

Its parts:

```
{parts}
```

## Use

```
adapterkit pull {repo} --out {FILE}
adapterkit predict images --adapter {FILE} --checkpoint BASE --out masks
```

```python
import adapterkit as ak

sam = ak.load(BASE)  # the base: a file, a folder, or a name on the Hub
ak.load_adapter(sam, "{FILE}")
```
"""


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


@contextmanager
def clear_errors(repo: str) -> Iterator[None]:
    """Errors of the Hub as `OSError` that says what to do."""
    hub = constants.ENDPOINT
    log_in = "log in with hf auth login, or set HF_TOKEN"
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(f"{hub} cannot be reached, or HF_HUB_OFFLINE is set") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} on {hub} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} is not on {hub}, or is not for you to see: correct the name, or {log_in}"
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} on {hub} has no {FILE}, so no adapter that adapterkit pushed"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{hub} does not let you do this with {repo} ({status}): {log_in}, of one who may"
            ) from error
        raise OSError(f"{hub} refuses ({status}): {error.server_message or error}") from error
    except _HTTP_ERROR as error:
        raise ConnectionError(f"{hub} cannot be reached: {error}") from error
