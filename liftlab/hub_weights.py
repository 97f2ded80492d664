"""Weights from the hub: safetensors alone, into the hub's own cache; a quick answer where the hub is unreachable."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from liftlab.gguf_weights import ModelError

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
LEFT_OUT = ["*/*", "consolidated*"]  # other formats, and second copies of the same weights
TIMEOUT_SECONDS = 5.0


class HubUnreachable(ModelError):
    """The hub cannot be reached and its cache does not hold the model."""


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of a hub model in the hub's cache; it is named by the commit.

    Raises HubUnreachable, or ModelError for a gated or unknown model.
    """
    asked = repository if revision is None else f"{repository}@{revision}"
    try:
        return Path(_snapshot(repository, revision))
    except GatedRepoError as error:
        raise ModelError(f"hub model {asked} is gated: accept its licence on the hub and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"no hub model {asked} (or no access): check the id, the revision and HF_TOKEN") from error
    except Exception as error:  # the hub's, the HTTP client's and the proxy's errors share no base class
        raise HubUnreachable(
            f"no directory {asked} here, and hub model {asked} cannot be fetched ({first_line(error)}) nor found in "
            "the hub's cache: connect to the hub, or give a model directory or a .gguf file"
        ) from error


def _snapshot(repository: str, revision: str | None) -> str:
    """The snapshot's folder, from the hub's cache where the hub does not answer (`snapshot_download` would wait on).

    Both ways ask for the same files: hub 2.4 calls a cached snapshot incomplete that lacks one it was asked for.
    """
    download = partial(snapshot_download, repository, revision=revision, allow_patterns=FILES, ignore_patterns=LEFT_OUT)
    try:
        HfApi().model_info(repository, revision=revision or "main", timeout=TIMEOUT_SECONDS)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:
        try:
            return download(local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    return download()


def first_line(error: Exception) -> str:
    """The error's first line, or its type where it says nothing."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
