"""Notebooks: plain text without outputs, an introduction that says what the reader learns, and cells that run and draw.

They are stored as percent scripts only, because a second file in the notebook format would drift apart from the first, and
because outputs do not diff.  Jupyter opens the scripts through jupytext.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

from .conftest import FAST_COMPILE, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PICTURES = {
    "1_tour": 1,
    "2_masking_and_pairs": 1,
    "3_sharing_ablation": 2,
    "4_inside": 3,
    "5_hugging_face": 1,
    "6_plateau": 3,
    "7_explanations": 3,
}
"""Notebook -> the number of pictures that it draws."""
QUICK = {"STEPS": 2, "SEEDS": 1}
"""Values of constants in the notebooks for this test."""


@pytest.fixture(scope="module")
def executed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each notebook; all run in one kernel and one folder, since 4, 5 and 7 read what 3 trains.

    The namespace is cleared between them, so each has to import what it uses.  The experiments have a smaller corpus here.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    for name in ("pretrain/tiny.py", "ablations/scales/tiny.py"):
        text = (folder / "experiments" / name).read_text()
        assert 'source="python-docs"' in text
        text = text.replace('source="python-docs"', f'source="{corpus}", cache_dir="{folder}/cache"')
        (folder / "experiments" / name).write_text(text.replace("vocab_size=2000", "vocab_size=1000"))
    (folder / "notebooks").mkdir()
    together = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        cells = jupytext.read(path).cells
        for cell in cells:
            for name, value in QUICK.items():
                cell.source = re.sub(rf"^{name} = \d+$", f"{name} = {value}", cell.source, flags=re.MULTILINE)
            cell.metadata["notebook"] = path.stem
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *cells]
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", FAST_COMPILE)  # one device, as the reader has
        patch.setenv("PYTHONPATH", str(ROOT))
        nbclient.NotebookClient(together, timeout=400, resources=resources).execute()
    return {
        path.stem: [
            output
            for cell in together.cells
            if cell.metadata.get("notebook") == path.stem
            for output in cell.get("outputs", [])
        ]
        for path in NOTEBOOKS
    }


def test_all_notebooks_are_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(PICTURES)
    assert [path.name for path in (ROOT / "notebooks").iterdir() if path.suffix == ".ipynb"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_the_reader_learns(path: Path) -> None:
    first = jupytext.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\n\nYou .+", first.source)


def test_the_constants_exist() -> None:
    """Otherwise the notebooks would run at full length here."""
    texts = "".join(path.read_text() for path in NOTEBOOKS)
    assert all(re.search(rf"^{name} = \d+$", texts, flags=re.MULTILINE) for name in QUICK)


@pytest.mark.parametrize("name", PICTURES)
def test_runs_and_draws(name: str, executed: dict[str, list[Any]]) -> None:
    pictures = [output for output in executed[name] if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert not [output for output in executed[name] if output.output_type == "error"]
