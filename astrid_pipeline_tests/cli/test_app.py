"""The command line's frame: help that teaches, exit codes, errors of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from astrid_pipeline import __version__
from astrid_pipeline.cli import app, detect
from astrid_pipeline.errors import ModelError

COMMANDS = ("detect", "demo", "dev", "ingest", "run", "backfill", "train", "evaluate", "status", "doctor")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in (*COMMANDS, "field"):
        assert f" {name} " in shown


@pytest.mark.parametrize("command", [*COMMANDS, "field add", "field discover"])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"astrid {command}" in shown.split("Usage:")[1].split("\n", 1)[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"astrid {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["detekt"], "detect"),
        (["detect", "a.fits"], "reference"),
        (["detect", "a.fits", "b.fits", "--threshold", "1"], "threshold"),
        (["detect", "a.fits", "b.fits", "--method", "magic"], "magic"),
        (["run", "m31", "yesterday"], "YYYY-MM-DD"),
        (["backfill", "m31", "2026-02-02", "2026-02-01"], "before the first"),
        (["field", "add", "a", "--ra", "here", "--dec", "1"], "not an angle"),
        (["field", "add", "a b", "--ra", "10", "--dec", "1"], "a_b"),
        (["field", "add", "a", "--ra", "10", "--dec", "95"], "declination"),
        (["field", "discover", "ftp://x"], "ftp"),
        (["train", "--mode", "custom", "-o", "nowhere"], "--images"),
    ],
)
def test_a_wrong_command_is_told_in_a_line_with_exit_code_2(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[0].startswith("error: ")
    assert word.lower() in told[0].lower()
    assert len(told) <= 2
    assert not any("Traceback" in line for line in told)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Let `astrid detect` raise what the list holds."""
    box: list[BaseException] = []

    def fail(*_: object, **__: object) -> None:
        raise box[0]

    monkeypatch.setattr("astrid_pipeline.cli.compare.compare", fail)
    return box


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (
            ModelError("damaged", where="w.safetensors", remedy="fetch it again"),
            1,
            "w.safetensors: damaged (fetch it",
        ),
        (
            ZeroDivisionError("division\nby zero"),
            app.EXIT_DEFECT,
            "ZeroDivisionError: division by zero (a defect",
        ),
        (KeyboardInterrupt(), app.EXIT_INTERRUPTED, "stopped"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    word: str,
    failing: list[BaseException],
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    arguments = ["detect", "a.fits", "b.fits", "-o", str(tmp_path), "--json"]
    assert app.run(arguments) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert word in plain.err
    assert len(plain.err.strip().splitlines()) == 1
    if isinstance(error, Exception):
        assert app.run([*arguments, "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_the_installed_command_starts_quickly_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from astrid_pipeline.cli.app import run; run(['--version']);"
        "print(sorted({'torch', 'dagster', 'mlflow', 'astropy', 'sqlalchemy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_main_ends_the_process_with_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "astrid_pipeline.cli", "run", "x", "y"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "stem"), [("b.fits", "b"), ("b.fits.fz", "b"), ("n.1.fit.gz", "n.1"), (".fits", "astrid")]
)
def test_the_default_folder_is_named_after_the_image(name: str, stem: str) -> None:
    assert detect._stem(Path("a") / name) == stem
