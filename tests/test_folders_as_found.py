"""Checkpoints as people have them: old names, wrappers, missing files, more rows than pieces, formats that are not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import tokenizer_files
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange.load import OTHER_FORMATS, check_vocabulary, read
from albert_jax.exchange.safetensors import _tables
from albert_jax.inference import finetuned, pretrained
from albert_jax.model.heads import Albert

from .conftest import ROOT, refused
from .small_models import SPECIAL, assert_same
from .weight_files import into, random_weights, rewrite, write

WORDS = "albert.embeddings.word_embeddings.weight"


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, np.ndarray]], None]:
    """Rename all tensors."""

    def rename(tensors: dict[str, np.ndarray]) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({change(name): value for name, value in old.items()})

    return rename


def old_names(name: str) -> str:
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        name = name.replace(f"LayerNorm.{new}", f"LayerNorm.{old}").replace(f"layer_norm.{new}", f"layer_norm.{old}")
    return name


NAMES: dict[str, Callable[[str], str]] = {
    "gamma and beta": old_names,
    "data parallel": lambda name: f"module.{name}",
    "wrapped twice": lambda name: f"module.model.{name}",
    "head in the outer wrapper": lambda name: f"model.{'encoder.' * name.startswith('albert.')}{name}",
    "heads outside": lambda name: f"backbone.{name}" if name.startswith("albert.") else name,
    "another name of the encoder": lambda name: name.replace("albert.", "bert.encoder_model.", 1),
}


@pytest.mark.parametrize("case", NAMES)
def test_tensors_with_other_names(case: str, golden: Path) -> None:
    """The parameters are those of the file with the usual names."""
    expected = read(golden).weights
    changed = read(rewrite(golden, renamed(NAMES[case]))).weights
    assert_same(changed.params, expected.params)
    assert changed.model == expected.model


def test_an_albert_inside_another_model(golden: Path) -> None:
    """Other tensors are left out, and named in the report; a tensor with an unknown name inside of ALBERT is an error."""
    encoder = {name for name in read(golden).weights.params if name in ("embeddings", "encoder", "pooler")}

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if not name.startswith("albert.")]:
            del tensors[name]
        renamed(lambda name: name.replace("albert.", "plbert.module."))(tensors)
        tensors["decoder.lstm.weight"] = np.ones(3, np.float32)

    found = read(rewrite(golden, change, architectures=["PLBert"])).weights
    assert set(found.params) == encoder
    assert "decoder.lstm.weight: not part of the ALBERT in plbert.module.*" in found.skipped
    assert "architecture 'PLBert' is unknown; the heads are those for which there are tensors" in found.notes
    rewrite(golden, lambda tensors: tensors.update({"plbert.module.extra": np.ones(2, np.float32)}))
    with pytest.raises(InputError, match="1 unknown"):
        read(golden)


def test_tables_in_tables() -> None:
    """Also beside an optimizer, whose table has the same keys as numbers."""
    state = {WORDS: 1, "step": 3}
    for stored in (state, {"model": state}, {"net": {"bert": state, "predictor": {"weight": 2}}, "epoch": 1}):
        assert list(_tables(stored)) == [state]
    assert list(_tables({"a": {"weight": 1}, "b": [state]})) == []
    assert len(list(_tables({"student": state, "teacher": state}))) == 2


def test_a_config_without_activation(golden: Path) -> None:
    """It is the tanh form of GELU, as in both libraries."""
    expected = read(golden).weights
    found = read(rewrite(golden, lambda tensors: None, hidden_act=None)).weights
    assert found.model.config.hidden_act == "gelu_new"
    assert_same(found.params, expected.params)


@pytest.mark.parametrize("size", [500, 503, 512])
def test_more_rows_than_pieces(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such rows have no piece: they are noted, kept, and never predicted.  Fewer rows than pieces are an error."""
    vocabulary = ROOT / "tests" / "golden" / "tokenizer" / "spiece.model"
    weights = random_weights(vocab_size=size)
    weights.params["predictions"]["bias"][500:] = 100.0  # they would be the best predictions
    folder = write(weights, tmp_path / "hf")
    shutil.copy(vocabulary, folder)
    loaded = read(folder)
    assert any("rows of the embedding table belong to no piece" in note for note in loaded.weights.notes) == (
        size > 500
    )
    model, params, tokenizer = albert_jax.load(folder)
    assert params["embeddings"]["word_embeddings"]["embedding"].shape[0] == size
    found = pretrained.fill_mask(model, params, tokenizer, "the [MASK] text", top_k=3)[0][0]
    assert all(piece["id"] < 500 for piece in found)
    assert len(pretrained.generate(model, params, tokenizer, "the", length=2)["filled"]) == 2
    if size == 500:
        small = write(random_weights(vocab_size=499), tmp_path / "small")
        shutil.copy(vocabulary, small)
        assert "tokenizer has 500 pieces, vocab_size is 499" in refused(["predict", str(small), "a [MASK]"], capsys)


