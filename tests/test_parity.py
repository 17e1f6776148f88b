"""Live parity with Hugging Face's transformers, where torch and transformers are installed: `pytest -m parity -n0 -s`.

Prints the largest absolute difference of each case.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import tokenizer_files
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange import convert, huggingface
from albert_jax.exchange.load import read
from albert_jax.exchange.weights import Weights
from albert_jax.inference import finetuned
from albert_jax.model.albert import PRESETS, AlbertConfig
from albert_jax.model.heads import PRETRAINING, Albert, param_shapes
from albert_jax.pretraining.pseudo_likelihood import make_scorer
from albert_jax.training.partition import make_mesh

from .conftest import HARD_TEXTS, RELEASED_VOCABULARY, ROOT
from .small_models import SMALL, SPECIAL, TEXT, assert_near, assert_same, random_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch", reason="live parity needs torch and transformers")
transformers = pytest.importorskip("transformers", reason="live parity needs torch and transformers")

CASES: dict[str, dict[str, Any]] = {
    "shared": {},
    "gelu (erf)": {"hidden_act": "gelu"},
    "2 groups": {"sharing": "groups", "num_hidden_groups": 2},
    "2 groups of 2 inner": {"sharing": "groups", "num_hidden_groups": 2, "inner_group_num": 2},
    "unshared": {"sharing": "none"},
    "attention shared": {"sharing": "attention"},
    "feed-forward shared": {"sharing": "ffn"},
    "14 groups of 18 layers": {"sharing": "groups", "num_hidden_groups": 14, "num_hidden_layers": 18},
    "table of sets": {"sharing": "attention=0,1,1,0;ffn=0,1,2,1"},
    "own LayerNorms": {"per_pass": "norm"},
    "own gains": {"per_pass": "scale"},
    "own vectors": {"per_pass": "embedding"},
    "LoRA": {"per_pass": "lora", "sharing": "cycle", "num_hidden_groups": 2},
    "E = H": {"embedding_size": 16},
    "heads of 128": {"hidden_size": 256},
    "no SOP head": {"heads": ("predictions",)},
    "bare encoder": {"heads": ("pooler",)},
    "sequence labels": {"heads": ("pooler", "classifier"), "labels": ("no", "yes", "maybe")},
    "token labels": {"heads": ("token_classifier",), "labels": ("O", "B", "I")},
    "multiple choice": {"heads": ("pooler", "choice_classifier")},
    "answers": {"heads": ("qa_outputs",)},
    "base": vars(PRESETS["base"]),
}


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The warnings of transformers."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield said
    logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_transformers(case: str, tmp_path: Path, warned: list[str]) -> None:
    """Random weights of ours, exported; loaded with no warning, no missing and no unexpected tensor."""
    fields = SMALL | CASES[case]
    heads, labels = fields.pop("heads", PRETRAINING), fields.pop("labels", ())
    model = Albert(AlbertConfig(**fields), heads, labels)
    random = np.random.default_rng(0)
    spread = 0.04 if case == "base" else 0.3
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * spread, param_shapes(model))
    huggingface.write(Weights(model, params), tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    _, loading_info = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading_info.values()), loading_info
    inputs = convert.sample_inputs(model.config)
    seen = huggingface.transformers_outputs(tmp_path, inputs)
    assert seen is not None
    assert not warned
    wanted = convert.outputs(Weights(model, params), inputs)
    names = wanted.keys() & seen.keys()
    expected = {
        "choice_classifier": "logits",
        "predictions": "prediction_logits",
        "sop_classifier": "sop_logits",
        "qa_outputs": "start_logits",
    }
    assert {"last_hidden_state"} | {expected[head] for head in heads if head in expected} <= names
    assert_near(case, wanted, {name: seen[name] for name in names})


@pytest.mark.parametrize("switches", [{}, {"keep_accents": True}, {"map_punctuation": True}], ids=str)
def test_token_ids_equal_those_of_transformers(
    switches: dict[str, bool],
    tmp_path: Path,
    warned: list[str],
    vocabulary: Path,
) -> None:
    """By AutoTokenizer on hard text and a real document, with segments; and ours of what transformers saves again."""
    ours = open_tokenizer(RELEASED_VOCABULARY if RELEASED_VOCABULARY.is_file() else vocabulary, **switches)
    tokenizer_files.write(ours, 512, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not warned
    prose = [line for line in (os.__doc__ or "").splitlines() if line] + [TEXT, '(born 1,999, in X-Y; ‘so’) "quoted".']
    # transformers keeps NUL, which becomes <unk>; we drop it.
    texts = [text for text in [*HARD_TEXTS, *prose, "``so'' it goes, in 2010,"] if "\0" not in text]
    for text in texts:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
    one, pair = theirs("a [MASK] cat", "in 2010, (x)"), ours("a [MASK] cat", "in 2010, (x)")
    assert {name: value[0].tolist() for name, value in pair.items()} == dict(one)
    theirs.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "spiece.model").exists()  # transformers 5 leaves it out
    back = tokenizer_files.read(tmp_path / "again")
    assert back is not None
    assert back.encode_batch(texts) == ours.encode_batch(texts)


def test_a_chinese_albert(tmp_path: Path) -> None:
    """WordPiece: fine-tuned here from a folder of transformers, exported; transformers has the same ids and classes.

    Fails if the vocabulary's special ids, its steps or the labels are lost on the way.
    """
    pieces = [*SPECIAL, *"北京是中国的首都。好坏电影很这部", "##s", "cat"]
    config = transformers.AlbertConfig(**SMALL | {"vocab_size": len(pieces)}, num_labels=2)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "hub")
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "hub")
    lines = ["这部电影很好。\t1", "这部电影很坏。\t0"] * 16
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    options = {
        "--init-from": tmp_path / "hub",
        "--data.dir": tmp_path,
        "--run-dir": tmp_path / "run",
        "--data.max-seq-length": 16,
        "--train.num-train-steps": 60,
        "--train.global-batch-size": 8,
        "--train.eval-every": 30,
        "--optim.num-warmup-steps": 2,
        "--optim.learning-rate": 0.003,
        "--mesh.data": 1,
    }
    words = [str(word) for option in options.items() for word in option]
    assert main(["finetune", str(ROOT / "experiments" / "finetune" / "sst2.py"), *words]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    model, params, tokenizer = albert_jax.load(tmp_path / "run")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for text in ("这部电影很好。", "这部电影很坏。", "中国 cats 首都"):
        ids = theirs(text, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == tokenizer(text)["input_ids"][0].tolist()
        with torch.no_grad():
            logits = network(**ids).logits[0].numpy()
        ours = finetuned.classify(model, params, tokenizer, text)[0]["probabilities"]
        np.testing.assert_allclose(list(ours.values()), jax.nn.softmax(logits), atol=1e-5)
    assert [finetuned.classify(model, params, tokenizer, line.split("\t")[0])[0]["label"] for line in lines[:2]] == [
        "positive",
        "negative",
    ]


def test_pickled_weights_of_transformers_4(tmp_path: Path) -> None:
    """What transformers 4 saved: a pickle with buffers and tied tensors; read by torch, only when allowed."""
    model = Albert(AlbertConfig(**SMALL))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), param_shapes(model))
    huggingface.write(Weights(model, params), tmp_path)
    network = transformers.AlbertForPreTraining.from_pretrained(tmp_path)
    stored = network.state_dict() | {"albert.embeddings.position_ids": torch.arange(16)[None]}
    assert "predictions.decoder.weight" in stored
    (tmp_path / "model.safetensors").unlink()
    torch.save(stored, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="refusing to load a pickle"):
        read(tmp_path)
    assert_same(read(tmp_path, allow_pickle=True).weights.params, params)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(2), {"epoch": 3, "state_dict": {}}, {0: torch.ones(2)}], ids=str
)
def test_pickles_of_other_objects_are_refused(content: Any, tmp_path: Path) -> None:
    huggingface.write(Weights(Albert(AlbertConfig(**SMALL), ()), _zeros()), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"expected a table of name -> tensor; save model.state_dict\(\) and nothing else"
    ):
        read(tmp_path, allow_pickle=True)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/albert_jax_was_here",)


def test_pickle_runs_nothing(tmp_path: Path) -> None:
    """Even where pickles are allowed."""
    huggingface.write(Weights(Albert(AlbertConfig(**SMALL), ()), _zeros()), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"albert.pooler.bias": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="torch cannot load it"):
        read(tmp_path, allow_pickle=True)
    assert not Path("/tmp/albert_jax_was_here").exists()


def _zeros() -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(Albert(AlbertConfig(**SMALL), ())))


def test_pseudo_log_likelihoods_equal_those_of_transformers(tmp_path: Path) -> None:
    """Tokenized, masked and scored by transformers, one masked copy at a time (Salazar et al., arXiv 1910.14659)."""
    model, params, tokenizer = random_model(("predictions",))
    huggingface.write(Weights(model, params), tmp_path)
    tokenizer_files.write(tokenizer, 80, tmp_path)
    reference_model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokenize = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["The function returns a list of names.", "An uncommonly heterogeneous subclassification!", "It"]
    wanted = []
    for text in texts:
        inputs = tokenize(text, return_tensors="pt")
        ids = inputs["input_ids"].clone()
        total = 0.0
        for position in range(1, ids.shape[1] - 1):
            inputs["input_ids"] = ids.clone()
            inputs["input_ids"][0, position] = tokenize.mask_token_id
            with torch.no_grad():
                logits = reference_model(**inputs).logits[0, position]
            total += float(torch.log_softmax(logits, -1)[ids[0, position]])
        wanted.append(total)
    found = make_scorer(model, tokenizer, make_mesh("any", 1))(params, texts).log_likelihoods
    print(f"pseudo-log-likelihoods: {np.abs(found - wanted).max():.1e} of {np.abs(wanted).max():.0f} nats")
    assert np.allclose(found, wanted, rtol=1e-5)
