"""Evaluation without fine-tuning: pseudo-log-likelihoods against a slow computation, minimal pairs, and `albert-jax evaluate`."""

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.exchange import huggingface
from albert_jax.exchange.convert import convert
from albert_jax.exchange.load import read
from albert_jax.exchange.weights import Weights
from albert_jax.pretraining import minimal_pairs
from albert_jax.pretraining.minimal_pairs import PairsConfig, read_pairs
from albert_jax.pretraining.pseudo_likelihood import Scores, make_scorer
from albert_jax.training.partition import make_mesh

from .conftest import assert_input_error, refused
from .small_models import random_model

MODEL, PARAMS, TOKENIZER = random_model(("predictions",))
TEXTS = [
    "the function returns a list of names",
    "",
    "an uncommonly heterogeneous subclassification",
    "a text that is longer than the longest input of the model " * 8,
    "it",
]


def slow_score(text: str, masking: str) -> float:
    """One masked text at a time, without padding and batches; parts of a long text have equal length."""
    ids = TOKENIZER.encode(text)
    total, longest = 0.0, MODEL.config.max_position_embeddings - 2
    apply: Any = jax.jit(lambda inputs: MODEL.apply({"params": PARAMS}, **inputs))
    for part in np.array_split(ids, math.ceil(len(ids) / longest)) if ids else []:
        pieces = TOKENIZER.pieces(part)
        for number, token in enumerate(part.tolist()):
            masked = part.copy()
            masked[number] = TOKENIZER.mask_id
            following = number + 1
            while masking == "word" and following < len(part) and not pieces[following].startswith("▁"):
                masked[following] = TOKENIZER.mask_id
                following += 1
            inputs = TOKENIZER.join(masked)
            logits = apply({name: value[None] for name, value in inputs.items()})["prediction_logits"][0, number + 1]
            total += float(jax.nn.log_softmax(logits)[token])
    return total


@pytest.mark.parametrize("masking", ["token", "word"])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_scores_equal_those_of_one_masked_text_at_a_time(masking: str, num_devices: int) -> None:
    """Fails if padding, the order of rows, the parts of a long text or the last row of a batch is wrong."""
    score = make_scorer(MODEL, TOKENIZER, make_mesh("any", num_devices), masking)
    scores = score(PARAMS, TEXTS)
    assert scores.num_tokens.tolist() == [len(TOKENIZER.encode(text)) for text in TEXTS]
    assert scores.num_tokens.max() > MODEL.config.max_position_embeddings
    assert np.allclose(scores.log_likelihoods, [slow_score(text, masking) for text in TEXTS], rtol=1e-5)


def test_masking_of_words_differs_only_in_words_of_several_tokens() -> None:
    by_token, by_word = (make_scorer(MODEL, TOKENIZER, make_mesh("any", 1), name) for name in ("token", "word"))
    differs = by_token(PARAMS, TEXTS).log_likelihoods != by_word(PARAMS, TEXTS).log_likelihoods
    pieces = [TOKENIZER.pieces(TOKENIZER.encode(text)) for text in TEXTS]
    several = [any(not piece.startswith("▁") for piece in row) for row in pieces]
    assert differs.tolist() == several
    assert {True, False} == set(several)


