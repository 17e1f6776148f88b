"""Shell completion: bash completes commands, options, fields, choices and files, without starting a program."""

import subprocess
from pathlib import Path

import pytest

from albert_jax.cli import main

from .conftest import refused

pytest.importorskip("shtab", reason="needs the extra 'completion'")

COMPLETE = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$(complete -p albert-jax | sed 's/.*-F //; s/ .*//')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell, as the command prints it."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return folder


CASES = [  # words, all completions or some of them
    (["pre"], {"pretrain", "prepare", "predict"}, True),
    (["new", "a"], {"ablation"}, True),
    (["pretrain", "--train.num"], {"--train.num-train-steps"}, True),
    (["pretrain", "mine.py", "--train.seed", "3", "--model.shar"], {"--model.sharing"}, True),
    (["pretrain", "--model.sharing", ""], {"all", "attention", "ffn", "none", "cycle"}, False),
    (["pretrain", "mine.py", "--optim.optimizer", "l"], {"lamb", "lion"}, True),
    (["finetune", "--train.platform", "t"], {"tpu"}, True),
    (["pretrain", "--length-buckets", ""], {"true", "false"}, True),
    (["convert", "runs/tiny", "--to", "s"], {"stablehlo"}, True),
    (["completion", ""], {"bash", "zsh"}, True),
    (["pretrain", "mi"], {"mine.py"}, True),
    (["predict", "source", "--file", "mi"], {"mine.py"}, True),
]


@pytest.mark.parametrize(
    ("words", "expected", "all_of_them"),
    CASES,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bash_completes(words: list[str], expected: set[str], all_of_them: bool, scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    script = tmp_path / "complete.bash"
    script.write_text(COMPLETE)
    command = ["bash", "--norc", str(script), str(scripts / "bash"), "albert-jax", *words]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {line.strip() for line in completed.stdout.splitlines()} - {""}
    assert expected <= found
    assert found == expected or not all_of_them


def test_the_script_starts_no_program(scripts: Path, tmp_path: Path) -> None:
    """With an empty PATH it still completes; so completion takes milliseconds, not the seconds of importing jax."""
    script = (
        'source "$1"; COMP_WORDS=(albert-jax pretrain --train.num); COMP_CWORD=2; _shtab_albert_jax; echo "$COMPREPLY"'
    )
    command = ["/bin/bash", "--norc", "-c", script, "bash", str(scripts / "bash")]
    completed = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "--train.num-train-steps"
    assert completed.stderr == ""


def test_the_script_for_zsh(scripts: Path) -> None:
    """It names commands, fields and choices.  zsh itself is not run."""
    text = (scripts / "zsh").read_text()
    assert text.startswith("#compdef albert-jax")
    for part in ("pretrain", "--train.num-train-steps", "cycle-reversed", "stablehlo"):
        assert part in text


def test_unknown_shell_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'fish'" in refused(["completion", "fish"], capsys)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'albert_jax[completion]'" in refused(["completion", "bash"], capsys)
