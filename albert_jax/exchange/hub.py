"""Models from the Hugging Face hub: fetched once, kept in its own cache, checked by their published SHA-256."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from albert_jax.config import InputError, require


def fetch(name: str, revision: str, patterns: tuple[str, ...]) -> tuple[Path, str]:
    """The files of a model that match `patterns`, in the hub's cache; from the cache alone where there is no network.

    Args:
      name: such as `albert/albert-base-v2`.
      revision: a branch, tag or commit; the newest of the main branch if empty.
      patterns: of file names.

    Returns:
      The folder and the commit it is of.

    Raises:
      InputError: no such model, one without weights that are read, no way to the hub, or a file whose SHA-256 is not the published one.
    """
    try:
        folder = Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns="*/*")
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise InputError(f"{name}: no such folder, and the hub cannot be reached ({_first(error)})") from None
    except Exception as error:  # also those of its HTTP library, which changes from version to version
        raise InputError(f"{name}: no such folder, and not to be had from the hub ({_first(error)})") from None
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    has_weights = any(part in file for file in names for part in (".safetensors", "pytorch_model.bin"))
    told = f"{name}: no model.safetensors on the hub (of what is read it has {', '.join(names) or 'nothing'})"
    require(has_weights, f"{told}; if it has pytorch_model.bin, say --allow-pickle if you trust where it is from")
    for path in sorted(folder.iterdir()):
        published = path.resolve().name  # the cache names a large file by it; a small one by git's own hash
        if re.fullmatch("[0-9a-f]{64}", published):
            with path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            told = f"{path.resolve()}: SHA-256 is {found[:12]}.., published is {published[:12]}.."
            require(found == published, f"{told}; remove the file and try again")
    return folder, folder.name


def _first(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)[:160]
