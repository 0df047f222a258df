"""The notebooks run from top to bottom on what AstrID makes itself, and show what they promise."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pictures", "told"),
    [
        ("load_a_dataset", 3, "of them real"),
        ("train_on_real_data", 2, "pieces of sky against"),
    ],
)
def test_it_runs(tmp_path, name, pictures, told):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "kept without outputs: they would go stale"
    )
    done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert told in "".join(output.get("text", "") for output in outputs)


def test_all_notebooks_are_run():
    (mark,) = (m for m in test_it_runs.pytestmark if m.name == "parametrize")
    assert {case[0] for case in mark.args[1]} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