def test_a_model_without_vocabulary(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is loaded with None as tokenizer, and converted; only `predict` needs a vocabulary."""
    _, _, tokenizer = albert_jax.load(golden)
    assert tokenizer is None
    assert "has no vocabulary; name one with --vocab" in refused(["predict", str(golden), "a [MASK]"], capsys)
    into("tokenizer.json", json.dumps(OTHER_TOKENIZER).encode())(golden)
    loaded = read(golden)
    assert loaded.tokenizer is None
    assert "lacks the special piece '<pad>'" in loaded.weights.notes[-1]
    assert main(["convert", str(golden), str(golden.parent / "converted")]) == 0


OTHER_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "truncation": None,
    "padding": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}
"""A tokenizer.json of phonemes or of a different model."""


def test_several_alberts_are_refused(golden: Path) -> None:
    """A bi-encoder has two; neither is chosen silently."""
    rewrite(golden, lambda tensors: tensors.update({f"other.{name}": value for name, value in list(tensors.items())}))
    with pytest.raises(InputError, match="several ALBERTs"):
        read(golden)


def test_an_unknown_class_with_a_classifier(tmp_path: Path) -> None:
    """With a pooler it classifies texts."""
    folder = write(random_weights(("pooler", "classifier"), ("no", "yes")), tmp_path / "hf")
    expected = read(folder).weights
    rewrite(folder, lambda tensors: None, architectures=["MyAlbert"])
    found = read(folder).weights
    assert found.model == expected.model
    assert_same(found.params, expected.params)


def test_a_tokenizer_of_another_model(golden: Path) -> None:
    """With more pieces than the model has rows, it is not used."""
    tokenizer_files.write(open_tokenizer(ROOT / "tests" / "golden" / "tokenizer" / "spiece.model"), 16, golden)
    (golden / "spiece.model").unlink()
    loaded = read(golden)
    assert loaded.tokenizer is None
    assert "has 500 pieces, vocab_size is 40; so it is not used" in loaded.weights.notes[-1]


def test_vocabularies_are_compared(tmp_path: Path) -> None:
    """Rows without pieces are allowed, another number of pieces or another piece is not."""
    vocabulary = ROOT / "tests" / "golden" / "tokenizer" / "spiece.model"
    folder = write(random_weights(vocab_size=512), tmp_path / "hf")
    shutil.copy(vocabulary, folder)
    source = read(folder)
    check_vocabulary("field", source, open_tokenizer(vocabulary))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(InputError, match="field: its vocabulary has 500 pieces, the data's 6"):
        check_vocabulary("field", source, open_tokenizer(tmp_path / "vocab.txt"))


def test_the_newest_checkpoint_of_a_trainer_is_named(tmp_path: Path) -> None:
    """By number, not by name."""
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(
        InputError, match=r"the output of a Trainer; name one of its checkpoints, such as .*/checkpoint-1000$"
    ):
        read(tmp_path)


@pytest.mark.parametrize("glob", OTHER_FORMATS)
def test_other_formats_are_named(glob: str, golden: Path) -> None:
    """With and without a config.json, the message names the format and the way out."""
    (golden / "model.safetensors").unlink()
    (golden / glob.replace("*", "500")).mkdir()
    advice = OTHER_FORMATS[glob].format(match=golden / glob.replace("*", "500"))
    for _ in range(2):
        with pytest.raises(InputError) as error:
            read(golden)
        assert str(error.value) == f"{golden}: {advice}"
        (golden / "config.json").unlink(missing_ok=True)


@pytest.fixture
def tf1(tmp_path: Path) -> Path:
    """A folder with a checkpoint of Google's."""
    source = ROOT / "tests" / "golden" / "tf1" / "inner"
    return Path(shutil.copytree(source, tmp_path / "tf1"))


def test_a_tf1_checkpoint_with_config_json(tf1: Path) -> None:
    """Beside albert_config.json or instead of it."""
    expected = read(tf1).weights
    shutil.copy(tf1 / "albert_config.json", tf1 / "config.json")
    assert_same(read(tf1).weights.params, expected.params)
    (tf1 / "albert_config.json").unlink()
    assert_same(read(tf1).weights.params, expected.params)


def test_the_file_checkpoint_names_one_of_several(tf1: Path) -> None:
    """Also if the named path is that of another machine."""
    index = next(tf1.glob("*.index"))
    expected = read(tf1).weights.params
    for path in list(tf1.glob(f"{index.stem}.*")):
        shutil.copy(path, tf1 / path.name.replace(index.stem, "other"))
    with pytest.raises(InputError, match="several checkpoints"):
        read(tf1)
    (tf1 / "checkpoint").write_text(
        f'model_checkpoint_path: "/cluster/run/{index.stem}"\nall_model_checkpoint_paths: "x"\n'
    )
    assert_same(read(tf1).weights.params, expected)


def test_embeddings_and_positions_as_inputs() -> None:
    """They give the outputs of the ids that they stand for; positions may start anywhere."""
    weights = random_weights()
    params, apply = weights.params, weights.model.apply
    ids = np.arange(12).reshape(2, 6) % 40
    outputs: Any = apply({"params": params}, ids)
    embedded = params["embeddings"]["word_embeddings"]["embedding"][ids]
    same: Any = apply({"params": params}, inputs_embeds=jnp.asarray(embedded), position_ids=np.arange(6)[None])
    np.testing.assert_allclose(same["prediction_logits"], outputs["prediction_logits"], atol=1e-6)
    shifted: Any = apply({"params": params}, ids, position_ids=np.arange(6)[None] + 4)
    moved = {"embedding": np.roll(params["embeddings"]["position_embeddings"]["embedding"], -4, axis=0)}
    table = params["embeddings"] | {"position_embeddings": moved}
    expected: Any = apply({"params": params | {"embeddings": table}}, ids)
    np.testing.assert_allclose(shifted["prediction_logits"], expected["prediction_logits"], atol=1e-6)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
            apply({"params": params}, **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1, 40]]}, r"input_ids: 40 is not in \[0, 40\) \(vocab_size\)"),
        ({"input_ids": [[-1, 4]]}, r"input_ids: -1 is not in \[0, 40\)"),
        ({"input_ids": [[1, 4]], "token_type_ids": [[0, 3]]}, r"token_type_ids: 3 is not in \[0, 2\)"),
        ({"input_ids": [[1, 4]], "position_ids": [[0, 16]]}, r"position_ids: 16 is not in \[0, 16\)"),
    ],
)
def test_ids_outside_their_tables_are_errors(inputs: dict[str, Any], message: str) -> None:
    """Not NaN, nor another row of the table."""
    weights = random_weights()
    with pytest.raises(InputError, match=message):
        weights.model.apply({"params": weights.params}, **{name: np.array(ids) for name, ids in inputs.items()})


