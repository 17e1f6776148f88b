"""What must be known of a source before anything is written: how much is on either side, and whether it is of use."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable

from albert_jax.config import require
from albert_jax.data import sources
from albert_jax.data.sources import DataConfig

SPLITS = ("train", "heldout")


def split_of(text: str, config: DataConfig) -> str:
    """The split of a document, by its content alone."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "heldout" if share < config.eval_fraction else "train"


def count(texts: Iterable[str], config: DataConfig) -> Counter[str]:
    """Usable documents of each split, and their characters; `pairs` is 0 where none has two sentences."""
    counts: Counter[str] = Counter()
    for text in texts:
        if text.strip():
            counts[split_of(text, config)] += 1
            counts["characters"] += len(text)
            if not counts["pairs"]:
                counts["pairs"] = sum(1 for _ in itertools.islice(sources.sentences(text, config.language), 2)) == 2
    return counts


def check_counts(counts: Counter[str], config: DataConfig) -> None:
    """Refuses a source of which no training could come.  Raises `InputError`."""
    total = counts["train"] + counts["heldout"]
    require(total > 0, f"data.source '{config.source}' has 0 usable documents")
    require(
        counts["pairs"] > 0,
        f"0 of {total} documents of data.source '{config.source}' have two sentences; no pair can be made: is each sentence a document of its own?",
    )
    for split in SPLITS:
        require(
            counts[split] > 0,
            f"data.eval_fraction {config.eval_fraction} leaves 0 of {total} documents for '{split}'; choose another, or end documents by blank lines",
        )
