"""`astrid champion`: weights of an upgrade, a file's, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astrid_pipeline.cli.app import app, run
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.weights import PACKAGED
from astrid_pipeline.resources.detector import DETECTOR, DetectorResource, newer_packaged
from astrid_pipeline.resources.tracking import CHAMPION, Tracking
from astrid_pipeline.services import checkup
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.mlflow


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracking]:
    with home() as settings:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        monkeypatch.setenv("ASTRID_HOME", str(settings.home))
        reset_settings()
        yield Tracking()
    reset_settings()


def _listed(*arguments: str) -> dict[int, dict[str, object]]:
    ran = CliRunner().invoke(app, ["champion", *arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return {row["version"]: row for row in json.loads(ran.stdout)}


def _champion(rows: dict[int, dict[str, object]]) -> int:
    (number,) = [number for number, row in rows.items() if "champion" in row["aliases"]]
    return number


def test_an_upgrade_is_told_of_taken_and_undone(tracking: Tracking, tmp_path: Path) -> None:
    assert checkup.champion().startswith("none yet")
    # As an earlier AstrID registered its weights.
    load_model().replace(version="0.0").save(tmp_path / PACKAGED.name)
    with tracking.attempt("packaged weights") as attempt:
        tracking.register(
            DETECTOR,
            {PACKAGED.name: tmp_path / PACKAGED.name},
            attempt.run_id,
            alias=CHAMPION,
            tags={"source": "package"},
        )
    now = load_model()
    assert newer_packaged(tracking) == f"{now.name} {now.version}"
    with pytest.raises(checkup.Advice, match="earlier AstrID"):
        checkup.champion()
    rows = _listed("package", "--why", "new year")
    assert (_champion(rows), rows[2]["description"]) == (2, "new year")
    assert rows[2]["model"] == f"{now.name} {now.version}"
    assert newer_packaged(tracking) is None
    assert checkup.champion() == f"version 2, {now.name} {now.version}"
    assert DetectorResource(tracking=tracking).champion().version == f"{DETECTOR}-2"
    assert _champion(_listed("1")) == 1
    assert DetectorResource(tracking=tracking).champion().version == f"{DETECTOR}-1"
    # What is registered already is not registered anew.
    again = _listed("package")
    assert (_champion(again), len(again)) == (2, 2)


def test_a_trained_file_becomes_the_champion_and_needs_no_packaged_weights(
    tracking: Tracking, tmp_path: Path
) -> None:
    path = tmp_path / "detector.safetensors"
    load_model().replace(version="mine").save(path)
    rows = _listed(str(path))
    assert _champion(rows) == 2
    assert (rows[2]["source"], rows[2]["model"]) == ("file", "astrid-unet mine")
    assert rows[1]["source"] == "package"
    assert newer_packaged(tracking) is None
    path.unlink()
    assert DetectorResource(tracking=tracking).champion().threshold == load_model().threshold


def test_what_is_no_model_changes_nothing(
    tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _champion(_listed()) == 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(PACKAGED.read_bytes()[:-1000])
    for which, word in (("9", "no version 9"), (str(broken), "broken"), (str(tmp_path / "none"), "none")):
        assert run(["champion", which]) != 0
        assert word in capsys.readouterr().err
    assert len(_listed()) == _champion(_listed()) == 1