def test_scores_do_not_depend_on_the_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches and several chunks give what one batch gives."""
    score = make_scorer(MODEL, TOKENIZER, make_mesh("any", 1))
    wanted = [float(score(PARAMS, [text]).log_likelihoods[0]) for text in TEXTS]
    monkeypatch.setattr("albert_jax.pretraining.pseudo_likelihood.TOKENS_PER_BATCH", 80)
    monkeypatch.setattr("albert_jax.pretraining.pseudo_likelihood.BATCHES_PER_CHUNK", 2)
    together = score(PARAMS, TEXTS * 3).log_likelihoods
    assert np.allclose(together, wanted * 3, rtol=1e-5)


RECORDS = [
    {"sentence_good": "He sees.", "sentence_bad": "He see.", "UID": "verbs", "linguistics_term": "agreement"},
    {"sentence_good": "They see.", "sentence_bad": "They sees.", "UID": "verbs", "linguistics_term": "agreement"},
    {"good": "A cat.", "bad": "An cat.", "kind": "articles"},
]
PAIRS = [("He sees.", "He see.", "verbs", "agreement"), ("They see.", "They sees.", "verbs", "agreement")]
PAIRS += [("A cat.", "An cat.", "articles", "articles")]


def test_pairs_are_read_from_files_and_folders(tmp_path: Path) -> None:
    content = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "all.jsonl").write_text(content + "\n")
    assert [tuple(pair) for pair in read_pairs(PairsConfig(str(tmp_path / "all.jsonl")))] == PAIRS
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    (tmp_path / "folder" / "b.csv").write_text('good,bad\n"Yes, sir.","Yes sir,."\n')
    (tmp_path / "folder" / "c.tsv").write_text("bad\tgood\tkind\nyou am\tyou are\tverbs\n")
    (tmp_path / "folder" / "README.md").write_text("notes")
    wanted = [*PAIRS, ("Yes, sir.", "Yes sir,.", "b", "b"), ("you are", "you am", "verbs", "verbs")]
    assert [tuple(pair) for pair in read_pairs(PairsConfig(str(tmp_path / "folder")))] == wanted
    assert len(read_pairs(PairsConfig(str(tmp_path / "folder" / "*.[ct]sv")))) == 2


def test_share_takes_the_same_fraction_of_each_kind(tmp_path: Path) -> None:
    lines = [{"good": f"good {number}", "bad": "bad", "kind": f"kind {number % 3}"} for number in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for share, count in ((0.1, 2), (0.3, 6), (1.0, 20)):
        kinds = [pair.kind for pair in read_pairs(PairsConfig(str(path), share))]
        assert [kinds.count(f"kind {number}") for number in range(3)] == [count] * 3
    assert_input_error(lambda: read_pairs(PairsConfig(str(path), 0.01)), "no pairs (share 0.01 of 60)")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", '{"good": "a", "bad": "b"}\n{"good": \n', ["a.jsonl:2: not JSON"]),
        ("a.jsonl", '{"good": "a"}\n', ["a.jsonl:1: no field bad or sentence_bad; the fields are good"]),
        ("a.jsonl", '{"good": "", "bad": "b"}\n', ["a.jsonl:1: good is empty"]),
        ("a.jsonl", '["a", "b"]\n', ["a.jsonl:1: expected a record"]),
        ("a.csv", "good,bad\nonly one\n", ["a.csv:2: no field bad"]),
        ("a.txt", "a\tb\n", ["a.txt: cannot read this type; use one of .jsonl"]),
    ],
)
def test_malformed_pairs(name: str, content: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert_input_error(lambda: read_pairs(PairsConfig(str(tmp_path / name))), *parts)


def test_accuracy_counts_pairs_of_a_kind_and_averages_kinds() -> None:
    """Pairs of equal sentences count half; the model is replaced by known scores."""
    pairs = [minimal_pairs.Pair(*texts) for texts in [*PAIRS, ("same", "same", "articles", "articles")]]
    known = {"He sees.": -1.0, "He see.": -2.0, "They see.": -5.0, "They sees.": -4.0, "A cat.": -1.0, "An cat.": -3.0}

    def score(params: Any, texts: Any) -> Any:
        return Scores(np.array([known.get(text, 0.0) for text in texts]), np.array([len(text) for text in texts]))

    table = minimal_pairs.accuracies(score, None, pairs)
    assert [tuple(row.values()) for row in table] == [
        ("agreement", "verbs", 2, 0.5, 0.5),  # "He sees." is longer than "He see.", "They see." is shorter
        ("articles", "articles", 2, 0.75, 0.75),
    ]
    assert minimal_pairs.mean_accuracy(table) == 0.625


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of the corpus, in order and reversed; a model that learned anything prefers the order of some."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    words = [
        "return",
        "the",
        "value",
        "of",
        "an",
        "object",
        "in",
        "a",
        "list",
        "or",
        "raise",
        "an",
        "error",
        "if",
        "the",
        "name",
        "is",
        "not",
        "found",
    ]
    rows = [f"{' '.join(words[i : i + 5])},{' '.join(words[i : i + 5][::-1])},order {i % 2}" for i in range(12)]
    path.write_text("good,bad,kind\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def run(short: Callable[..., list[str]], pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that scores minimal pairs in each evaluation."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert main(short(run_dir, pairs__source=pairs_file, train__eval_every=6)) == 0
    return run_dir


def evaluated(words: list[str], output: Path) -> dict[str, Any]:
    assert main(["evaluate", *words, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_a_run_scores_pairs_in_each_evaluation(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval"]["pairs_accuracy"] == minimal_pairs.mean_accuracy(summary["pairs"])
    assert [row["pairs"] for row in summary["pairs"]] == [6, 6]
    shorter = minimal_pairs.mean_accuracy(summary["pairs"], "fewer_tokens")
    assert summary["baselines"]["fewer tokens"] == {"pairs_accuracy": shorter}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/pairs_accuracy" in line for line in lines) == 2


def test_evaluate_repeats_the_metrics_of_a_run(
    run: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the run, and for its copy in Hugging Face's format.  Fails if the vocabulary, the objective or the split differs."""
    summary = json.loads((run / "summary.json").read_text())
    results = evaluated([str(run)], tmp_path / "out.json")
    assert "| mlm_loss |" in capsys.readouterr().out
    for name, value in results["eval"].items():
        assert value == pytest.approx(summary["eval"][name], rel=1e-5), name
    assert set(summary["eval"]) - set(results["eval"]) == {"pairs_accuracy"}
    assert results["baselines"]["unigram"] == summary["baselines"]["unigram"]
    pairs = evaluated([str(run), "--pairs", str(pairs_file)], tmp_path / "out.json")
    assert pairs == {"pairs": summary["pairs"]}
    assert "| mean over kinds | 2 | 12 |" in capsys.readouterr().out
    convert(run, tmp_path / "exported")
    words = ["--data.source", results_source(run), "--data.eval-fraction", "0.1", "--data.cache-dir", cache_of(run)]
    words += [
        "--objective.max-seq-length",
        "32",
        "--objective.max-predictions-per-seq",
        "5",
        "--pairs",
        str(pairs_file),
    ]
    objective = json.loads((run / "config.json").read_text())["config"]["objective"]
    for name in ("masked_lm_prob", "ngram", "do_whole_word_mask", "favor_shorter_ngram", "short_seq_prob"):
        words += [f"--objective.{name}", str(objective[name])]
    exported = evaluated(
        [str(tmp_path / "exported"), *words, "--eval-batch-size", "16", "--max-eval-steps", "2", "--eval-draws", "7"],
        tmp_path / "out.json",
    )
    for name, value in results["eval"].items():
        assert exported["eval"][name] == pytest.approx(value, rel=1e-4), name
    assert exported["pairs"] == summary["pairs"]