def test_a_chinese_albert_from_folder_to_folder(tmp_path: Path) -> None:
    """WordPiece: loaded, a word filled in, entities by character, exported and read back with the same outputs."""
    pieces = [*SPECIAL, *"北京是中国的首都。张伟在", "the", "cat", "##s"]
    weights = random_weights(("token_classifier",), ("O", "B-PER", "I-PER"), vocab_size=len(pieces))
    folder = write(weights, tmp_path / "hf")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    model, params, tokenizer = albert_jax.load(folder)
    assert tokenizer.pieces(tokenizer("张伟在北京。")["input_ids"][0]) == ["[CLS]", *"张伟在北京。", "[SEP]"]
    found = finetuned.entities(model, params, tokenizer, "张伟在北京。")
    assert all(one["text"] == "张伟在北京。"[one["start"] : one["end"]] for one in found[0])
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    again, again_params, same_tokenizer = albert_jax.load(tmp_path / "out")
    assert again == model
    assert same_tokenizer.encode("张伟 cats 在北京。") == tokenizer.encode("张伟 cats 在北京。")
    assert_same(again_params, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 0

    masked = Albert(model.config, ("predictions",))
    head = random_weights(("predictions",), vocab_size=len(pieces)).params
    answers = pretrained.fill_mask(masked, head, tokenizer, "北京是中国的[MASK]都。", top_k=2)
    inputs = tokenizer("北京是中国的[MASK]都。")
    apply: Any = masked.apply
    logits = apply({"params": head}, **inputs)["prediction_logits"][0, 7]
    assert [one["id"] for one in answers[0][0]] == np.argsort(-logits)[:2].tolist()


def test_special_ids_of_other_vocabularies_are_exported(tmp_path: Path) -> None:
    """config.json has the ids of the vocabulary, not those of ALBERT's."""
    pieces = [*"abcdefgh", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder = write(random_weights(vocab_size=len(pieces)), tmp_path / "hf")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    assert open_tokenizer(folder / "vocab.txt").special_ids == (8, 9, 10, 11, 12)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [stored[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [8, 10, 11]
