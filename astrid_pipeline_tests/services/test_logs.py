"""The log as JSON lines: every line is whole, says what it is about, and holds no secret."""

import json
import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from astrid_pipeline import logs
from astrid_pipeline.errors import PixelError
from astrid_pipeline.night.outcome import for_each
from astrid_pipeline.services.dagster_home import dagster_instance
from astrid_pipeline.settings import Settings, load_settings, reset_settings
from astrid_pipeline_tests.services.homes import home

log = logging.getLogger("astrid_pipeline.night.outcome")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a home that logs to a file; the handlers are taken away afterwards."""
    with home() as made:
        where = made.home / "logs" / "astrid.jsonl"
        monkeypatch.setenv("ASTRID_HOME", str(made.home))
        monkeypatch.setenv("ASTRID_LOG_JSON", str(where))
        monkeypatch.setenv("DAGSTER_HOME", "")
        reset_settings()
        yield load_settings()
        root = logging.getLogger()
        for handler in [each for each in root.handlers if isinstance(each, logs.JsonLines)]:
            root.removeHandler(handler)
        logging.getLogger("astrid_pipeline").setLevel(logging.NOTSET)
    reset_settings()


def lines(settings: Settings) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(settings.log_json).read_text().splitlines()]


def refuse(item: int) -> int:
    if item:
        raise PixelError("all blank", remedy="look at the camera")
    return item


def test_an_exposure_that_fails_is_named(own: Settings) -> None:
    logs.start(own)
    logs.start(own)  # twice is once
    with logs.about(field="m31", night="2026-01-02"):
        for_each({"e0": 0, "e1": 1}, refuse, stage="difference_images")
    log.info("afterwards")
    failed, after = lines(own)
    assert failed["field"] == "m31"
    assert failed["night"] == "2026-01-02"
    assert failed["exposure"] == "e1"
    assert failed["stage"] == "difference_images"
    assert failed["level"] == "WARNING"
    assert "all blank" in failed["message"]
    assert "exposure" not in after


def test_a_traceback_is_in_its_line(own: Settings) -> None:
    logs.start(own)
    try:
        raise ValueError("a line\nand another")
    except ValueError:
        log.exception("unforeseen")
    (line,) = lines(own)
    assert "ValueError: a line\nand another" in line["error"]


def test_secrets_are_blotted_out(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {
        "ASTRID_DATABASE_URL": ("postgresql://a:pass%2Fword-1@h/postgres", "pass%2Fword-1"),
        "ASTRID_ALERT_WEBHOOK": ("https://hooks.example/T0/abcdef", "abcdef"),
        "ASTRID_SMTP": ("smtp://u:mail-pass-2@h:587", "mail-pass-2"),
        "AWS_SECRET_ACCESS_KEY": ('quote"key-3', 'quote"key-3'),
        "MAST_API_TOKEN": ("token-4-token", "token-4-token"),
    }
    for name, (value, _) in hidden.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    logs.start(settings)
    for _, (value, _) in hidden.items():
        log.error("cannot connect to %s", value)
    log.error("and pass/word-1 itself")
    text = Path(settings.log_json).read_text()
    assert len(lines(settings)) == len(hidden) + 1
    for _, secret in hidden.values():
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text
    assert "pass/word-1" not in text


def chatter(number: int) -> None:
    logs.start(load_settings())
    for i in range(200):
        log.warning("%d %d %s", number, i, "x" * 20_000)


def test_lines_of_several_processes_do_not_mix(own: Settings) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=chatter, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(lines(own)) == 600


NIGHTS = dg.MultiPartitionsDefinition(
    {
        "field": dg.StaticPartitionsDefinition(["m31"]),
        "night": dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01"),
    }
)


@dg.asset(partitions_def=NIGHTS)
def calibrated_frames(context: dg.AssetExecutionContext) -> None:
    """Say something by Dagster's log and by Python's own."""
    context.log.info("by Dagster")
    for_each({"e1": 1}, refuse, stage="calibrated_frames", progress=context.log.info)


@pytest.mark.postgres
def test_a_run_tells_field_and_night(own: Settings) -> None:
    with dagster_instance() as instance:
        key = dg.MultiPartitionKey({"field": "m31", "night": "2026-01-05"})
        result = dg.materialize([calibrated_frames], instance=instance, partition_key=key)
    assert result.success
    found = lines(own)
    for word in ("by Dagster", "all blank", "calibrated_frames 1/1"):
        (line,) = [line for line in found if word in line["message"]]
        assert (line["field"], line["night"]) == ("m31", "2026-01-05"), line
        assert line["run"] == result.run_id
        assert line["step"] == "calibrated_frames"
    assert [line["exposure"] for line in found if "exposure" in line] == ["e1", "e1"]
    events = {line.get("event") for line in found}
    assert {"STEP_START", "ASSET_MATERIALIZATION", "RUN_SUCCESS"} & events >= {
        "STEP_START",
        "ASSET_MATERIALIZATION",
    }


def test_nothing_is_written_where_nothing_is_set(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    logs.start(load_settings(home=tmp_path))
    assert logging.getLogger().handlers == before
