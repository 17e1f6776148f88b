"""The model card of a run: README.md with the metadata that the Hugging Face hub reads.

The card is written without a name and a license; both are filled in when the model is pushed, so a user can edit it before.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import albert_jax
from albert_jax.config import flat, non_defaults, read_json, to_dict, without_passwords
from albert_jax.data.hf_datasets import STREAMED
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.publish.revisions import run_config
from albert_jax.reports.run import summary_table
from albert_jax.reports.tables import markdown_table

PLACEHOLDER = "USER/MODEL"
"""Stands for the model's name in a card that is not pushed yet."""

CLASS_INPUTS = {
    "AlbertForPreTraining": ("fill-mask", 'tokenizer("Paris is the [MASK] of France.", return_tensors="pt")'),
    "AlbertForSequenceClassification": ("text-classification", 'tokenizer("A text.", return_tensors="pt")'),
    "AlbertForTokenClassification": ("token-classification", 'tokenizer("A text.", return_tensors="pt")'),
    "AlbertForQuestionAnswering": ("question-answering", 'tokenizer("A question?", "A text.", return_tensors="pt")'),
    "AlbertForMultipleChoice": (
        "multiple-choice",
        '{name: x[None] for name, x in tokenizer(["A question?"] * 2, ["One.", "Two."], padding=True, return_tensors="pt").items()}',
    ),
}
"""transformers' class -> the hub's name of its task, and inputs for it."""

LOCATIONS = ("run_dir", "data.cache_dir", "train.checkpoint_dir", "init_from")
"""Fields that the table of settings leaves out: where files are, and what the card says in a different row."""

LOCAL_FOLDERS = re.compile(r"(file://|(?<![\w/.])(?!//))[/~].*/(?=.)")
"""From the first `/` or `~` of a local path, but not of an address such as gs://, to the last `/`; folders may have spaces."""

BODY = """
# {name}

ALBERT ([arXiv 1909.11942](https://arxiv.org/abs/1909.11942)) with {parameters:,} parameters, {origin}.

## Training

{training}

Settings that differ from the defaults of albert_jax {version}:

{settings}

## Evaluation
{metrics}

## Use

```python
from transformers import AutoTokenizer, {architecture}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {architecture}.from_pretrained("{name}")
outputs = model(**{inputs})
```

The same with [JAX](https://docs.jax.dev) and albert_jax, which trained the model:

```python
import albert_jax

model, params, tokenizer = albert_jax.load("{name}")
outputs = model.apply({{"params": params}}, **tokenizer("A text."))
```

## Limits

{limits}
"""


def write_card(run_dir: Path, folder: Path, report: dict[str, Any]) -> None:
    """Write README.md into a Hugging Face folder to which `convert` has exported a run.

    Args:
      run_dir: the run.
      folder: the Hugging Face folder.
      report: what `convert` returned.
    """
    stored = read_json(run_dir / "config.json")
    config = run_config(run_dir)
    path = run_dir / "summary.json"
    summary = read_json(path) if path.is_file() else None
    architecture = read_json(folder / "config.json")["architectures"][0]
    task, inputs = CLASS_INPUTS.get(architecture, (None, CLASS_INPUTS["AlbertForSequenceClassification"][1]))
    data = ModelCardData(
        language=getattr(config.data, "language", None),
        library_name="transformers",
        pipeline_tag=task,
        tags=["albert", "albert_jax", "jax"],
        datasets=_hub_datasets(config) or None,
    )
    body = BODY.format(
        name=PLACEHOLDER,
        parameters=report["parameters"],
        origin=_origin(config),
        training=markdown_table(["", ""], _training(config, stored, summary)),
        version=albert_jax.__version__,
        settings=markdown_table(
            ["setting", "value"], [(f"`{name}`", f"`{value}`") for name, value in _settings(config)]
        ),
        metrics=summary_table(summary) if summary else "\nThe run is not complete, so there is no evaluation.",
        architecture=architecture,
        inputs=inputs,
        limits="\n".join(f"- {text}" for text in [*_limits(config, folder), *map(_public, report["notes"])]),
    )
    ModelCard(f"---\n{data}\n---\n{body}").save(folder / "README.md")


def completed(card: ModelCard, name: str, license: str) -> ModelCard:
    """The card with the model's name and license."""
    result = ModelCard(str(card).replace(PLACEHOLDER, name))
    result.data["license"] = license
    return result


def _origin(config: Any) -> str:
    start = f"from `{_public(config.init_from)}`" if config.init_from else "from random weights"
    if isinstance(config, PretrainConfig):
        sentence = config.objective.sentence_objective
        return f"pretrained {start} on masked words" + (f" and {sentence.upper()}" if sentence != "none" else "")
    return f"fine-tuned {start} on the task {config.data.task}"


def _training(config: Any, stored: dict[str, Any], summary: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The rows of the table on the training: what, how long, on what."""
    train = config.train
    length = config.objective.max_seq_length if isinstance(config, PretrainConfig) else config.data.max_seq_length
    steps = f"{train.num_train_steps:,} of {train.global_batch_size:,} sequences of up to {length} tokens"
    rows = [("data", _data(config)), ("steps", steps)]
    if summary:
        rows.append(("tokens", f"{summary['tokens']:,.0f}"))
        rows.append(("time", f"{summary['seconds']:,.0f} s at {summary['tokens_per_second']:,.0f} tokens/s"))
    rows.append(("devices", stored.get("environment", {}).get("devices", "not recorded by the run")))
    rows.append(("seed", str(train.seed)))
    return [*rows, ("software", ", ".join(map(" ".join, stored["versions"].items())))]


def _data(config: Any) -> str:
    if isinstance(config, PretrainConfig):
        return f"{_public(config.data.source)} (language: {config.data.language})"
    files = [config.data.dir, config.data.train_file]
    return f"task {config.data.task}: {', '.join(_public(name) for name in files if name)}"


def _hub_datasets(config: Any) -> list[str]:
    sources = config.data.source.split(",") if isinstance(config, PretrainConfig) else []
    return [one.strip().split(":")[1] for one in sources if one.strip().startswith(STREAMED)]


def _settings(config: Any) -> list[tuple[str, str]]:
    """The fields of a configuration that differ from their defaults."""
    values = flat(to_dict(config))
    return [(name, _public(values[name])) for name in non_defaults(config) if name not in LOCATIONS]


def _limits(config: Any, folder: Path) -> list[str]:
    exported = read_json(folder / "config.json")
    texts = [f"Texts have at most {exported['max_position_embeddings']} tokens."]
    tokenizer = folder / "tokenizer_config.json"
    options = read_json(tokenizer) if tokenizer.is_file() else {}
    if options.get("do_lower_case"):
        texts.append("Text is converted to lower case.")
    if options.get("keep_accents") is False:
        texts.append("Accents are removed.")
    texts.append(
        "The model was evaluated as the table above says, and in no other way: not on other data, and not for bias."
    )
    return texts


def _public(value: Any) -> str:
    """A field's value or a note, without passwords and without the folders of local paths, which may reveal private names."""
    parts = without_passwords(str(value)).split(",")
    return ",".join(LOCAL_FOLDERS.sub("", part) for part in parts)
