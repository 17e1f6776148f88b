"""Notebooks are plain text without outputs, open by saying what one learns, and run in a real kernel with pictures coming out."""

import re
import shutil
from pathlib import Path

import jupytext
import nbclient
import pytest

from .conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PICTURES = {"1_tour": 1, "2_masking_and_pairs": 1, "3_sharing_ablation": 2, "4_inside": 3, "5_hugging_face": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what notebooks read, so that their runs stay out of the checkout."""
    path = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "experiments", path / "experiments")
    (path / "notebooks").mkdir()
    return path / "notebooks"


def test_all_are_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(PICTURES)
    assert [path.name for path in (ROOT / "notebooks").iterdir() if path.suffix == ".ipynb"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_one_learns(path: Path) -> None:
    first = jupytext.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\n\nYou .+", first.source)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executes(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order and one folder: the fourth and fifth look at what the third trained."""
    monkeypatch.setenv("NOTEBOOK_STEPS", "20")
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= PICTURES[path.stem]
    assert not [output for output in outputs if output.output_type == "error"]
