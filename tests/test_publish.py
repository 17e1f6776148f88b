"""Runs on the hub: the model card, and checkpoints as branches.  The real client talks to a server of the tests."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.exchange.load import read, read_checkpoint
from albert_jax.reports.run import summary_table
from albert_jax.training import loop

from .conftest import refused
from .small_models import assert_same
from .synthetic_tasks import finetune_words, write_files

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

from huggingface_hub import ModelCard

from albert_jax.publish import card as card_module
from albert_jax.publish.card import PLACEHOLDER
from albert_jax.publish.revisions import chosen_steps, read_revision

from .hub_server import TOKEN, Hub, client_settings, serving


def run_and_record(words: list[str]) -> Any:
    """Run a training command; return the parameters with which it began."""
    initial, make_init = [], loop.make_init

    def recording(*arguments: Any) -> Callable[[Any], Any]:
        init = make_init(*arguments)

        def call(seed: Any) -> Any:
            state = init(seed)
            initial.append(jax.device_get(state.params))
            return state

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_init", recording)
        assert main(words) == 0
    return initial[0]


@pytest.fixture(scope="module")
def pretrained(short: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with checkpoints at 6 and 12, and its first parameters."""
    run_dir = tmp_path_factory.mktemp("run") / "small"
    return run_dir, run_and_record(short(run_dir, train__seed=3))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A fine-tuned run of two steps from random weights, and its first parameters."""
    folder = tmp_path_factory.mktemp("sst2")
    words = finetune_words("sst2", folder / "run", train__num_train_steps=2, optim__num_warmup_steps=1)
    return folder / "run", run_and_record([*words, *write_files("sst2", folder / "data")])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The client of this process uses the server of the tests.  It has read its settings already, when it was imported."""
    Hub.reset()
    with serving() as address:
        for name, value in client_settings(str(tmp_path / "home"), address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(f"{constants}ENDPOINT", address)
        monkeypatch.setattr(
            f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(f"{constants}HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(f"{constants}HF_HUB_DISABLE_XET", True)
        yield address


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's call of its HTTP library
def test_a_push_that_fails_is_resumed(
    pretrained: tuple[Path, Any], tmp_path: Path, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checkpoints arrive, each once; main comes last; what is fetched again has the parameters of the run.

    Fails if a rerun makes a second commit, if a branch has the parameters of a different step, or if step 0 ignores the seed.
    """
    run_dir, initial = pretrained
    target = tmp_path / "out"
    assert main(["convert", str(run_dir), str(target)]) == 0
    with (target / "README.md").open("a") as file:
        file.write("\nWritten by hand.\n")
    template = (target / "README.md").read_text()
    push = ["convert", str(run_dir), str(target), "--license", "mit", "--push-to-hub"]
    words = [*push, "user/small", "--revisions", "all", "--private"]
    Hub.refused_branch = "step-6"
    assert main(words) == 2
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if "albert-jax: error: " in line]
    assert len(errors) == 1
    assert "Storage is full" in errors[0]
    assert "rerun the command" in errors[0]
    assert TOKEN not in output.out + output.err
    assert Hub.branches["main"] == {}

    Hub.refused_branch = ""
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"{hub}/user/small"
    assert TOKEN not in output.out + output.err
    assert [branch for branch, *_ in Hub.commits] == ["step-0", "step-6", "step-12", "main"]
    assert main(words) == 0
    assert len(Hub.commits) == 4
    assert Hub.private == "private"

    files = {path.name for path in target.iterdir()} - {"conversion.json"}
    assert all(set(Hub.branches[branch]) == files for branch in ("main", "step-0", "step-6", "step-12"))
    assert Hub.branches["main"]["model.safetensors"] == (target / "model.safetensors").read_bytes()
    assert Hub.branches["step-12"]["model.safetensors"] == Hub.branches["main"]["model.safetensors"]
    card = ModelCard(Hub.branches["main"]["README.md"].decode())
    assert card.data.get("license") == "mit"
    assert "\n# user/small\n" in card.text
    assert "Written by hand." in card.text
    assert card.text.count("Branches: `step-0`, `step-6`, `step-12`.") == 1
    assert PLACEHOLDER not in card.text
    assert "> The checkpoint after step 6." in Hub.branches["step-6"]["README.md"].decode()
    assert (target / "README.md").read_text() == template

    expected = {
        "main": read(run_dir).weights.params,
        "step-0": initial,
        "step-6": read_checkpoint(run_dir, 6).weights.params,
    }
    for revision, params in expected.items():
        assert_same(jax.device_get(albert_jax.load(f"user/small@{revision}")[1]), params)

    Hub.reset()
    assert main([*push, "other"]) == 0  # without the user's name, and without checkpoints
    card = ModelCard(Hub.branches["main"]["README.md"].decode())
    assert 'from_pretrained("user/other")' in card.text
    assert "user/small" not in card.text
    assert "Branches: " not in card.text
    different = refused([*push, "user/small", "--sharing", "none", "--hidden-act", "gelu"], capsys)
    assert (
        "was converted with different options (hidden_act: 'gelu_new' -> 'gelu'; sharing: 'all' -> 'none')" in different
    )
    assert "(initialization: 'average' -> 'stepwise')" in refused(
        [*push, "user/small", "--initialization", "stepwise"], capsys
    )
    report = json.loads((target / "conversion.json").read_text())
    (target / "conversion.json").write_text(json.dumps(report | {"parity": {"by": "nobody"}}))
    assert "its model differs from the run's" in refused([*push, "user/small"], capsys)


def test_step_0_of_a_fine_tuned_run(finetuned: tuple[Path, Any]) -> None:
    """Bit for bit, head included.  Fails if step 0 is drawn with a different key."""
    run_dir, initial = finetuned
    drawn = read_revision(run_dir, read(run_dir), 0)
    assert_same(drawn.weights.params, initial)
    assert drawn.weights.model.labels == ("negative", "positive")


def test_step_0_of_tied_layers(pretrained: tuple[Path, Any], tmp_path: Path) -> None:
    """Layers that share parameters in the first half of a run are equal at step 0.  Fails if `tying` is ignored."""
    run_dir = Path(shutil.copytree(pretrained[0], tmp_path / "run"))
    stored = json.loads((run_dir / "config.json").read_text())
    stored["config"]["model"]["sharing"], stored["config"]["tying"] = "none", {"sharing": "all", "end": 0.5}
    (run_dir / "config.json").write_text(json.dumps(stored))
    encoder = read_revision(run_dir, read(pretrained[0]), 0).weights.params["encoder"]
    kernels = encoder["ffn"]["intermediate"]["kernel"]
    assert len(kernels) == 2
    assert np.array_equal(kernels[0], kernels[1])


def test_a_run_of_an_earlier_version(pretrained: tuple[Path, Any], tmp_path: Path, capsys: Any) -> None:
    """Fields that it does not have have their defaults; without a card, the model and its report are there."""
    run_dir = Path(shutil.copytree(pretrained[0], tmp_path / "run"))
    stored = json.loads((run_dir / "config.json").read_text())
    del stored["config"]["init_from"], stored["config"]["train"]["checkpoint_dir"]
    (run_dir / "config.json").write_text(json.dumps(stored))
    assert chosen_steps(run_dir, "all") == [0, 6, 12]
    stored["config"]["train"]["removed"] = 1
    (run_dir / "config.json").write_text(json.dumps(stored))
    assert main(["convert", str(run_dir), str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "note: no model card (README.md): unknown key 'train.removed'" in output
    assert output.splitlines()[-1] == f"{run_dir} -> {tmp_path / 'out'}"


PUBLIC = {
    "/home/joe smith/x.txt": "x.txt",
    "~/a b/*.txt,/data/joe/b.gz": "*.txt,b.gz",
    "hf:/home/joe/data:train": "hf:data:train",
    "/home/joe smith/v.json has 50 pieces, vocab_size is 40": "v.json has 50 pieces, vocab_size is 40",
    "gs://bucket/x,hf:user/y:train": "gs://bucket/x,hf:user/y:train",
    "https://me:secret@host/x": "https://***@host/x",
}


@pytest.mark.parametrize("text", PUBLIC)
def test_what_a_card_hides(text: str) -> None:
    """Folders of local paths, and passwords."""
    assert card_module._public(text) == PUBLIC[text]


def test_card_of_a_fine_tuned_run(finetuned: tuple[Path, Any], tmp_path: Path, capsys: Any) -> None:
    """It has the metrics of summary.json, what differs from the defaults, and no folder of this machine."""
    run_dir, _ = finetuned
    target = tmp_path / "out"
    assert main(["convert", str(run_dir), str(target)]) == 0
    card = ModelCard.load(target / "README.md")
    assert card.data.get("pipeline_tag") == "text-classification"
    assert card.data.get("license") is None
    assert summary_table(json.loads((run_dir / "summary.json").read_text())) in card.text
    assert "| `train.num_train_steps` | `2` |" in card.text
    assert "| `train.platform` |" not in card.text
    assert "AlbertForSequenceClassification.from_pretrained" in card.text
    assert str(tmp_path.parent) not in str(card)
    assert str(run_dir.parent) not in str(card)


def test_convert_without_huggingface_hub(
    finetuned: tuple[Path, Any], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A run is still converted; only the card is missing."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["convert", str(finetuned[0]), str(tmp_path / "out")]) == 0
    assert "note: no model card" in capsys.readouterr().out
    assert not (tmp_path / "out" / "README.md").exists()
    words = ["convert", str(finetuned[0]), str(tmp_path / "x"), "--push-to-hub", "user/small", "--license", "mit"]
    assert "pip install 'albert_jax[hub]'" in refused(words, capsys)


MISTAKES: dict[str, tuple[dict[str, str], str]] = {
    "no license": ({"--license": ""}, "--license: name the license of the model"),
    "name": ({"--push-to-hub": "a/b/c"}, "--push-to-hub a/b/c: "),
    "steps": ({"--revisions": "0,7"}, "--revisions: no checkpoint at step '7'; choose 'all' or some of 0, 6, 12"),
    "word": ({"--revisions": "first"}, "no checkpoint at step 'first'"),
    "format": ({"--to": "albert_jax"}, "--push-to-hub needs --to huggingface"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_the_conversion(
    case: str, pretrained: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    changed, message = MISTAKES[case]
    options = {"--push-to-hub": "user/small", "--license": "mit"} | changed
    words = ["convert", str(pretrained[0]), str(tmp_path / "out"), *(word for pair in options.items() for word in pair)]
    error = refused(words, capsys)
    assert message in error
    assert TOKEN not in error
    assert not (tmp_path / "out").exists()


def test_what_a_push_needs(
    pretrained: tuple[Path, Any], golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run, complete, with a token; and a target that is new or the same conversion."""
    push = ["--push-to-hub", "user/small", "--license", "mit"]
    run_dir = Path(shutil.copytree(pretrained[0], tmp_path / "run"))
    fails = functools.partial(refused, capsys=capsys)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    assert "run 'hf auth login', or set HF_TOKEN" in fails(["convert", str(run_dir), str(tmp_path / "out"), *push])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "SOURCE must be a run folder" in fails(["convert", str(golden), str(tmp_path / "out"), *push])
    assert "exists, but its model differs from the run's" in fails(["convert", str(run_dir), str(golden), *push])
    assert "need --push-to-hub NAME" in fails(["convert", str(run_dir), str(tmp_path / "out"), "--license", "mit"])
    (run_dir / "summary.json").unlink()
    assert "the run is not complete" in fails(["convert", str(run_dir), str(tmp_path / "out"), *push])
