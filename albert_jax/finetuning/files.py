"""Where a task's examples come from: the benchmark's files, the user's files, or a data set prepared by TFDS.

Decides which files belong to a split.  `readers.py` turns files into records, and each family interprets the records.
"""

import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, check_fields, choice
from albert_jax.data.lines import COMPRESSIONS, check_encoding
from albert_jax.data.tfds import PREFIX, builder_of
from albert_jax.finetuning.prepared import splits_of


@dataclass(frozen=True)
class TaskDataConfig:
    """The task, its files, and how they become tokens.  Each family adds its own settings."""

    task: str
    """The task: a name in `TASKS` (albert_jax/finetuning/tasks.py)."""
    dir: str = ""
    """Folder of the benchmark's files, or 'tfds:NAME' or 'tfds:FOLDER' of a data set prepared by TFDS."""
    train_file: str = ""
    """Training files (globs, comma-separated) to use instead of those in data.dir."""
    dev_file: str = ""
    """Dev files, likewise; metrics are computed on them, and they select the best checkpoint."""
    test_file: str = ""
    """Test files, likewise; predictions are written for them, and metrics if they have labels."""
    vocab: str = ""
    """SentencePiece model, WordPiece vocabulary (.txt) or tokenizer.json; empty: the vocabulary of --init-from, or train one of model.vocab_size pieces on the task's text."""
    lower_case: bool | None = None
    """Convert text to lower case.  None: as the model of --init-from, else true."""
    keep_accents: bool | None = None
    """Keep accents, umlauts and voicing marks.  None: as the model of --init-from, else false."""
    map_punctuation: bool | None = None
    """Replace curly quotes and dashes, which the released vocabulary lacks.  None: as the model of --init-from, else false."""
    max_seq_length: int = 512
    """S: longer inputs are truncated; question answering and token classification read them in several parts."""
    max_train_samples: int = 0
    """Use only the first N training examples; 0: all."""
    max_eval_samples: int = 0
    """Use only the first N examples of every other split; 0: all."""
    encoding: str = "utf-8"
    """Encoding of the files, for example cp1252 or latin-1."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """On bytes that are invalid in this encoding: stop, or replace and count them."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_encoding(self.encoding)
        check_minimum(self, 0, "max_train_samples", "max_eval_samples")
        check_minimum(self, 8, "max_seq_length")


def check_minimum(config: Any, minimum: int, *fields: str) -> None:
    """Raise InputError if one of the fields is below the minimum."""
    for field in fields:
        if getattr(config, field) < minimum:
            raise InputError(f"{field} must be at least {minimum}, got {getattr(config, field)}")


@dataclass(frozen=True)
class Source:
    """The files of one split, or its name in a TFDS data set."""

    split: str
    paths: tuple[Path, ...] = ()
    prepared: tuple[str, str] | None = None
    """Name of the TFDS data set, and of the split in it."""

    @property
    def name(self) -> str:
        """The files, or data set and split, for messages."""
        return ", ".join(map(str, self.paths)) or "/".join(self.prepared or ())

    @property
    def is_hidden(self) -> bool:
        """True for a split to be predicted: its labels may be missing, but no line may, because servers count lines."""
        return not self.split.startswith(("train", "dev"))

    def limit(self, config: TaskDataConfig) -> int | None:
        """The maximum number of examples; None for all."""
        return (config.max_train_samples if self.split == "train" else config.max_eval_samples) or None


def find(config: TaskDataConfig, patterns: Mapping[str, str]) -> dict[str, Source]:
    """The splits that exist, in the order training, dev, others.

    Args:
      config: names the folder, and files that replace the task's files.
      patterns: split -> glob of the task's files in the folder, or alternatives separated by `|`.

    Raises:
      InputError: no training or no dev files, or a named file does not exist.
    """
    named = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    # --data.dev-file replaces dev_matched and dev_mismatched, --data.test-file every split to be predicted.
    in_dir = {split: glob for split, glob in patterns.items() if not named.get(_kind(split), named["test"])}
    sources: dict[str, Source] = {}
    if config.dir.startswith(PREFIX):
        name = config.dir.removeprefix(PREFIX)
        sources = {
            split: Source(split, (), (name, tfds_split)) for split, tfds_split in splits_of(name, in_dir).items()
        }
    elif config.dir:
        folder = Path(config.dir).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.dir {config.dir}: no such folder")
        matches = {split: _matching_files(folder, pattern) for split, pattern in in_dir.items()}
        sources = {split: Source(split, paths) for split, paths in matches.items() if paths}
    for split, globs in named.items():
        if globs:
            sources[split] = Source(split, _named_files(f"data.{split}_file", globs))
    for kind in ("train", "dev"):
        if not any(_kind(split) == kind for split in sources):
            expected = ", ".join(pattern for split, pattern in patterns.items() if _kind(split) == kind)
            problem = f"no {expected} in data.dir {config.dir}" if config.dir and expected else f"no {kind} data"
            raise InputError(f"{problem}; give --data.dir or --data.{kind}-file{_saved_advice(Path(config.dir))}")
    dev = sorted(split for split in sources if _kind(split) == "dev")
    return {split: sources[split] for split in ["train", *dev, *(s for s in sources if s not in ("train", *dev))]}


def _kind(split: str) -> str:
    return split.split("_")[0]


def _matching_files(folder: Path, pattern: str) -> tuple[Path, ...]:
    """The files of the first alternative that matches, also if they are compressed or, as on the hub, in the folder `data`.

    A .tsv may also be .jsonl, .csv, or .parquet as on the hub.
    """
    for alternative in pattern.split("|"):
        stem, _, suffix = alternative.rpartition(".")
        on_hub = f"{stem.replace('dev', 'validation', 1)}-*.parquet"
        names = (alternative, f"{stem}.jsonl", f"{stem}.csv", f"{stem}.parquet", on_hub)
        for name in names if suffix == "tsv" else (alternative,):
            for variant in (name, *(f"{name}{end}" for end in COMPRESSIONS), f"data/{name}"):
                if paths := tuple(path for path in sorted(folder.glob(variant)) if path.is_file()):
                    return paths
    return ()


def _saved_advice(folder: Path) -> str:
    """What to do with a folder of `save_to_disk` of the library `datasets`; "" for other folders."""
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return "; for a folder of save_to_disk, save each split with Dataset.to_parquet" if is_saved else ""


def _named_files(field: str, globs: str) -> tuple[Path, ...]:
    paths: list[Path] = []
    for pattern in map(str.strip, globs.split(",")):
        matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not matches:
            raise InputError(f"{field} {pattern}: no such file")
        if folder := next((match for match in matches if Path(match).is_dir()), None):
            raise InputError(f"{field} {folder}: a folder; name its files{_saved_advice(Path(folder))}")
        paths += map(Path, matches)
    return tuple(paths)


def fingerprint(sources: Mapping[str, Source]) -> str:
    """SHA-256 of the splits' files with their answer files, or of the TFDS data set's name and version."""
    digest = hashlib.sha256()
    for split, source in sources.items():
        digest.update(f"{split} {builder_of(source.prepared[0]).info.full_name if source.prepared else ''}".encode())
        for path in (file for data_file in source.paths for file in (data_file, answers_file(data_file))):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def answers_file(path: Path) -> Path:
    """The .ans file with the answers to a file of questions (MCTest)."""
    return path.with_name(without_compression(path.name).rpartition(".")[0] + ".ans")


def without_compression(name: str) -> str:
    """A file's name without a suffix such as .gz."""
    suffix = next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
