"""Push an exported run to the Hugging Face hub: checkpoints as branches, then the final model as the main branch.

The main branch comes last, so it holds a model only if everything before it has arrived.  Files that the hub has are not sent
again, so a push that failed is repeated by the same command.  The README.md of the folder stays a template.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id

from albert_jax.config import InputError, differences, first_line, from_dict, read_json, to_dict
from albert_jax.exchange.convert import convert, outputs, parity, sample_inputs
from albert_jax.exchange.load import Source
from albert_jax.exchange.reshare import reshare
from albert_jax.model.albert import AlbertConfig
from albert_jax.publish.card import completed
from albert_jax.publish.revisions import read_revision, run_config

log = logging.getLogger(__name__)

NOT_PUSHED = ("conversion.json", "README.md")
"""The first has the paths of this machine; the second is pushed with the name of the model."""

CHECKPOINTS = """
## Checkpoints of the training

Each is a branch; `step-0` has the random parameters before training:

```python
{architecture}.from_pretrained("{name}", revision="{example}")
albert_jax.load("{name}@{example}")
```

Branches: {branches}.
"""


def check(name: str, license: str, run_dir: Path) -> None:
    """Check what a push needs, before anything is converted.

    Raises:
      InputError: the license or a token is missing, the name is invalid, the run is not complete, or this version cannot read its
        configuration.
    """
    if not license:
        raise InputError("--license: name the license of the model that you publish, such as --license apache-2.0")
    try:
        validate_repo_id(name)
    except HFValidationError:
        problem = "not a valid name; use NAME or USER/NAME with letters, digits, -, _ and ."
        raise InputError(f"--push-to-hub {name}: {problem}") from None
    if not (run_dir / "summary.json").is_file():
        raise InputError(f"{run_dir}: no summary.json, so the run is not complete; rerun its command first")
    run_config(run_dir)
    if get_token() is None:
        raise InputError("--push-to-hub: no token for the hub; run 'hf auth login', or set HF_TOKEN")


def check_unchanged(source: Source, folder: Path, initialization: str = "average", **changes: Any) -> None:
    """Check that a folder from an earlier conversion still has the model of the run; its README.md may have been edited.

    Args:
      source: the run's final model.
      folder: the Hugging Face folder.
      initialization, changes: the options of the conversion, as for `convert`.

    Raises:
      InputError: it has a different model, was converted with different options, or `convert` did not write it.
    """
    inputs = sample_inputs(source.weights.model.config)
    try:
        stored = read_json(folder / "conversion.json")
        before = to_dict(from_dict(AlbertConfig, stored["config"])) | {"initialization": stored["initialization"]}
        now = parity(outputs(source.weights, inputs), folder, "huggingface", inputs)
        compared = [(value, now[name]) for name, value in stored["parity"].items() if name != "by"]
    except (InputError, KeyError, ValueError):
        compared = []
    if not compared or any(abs(a - b) > 1e-5 for a, b in compared):
        raise InputError(
            f"{folder} exists, but its model differs from the run's; remove it, or choose a different TARGET"
        )
    config = reshare(source.weights, initialization, **changes).model.config
    if changed := differences(before, to_dict(config) | {"initialization": initialization}):
        raise InputError(
            f"{folder} was converted with different options ({'; '.join(changed)}); give the same, or choose a different TARGET"
        )


def push(
    source: Source,
    run_dir: Path,
    folder: Path,
    name: str,
    license: str,
    steps: Sequence[int] = (),
    private: bool = False,
    conversion: Mapping[str, Any] | None = None,
) -> str:
    """Push a run.

    Args:
      source: its final model.
      run_dir: the run.
      folder: the Hugging Face folder to which it was converted.
      name: of the repository, such as `user/albert-tiny`; it is created if it does not exist.
      license: such as apache-2.0.
      steps: checkpoints that become the branches `step-N`.
      private: whether a new repository is private.
      conversion: the options of `convert` with which `folder` was written.

    Returns:
      The address of the model.

    Raises:
      InputError: the hub refuses, or cannot be reached.
    """
    hub_logging.set_verbosity_error()  # it warns if a file is there already
    api = HfApi(library_name="albert_jax")
    template = ModelCard((folder / "README.md").read_text())
    with _explained(name):
        address = api.create_repo(name, private=private or None, exist_ok=True)
    name = address.repo_id  # with the user's name, if it was left out
    card = str(completed(template, name, license))
    branches = [f"step-{step}" for step in steps]
    if branches:
        architecture = read_json(folder / "config.json")["architectures"][0]
        listed = ", ".join(f"`{branch}`" for branch in branches)
        card += CHECKPOINTS.format(architecture=architecture, name=name, example=branches[-1], branches=listed)
    for step, branch in zip(steps, branches, strict=True):
        with tempfile.TemporaryDirectory() as temporary:
            target = Path(temporary) / branch
            convert(read_revision(run_dir, source, step), target, **(conversion or {}))
            before = (
                f"> The checkpoint after step {step}.  The card describes the final model, on the branch `main`.\n\n"
            )
            with _explained(name):
                api.create_branch(name, branch=branch, exist_ok=True)
                _upload(api, name, target, branch, card.replace("\n# ", f"\n{before}# ", 1))
    with _explained(name):
        _upload(api, name, folder, "main", card)
    return str(address)


def _upload(api: HfApi, name: str, folder: Path, branch: str, card: str) -> None:
    """Push the files of a folder, with a different README.md, as one commit; none if the branch has them."""
    message = (
        f"Upload {branch.replace('-', ' ')} with albert_jax" if branch != "main" else "Upload the model with albert_jax"
    )
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [one for one in names if one not in NOT_PUSHED and "/." not in f"/{one}"]
    operations = [CommitOperationAdd(one, folder / one) for one in visible]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api.create_commit(name, operations, commit_message=message, revision=branch)
    log.info("%s: pushed %s", name, branch)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Errors of its HTTP library come through too, and differ between versions.
        reason = first_line(error)[:200]
        raise InputError(f"--push-to-hub {name}: {reason}; rerun the command to push what is missing") from None
