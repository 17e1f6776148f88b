"""Case and accents: what is kept when a vocabulary and data are prepared, and in everything that comes from them."""

import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece

import albert_jax
from albert_jax.cli import main
from albert_jax.data import builder
from albert_jax.data.prepare import Prepared, prepare, read_split
from albert_jax.data.sentencepiece_tokenizer import train_vocabulary
from albert_jax.data.sources import DataConfig
from albert_jax.data.tokenizer import letters_and_marks, preprocess
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange.load import Source
from albert_jax.finetuning.run import _tokenizer
from albert_jax.inference.pretrained import generate

Words = Callable[..., list[str]]

SENTENCES = {
    "de": ["Die Größe der Bäume überrascht.", "Öl fließt über die Straße.", "Später schläft das Mädchen."],
    "vi": ["Tiếng Việt có nhiều dấu.", "Hôm nay trời đẹp quá.", "Chúng tôi thích phở bò."],
    "ja": ["がぎぐげごの音です。", "パンとバターを食べる。", "日本語のテキストです。"],
}


def corpus_of(language: str, folder: Path) -> Path:
    """Forty documents of three sentences each."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices(SENTENCES[language], k=3)) for _ in range(40)]
    path = folder / f"{language}.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return path


def size_for(language: str, **options: bool) -> int:
    """A vocabulary with every character: 13 special pieces, the space, and the characters."""
    return 14 + len(set(preprocess("".join(SENTENCES[language]), **options)) - set(" ."))


CASED = {"lower_case": False, "keep_accents": True}


def texts(prepared: Prepared) -> str:
    """The text of all training records."""
    return " ".join(prepared.tokenizer.decode(record["tokens"]) for record in read_split(prepared, "train"))


@pytest.mark.parametrize("language", SENTENCES)
def test_characters_are_kept(language: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the options, the decoded data has all characters of the source; without, a warning says that it has not.

    Fails if the vocabulary is trained on other text than is tokenized, or a prepared folder forgets its options.
    """
    source = corpus_of(language, tmp_path)
    config = DataConfig(str(source), **CASED, eval_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    size = size_for(language, **CASED)
    prepared = prepare(config, size)
    assert "keep-accents" not in caplog.text
    # SentencePiece normalizes with NFKC.
    expected = {" ", *unicodedata.normalize("NFKC", "".join(SENTENCES[language]))}
    assert set(texts(prepared)) == expected
    again = prepare(replace(config, source=str(prepared.folder)), size)
    assert set(texts(again)) == expected
    assert (again.tokenizer.lower_case, again.tokenizer.keep_accents) == (False, True)

    plain = prepare(DataConfig(str(source), eval_fraction=0.2, cache_dir=str(tmp_path / "cache")), size_for(language))
    assert plain.fingerprint != prepared.fingerprint
    assert "per 100 letters; keep them with --data.keep-accents true" in caplog.text
    assert not set(texts(plain)) & set("öüäếệấがパ")


def test_letters_with_marks() -> None:
    assert letters_and_marks("Größe, Bäume 42") == (10, 2)  # ß has no mark
    assert letters_and_marks("plain text") == (9, 0)
    assert letters_and_marks("がか") == (2, 1)
    for text in ("ที่นี่", "नमस्ते", unicodedata.normalize("NFD", "Tiếng Việt")):  # marks that are characters of their own
        letters, marks = letters_and_marks(text)
        assert marks == len(unicodedata.normalize("NFKD", text)) - len(preprocess(text)) > 0.1 * letters


def test_default_fingerprints_are_those_of_earlier_versions() -> None:
    """Data that was prepared before these options existed is found."""
    default = DataConfig("x.txt")
    names = ("text_field", "txt_documents", "encoding_errors", "language", "map_punctuation")
    fields = {name: getattr(default, name) for name in names}
    assert builder.reading_digest("source", default) == builder.digest("source", fields)
    assert builder.reading_digest("source", replace(default, keep_accents=True)) != builder.digest("source", fields)


def test_a_run_keeps_its_options(small: Words, tmp_path: Path) -> None:
    """From pretraining to `load`, an exported folder, and generated text."""
    source = corpus_of("de", tmp_path)
    options = {
        "data__lower_case": "false",
        "data__keep_accents": "true",
        "data__source": source,
        "model__vocab_size": size_for("de", **CASED),
    }
    steps = {"train__num_train_steps": 2, "optim__num_warmup_steps": 1, "data__eval_fraction": 0.2}
    words = small(tmp_path / "run", **options, **steps, train__global_batch_size=4)
    assert main(words) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    for folder in ("run", "exported"):
        model, params, tokenizer = albert_jax.load(tmp_path / folder)
        text = "Öl fließt über die Straße."
        assert tokenizer.decode(tokenizer.encode(text)) == text
        generated = generate(model, params, tokenizer, f"{text} [MASK]")
        assert generated["text"].startswith(text)


def test_the_vocabulary_of_a_cased_model_stays_cased(tmp_path: Path) -> None:
    """Also if --data.vocab names the same file; a setting of the configuration has precedence.

    Fails if --data.vocab means the released options.
    """
    train_vocabulary(SENTENCES["de"] * 20, tmp_path / "de.model", size := size_for("de", **CASED), **CASED)
    cased = open_tokenizer(tmp_path / "de.model", **CASED)
    source: Any = Source("huggingface", SimpleNamespace(), cased)

    def options(**data: Any) -> tuple[bool, bool]:
        settings = {"vocab": "", "lower_case": None, "keep_accents": None, "map_punctuation": None} | data
        config: Any = SimpleNamespace(
            data=SimpleNamespace(**settings), model=SimpleNamespace(vocab_size=size), init_from="CASED"
        )
        tokenizer = _tokenizer(config, tmp_path, source, [])
        return tokenizer.lower_case, tokenizer.keep_accents

    assert options() == options(vocab=str(tmp_path / "de.model")) == (False, True)
    assert options(lower_case=True) == (True, True)


def test_offsets_of_bytes(tmp_path: Path) -> None:
    """A character that is spelled with bytes gives each byte its range.  Fails if a byte counts as several characters."""
    model = tmp_path / "bytes.model"
    with (tmp_path / "bytes.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES["de"] * 20),
            model_writer=file,
            vocab_size=340,
            byte_fallback=True,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            minloglevel=2,
        )
    tokenizer = open_tokenizer(model)
    text = "die λ 語 🙂 straße é~x"
    ids, ranges = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    spelled = [text[start:end] for start, end in ranges]
    assert [spelled.count(character) for character in "λ語🙂"] == [2, 3, 4]
    covered = {place for start, end in ranges for place in range(start, end)}
    assert "".join(text[place] for place in sorted(covered)) == text.replace(" ", "")
    assert np.all(np.diff([start for start, _ in ranges]) >= 0)


def test_pretraining_with_a_wordpiece_vocabulary(small: Words, tmp_path: Path) -> None:
    """Prepared, trained, and loaded with the same vocabulary; pieces with ## do not start a word."""
    source = corpus_of("vi", tmp_path)
    letters = sorted(set(preprocess("".join(SENTENCES["vi"]))) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n")
    options = {"data__source": source, "data__vocab": vocabulary, "model__vocab_size": len(pieces)}
    steps = {"train__num_train_steps": 2, "optim__num_warmup_steps": 1, "data__eval_fraction": 0.2}
    assert main(small(tmp_path / "run", **options, **steps, train__global_batch_size=4)) == 0
    assert (tmp_path / "run" / "vocab.txt").read_text() == vocabulary.read_text()
    model, params, tokenizer = albert_jax.load(tmp_path / "run")
    ids = tokenizer.encode("Hôm nay")
    assert tokenizer.pieces(ids) == ["h", "##o", "##m", "n", "##a", "##y"]
    assert tokenizer.starts_word[ids].tolist() == [True, False, False, True, False, False]
    assert generate(model, params, tokenizer, "hom [MASK]")["text"].startswith("hom")
