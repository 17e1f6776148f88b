"""Hugging Face's tokenizer files: the `tokenizers` library, which transformers uses, gives the same ids; reading them back."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from albert_jax.config import InputError
from albert_jax.data import tokenizer_files
from albert_jax.data.tokenizer_files import open_tokenizer

from .conftest import GOLDEN_TOKENIZER, RELEASED_VOCABULARY, needs_released_vocabulary
from .golden.make_tokenizer import TEXTS

OPTIONS: list[dict[str, bool]] = [
    {},
    {"keep_accents": True},
    {"keep_accents": True, "lower_case": False},
    {"map_punctuation": True},
]
PATHS = {"small": GOLDEN_TOKENIZER / "spiece.model", "released": RELEASED_VOCABULARY}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocabulary", ["small", pytest.param("released", marks=needs_released_vocabulary)])
def test_tokenizers_library_gives_the_same_ids(vocabulary: str, options: dict[str, bool], tmp_path: Path) -> None:
    """On hard text; fails if '2010,' keeps its score, or if text is not split at user-defined symbols such as '-' first."""
    ours = open_tokenizer(PATHS[vocabulary], **options)
    tokenizer_files.write(ours, 512, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
    for pair in (("a [MASK] cat", "in 2010, (x)"), ("alone [MASK], 7,",)):
        encoding, expected = theirs.encode(*pair), ours(*pair)
        assert encoding.ids == expected["input_ids"][0].tolist()
        assert encoding.type_ids == expected["token_type_ids"][0].tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_read_back(file: str, options: dict[str, bool], tmp_path: Path) -> None:
    """From either file alone; transformers 5 saves only tokenizer.json."""
    ours = open_tokenizer(PATHS["small"], **options)
    tokenizer_files.write(ours, 128, tmp_path)
    for name in {"spiece.model", "tokenizer.json"} - {file}:
        (tmp_path / name).unlink()
    back = tokenizer_files.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert (back.special_ids, back.vocab_size) == (ours.special_ids, ours.vocab_size)
    assert (back.starts_word == ours.starts_word).all()
    names = ("map_punctuation", "keep_accents", "lower_case")
    assert [getattr(back, name) for name in names] == [getattr(ours, name) for name in names]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_are_read_from_tokenizer_files(options: dict[str, bool], tmp_path: Path) -> None:
    """Without tokenizer_config.json; fails if the defaults are used then."""
    ours = open_tokenizer(PATHS["small"], **options)
    tokenizer_files.write(ours, 128, tmp_path)
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    back = tokenizer_files.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)


def test_folder_without_tokenizer_files(tmp_path: Path) -> None:
    assert tokenizer_files.read(tmp_path) is None
    tokenizer = tokenizer_files.read(tmp_path, PATHS["small"])
    assert tokenizer is not None
    assert tokenizer.path == PATHS["small"]


def rewrite_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def rewrite(path: Path) -> None:
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))

    return rewrite


@dataclasses.dataclass
class Bad:
    change: Callable[[Path], Any]
    message: str


BAD = {
    "no JSON": Bad(lambda path: path.write_text("{"), "not a file of the tokenizers library"),
    "cut short": Bad(lambda path: path.write_text(path.read_text()[:-9]), "not a file of the tokenizers library"),
    "not UTF-8": Bad(lambda path: path.write_bytes(b'{"a": "\xff"}'), "not a file of the tokenizers library"),
    "no model": Bad(rewrite_json(lambda t: t.pop("model")), "not a file of the tokenizers library"),
    "unk_id": Bad(rewrite_json(lambda t: t["model"].update(unk_id="1")), "not a file of the tokenizers library"),
    "piece is a number": Bad(
        rewrite_json(lambda t: t["model"]["vocab"].__setitem__(9, [7, 0.0])), "not a file of the tokenizers library"
    ),
    "specials": Bad(
        rewrite_json(lambda t: t.update(added_tokens=[], model=t["model"] | {"vocab": t["model"]["vocab"][:4]})),
        "lacks the special piece",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gives_a_one_line_error(case: str, tmp_path: Path) -> None:
    tokenizer_files.write(open_tokenizer(PATHS["small"]), 512, tmp_path)
    (tmp_path / "spiece.model").unlink()
    BAD[case].change(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=BAD[case].message) as caught:
        tokenizer_files.read(tmp_path)
    assert "\n" not in str(caught.value)


def wordpiece(folder: Path, pieces: str = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s 北 京 a , ##e ä") -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces.split()) + "\n")
    return path


HARD = ["The cats, 北京 ä", "[CLS] a [MASK]", "", "ca\u0301ts  the\tthe", "xyz 北a京"]


@pytest.mark.parametrize("options", [{}, {"lower_case": False, "keep_accents": True}, {"keep_accents": True}], ids=str)
def test_wordpiece(options: dict[str, bool], tmp_path: Path) -> None:
    """The ids are those of the exported tokenizer.json, and the tokenizer survives a folder and pickling.

    Fails if "[CLS]" in a text becomes the token.
    """
    ours = open_tokenizer(wordpiece(tmp_path), **options)
    cased = "lower_case" in options
    assert ours.pieces(ours.encode("The cats, 北京"))[0] == ("[UNK]" if cased else "the")
    assert ours.pieces(ours.encode("cats, 北京")) == ["cat", "##s", ",", "北", "京"]
    assert ours.encode("ä") == ([13] if options else [10])
    assert ours.starts_word.tolist() == [not piece.startswith("##") for piece in ours.pieces(range(14))]
    assert ours.cls_id not in ours.encode("[CLS] a")
    ids, ranges = ours.encode_with_offsets("The cats, 北京")
    assert ["The cats, 北京"[start:end] for start, end in ranges] == ["The", "cat", "s", ",", "北", "京"]
    assert ids == ours.encode("The cats, 北京")
    (tmp_path / "written").mkdir()
    tokenizer_files.write(ours, 64, tmp_path / "written")
    back, pickled = tokenizer_files.read(tmp_path / "written"), pickle.loads(pickle.dumps(ours))
    assert back is not None
    for other in (back, pickled):
        assert other.encode_batch(HARD) == ours.encode_batch(HARD)
        assert (other.options, other.special_ids, other.sha256) == (ours.options, ours.special_ids, ours.sha256)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "written" / "tokenizer.json"))
    assert theirs.encode("the cats", "a").ids == ours("the cats", "a")["input_ids"][0].tolist()
    assert (
        json.loads((tmp_path / "written" / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    )


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ("[PAD] [CLS] [SEP] [MASK] a", "not a WordPiece vocabulary: it has no"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] a a", "a piece occurs twice"),
        ("[PAD] [UNK] [CLS] [SEP] a", "lacks the special piece"),
    ],
)
def test_bad_wordpiece_vocabularies(pieces: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_tokenizer(wordpiece(tmp_path, pieces))


def test_a_folder_of_hugging_face_keeps_its_own_steps(tmp_path: Path) -> None:
    """A tokenizer.json that replaces `` and '' has precedence over spiece.model, unless this package wrote it."""
    tokenizer_files.write(open_tokenizer(PATHS["small"]), 512, tmp_path)
    replaced = [{"type": "Replace", "pattern": {"String": old}, "content": '"'} for old in ("``", "''")]
    rewrite_json(lambda t: t["normalizer"].update(normalizers=[*replaced, *t["normalizer"]["normalizers"]]))(
        tmp_path / "tokenizer.json"
    )
    text = "``the text''"
    ours = tokenizer_files.read(tmp_path)
    rewrite_json(lambda t: t.pop("map_punctuation"))(tmp_path / "tokenizer_config.json")
    own_steps = tokenizer_files.read(tmp_path)
    assert ours is not None
    assert own_steps is not None
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert own_steps.encode(text) == theirs.encode(text, add_special_tokens=False).ids != ours.encode(text)
    assert own_steps.encode(text) == ours.encode('"the text"')
    (tmp_path / "prepared").mkdir()
    tokenizer_files.write_vocabulary(own_steps, 64, tmp_path / "prepared")
    again = tokenizer_files.read(tmp_path / "prepared")
    assert again is not None
    assert again.encode(text) == own_steps.encode(text)


def test_cased_wordpiece_keeps_accents_and_hangul(tmp_path: Path) -> None:
    """As BERT's rule for a missing strip_accents.  Fails if the vocabulary of a cased model is read with the released options."""
    wordpiece(tmp_path, "[PAD] [UNK] [CLS] [SEP] [MASK] 한국어 é e")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    tokenizer = tokenizer_files.read(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("한국어 é") == [5, 6]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": false}')
    with pytest.raises(InputError, match=r"tokenize_chinese_chars false needs a tokenizer.json"):
        tokenizer_files.read(tmp_path)


def test_lines_of_a_wordpiece_vocabulary(tmp_path: Path) -> None:
    """Only line feeds separate pieces, as in transformers; a lone surrogate is an error in one line."""
    (tmp_path / "vocab.txt").write_bytes("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\na\u2028b\r\nc\r\n".encode())
    tokenizer = open_tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.pieces([5, 6]) == ["a\u2028b", "c"]
    with pytest.raises(InputError, match="lone surrogate"):
        tokenizer.encode("c \udcff")


OTHER_MODELS: dict[str, dict[str, Any]] = {
    "bytes": {"byte_fallback": True, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
    "other names": {"control_symbols": ["<mask>"], "bos_id": 2, "eos_id": 3, "bos_piece": "<s>", "eos_piece": "</s>"},
    "BPE": {"model_type": "bpe", "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
}
"""SentencePiece models that are not trained with the released flags."""


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_exports_of_other_sentencepiece_models(name: str, tmp_path: Path) -> None:
    """The same ids, also of special pieces; a model of another type has no tokenizer.json, and a note says so."""
    with (tmp_path / "x.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([str(text) for text in TEXTS if "\0" not in text] * 30),
            model_writer=file,
            **{"vocab_size": 450, "hard_vocab_limit": False, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
            | {"minloglevel": 2}
            | OTHER_MODELS[name],
        )
    ours = open_tokenizer(tmp_path / "x.model")
    (tmp_path / "out").mkdir()
    notes = tokenizer_files.write(ours, 64, tmp_path / "out")
    assert notes == (
        ["no tokenizer.json: spiece.model is no unigram model, so transformers may give other ids"] * (name == "BPE")
    )
    if name == "BPE":
        return
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert theirs.get_vocab_size() == ours.vocab_size
    for text in ("a cat λ語 in the box", "the text"):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert theirs.encode("a cat", "b").ids == ours("a cat", "b")["input_ids"][0].tolist()


def test_mask_takes_the_space_before_it(tmp_path: Path) -> None:
    """In a tokenizer.json that splits at spaces only with Metaspace, as the library does."""
    tokenizer_files.write(open_tokenizer(PATHS["small"]), 512, tmp_path)
    rewrite_json(lambda t: t.update(pre_tokenizer=t["pre_tokenizer"]["pretokenizers"][1]))(tmp_path / "tokenizer.json")
    ours = open_tokenizer(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours("a [MASK] cat")["input_ids"][0].tolist() == theirs.encode("a [MASK] cat").ids