def results_source(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["config"]["data"]["source"]


def cache_of(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["config"]["data"]["cache_dir"]


def test_the_checkpoints_of_a_run_are_evaluated_with_its_settings(run: Path, tmp_path: Path) -> None:
    """One checkpoint, the newest of the folder, and that of a run whose name is a number."""
    first, last = (evaluated([str(run / "checkpoints" / step)], tmp_path / "out.json") for step in ("6", "12"))
    assert first["eval"]["mlm_loss"] != last["eval"]["mlm_loss"]
    assert last["eval"] == evaluated([str(run / "checkpoints")], tmp_path / "out.json")["eval"]
    shutil.copytree(run, tmp_path / "2024")
    assert last["eval"] == evaluated([str(tmp_path / "2024")], tmp_path / "out.json")["eval"]


def test_a_model_without_sentence_head_is_evaluated_on_masked_words(run: Path, tmp_path: Path) -> None:
    """Also with fewer positions than the default length."""
    convert(run, tmp_path / "bare")
    weights = read(tmp_path / "bare").weights
    parts = ("embeddings", "encoder", "predictions")
    model = weights.model.clone(heads=("predictions",))
    (tmp_path / "bare" / "model.safetensors").unlink()
    huggingface.write(Weights(model, {part: weights.params[part] for part in parts}), tmp_path / "bare")
    words = ["--data.source", results_source(run), "--data.eval-fraction", "0.1", "--data.cache-dir", cache_of(run)]
    results = evaluated([str(tmp_path / "bare"), *words], tmp_path / "out.json")
    assert set(results["eval"]) == {"mlm_accuracy", "mlm_loss"}
    assert results["eval"]["mlm_loss"] < math.log(500) * 1.1


def test_pseudo_perplexity_of_a_uniform_model_is_the_size_of_the_vocabulary(run: Path, tmp_path: Path) -> None:
    """All word embeddings and biases are 0, so all pieces have the same logit."""
    convert(run, tmp_path / "uniform")
    weights = read(tmp_path / "uniform").weights
    weights.params["predictions"] = jax.tree.map(np.zeros_like, weights.params["predictions"])
    (tmp_path / "uniform" / "model.safetensors").unlink()
    huggingface.write(weights, tmp_path / "uniform")
    text = tmp_path / "text.txt"
    text.write_text("It rained all day. We stayed in.\n\nThe function returns a list.\n")
    words = [str(tmp_path / "uniform"), "--perplexity", str(text)]
    results = evaluated(words, tmp_path / "out.json")["perplexity"]
    assert results["pseudo_perplexity"] == pytest.approx(500, rel=1e-4)
    assert (results["sentences"], results["characters"]) == (3, 18 + 13 + 28)
    nats = results["tokens"] * math.log(500)
    assert results["nats_per_character"] == pytest.approx(nats / results["characters"], rel=1e-4)
    half = evaluated([*words, "--share", "0.4"], tmp_path / "out.json")["perplexity"]
    assert half["sentences"] == 1


def test_invalid_input_of_evaluate(
    run: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(run, tmp_path / "hf")
    folder, pairs = str(tmp_path / "hf"), ["--pairs", str(pairs_file)]
    assert "nothing to evaluate; give --pairs, --perplexity or --data.source" in refused(["evaluate", folder], capsys)
    assert "share must be in (0, 1], got 0" in refused(["evaluate", folder, *pairs, "--share", "0"], capsys)
    assert "masking: unknown value 'piece'" in refused(["evaluate", folder, *pairs, "--masking", "piece"], capsys)
    assert "--perplexity 'nothing' matches no file" in refused(["evaluate", folder, "--perplexity", "nothing"], capsys)
    assert "no file of minimal pairs" in refused(["evaluate", folder, "--pairs", str(tmp_path / "none")], capsys)
    words = ["--data.source", results_source(run), "--data.cache-dir", cache_of(run)]
    message = refused(["evaluate", folder, *words, "--objective.max-seq-length", "64"], capsys)
    assert "has 32 positions; set --objective.max-seq-length 32" in message
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for file in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hf" / file).unlink()
    assert "has no vocabulary; name one with --vocab" in refused(["evaluate", folder, *pairs], capsys)
    assert main(["evaluate", folder, *pairs, "--vocab", str(run / "spiece.model")]) == 0
    missing = ["--output", str(tmp_path / "none" / "out.json")]
    assert "no folder" in refused(["evaluate", folder, *pairs, *missing], capsys)
    shutil.rmtree(tmp_path / "hf")
    assert config["vocab_size"] == 500
    assert "no such" in refused(["evaluate", folder, *pairs], capsys)
