"""Steps that fail: what may pass is tried again, what stays is not, a defect is not; by Dagster's own event log."""

# No `from __future__ import annotations` here: Dagster reads the annotations of contexts.

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from astrid_pipeline import step_failures
from astrid_pipeline.errors import ConfigError, LostError, MissingProductError, ServiceError, StoreError
from astrid_pipeline.night.retries import is_permanent
from astrid_pipeline.sensors import _failed
from astrid_pipeline.step_failures import as_failure, telling_dagster, tried_again
from astrid_pipeline_tests.step_tries import tried_in_processes


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_failures, "FIRST_PAUSE", 0.01)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Entered, so that definitions are read with its own state and not with that of whatever was entered before."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(
    instance: dg.DagsterInstance, made: dg.AssetsDefinition
) -> tuple[Counter[str], dg.ExecuteInProcessResult]:
    result = dg.materialize([made], instance=instance, raise_on_error=False)
    return Counter(event.event_type_value for event in result.all_events), result


def failing(
    error: BaseException, times: int, *, yields: bool = False
) -> tuple[dg.AssetsDefinition, list[int]]:
    """Return an asset that fails so many times, and where it notes its tries."""
    tries: list[int] = []

    def meet(context: dg.AssetExecutionContext) -> None:
        tries.append(context.retry_number)
        if len(tries) <= times:
            raise error

    if yields:

        @dg.asset(name="made")
        @tried_again
        def made(context: dg.AssetExecutionContext):
            meet(context)
            yield dg.Output(7)

    else:

        @dg.asset(name="made")
        @tried_again
        def made(context: dg.AssetExecutionContext) -> int:
            meet(context)
            return 7

    return made, tries


@pytest.mark.parametrize("yields", [False, True])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_what_passes_is_waited_out_by_the_step(
    instance: dg.DagsterInstance, times: int, yields: bool
) -> None:
    made, tries = failing(StoreError("the server answered 503"), times, yields=yields)
    events, result = run(instance, made)
    assert result.success
    assert result.output_for_node("made") == 7
    assert tries == list(range(times + 1))
    assert events["STEP_UP_FOR_RETRY"] == events["STEP_RESTARTED"] == times
    assert events["STEP_FAILURE"] == 0


def test_what_lasts_fails_the_step_in_words_and_the_sensor_knows_that_it_may_go_better(
    instance: dg.DagsterInstance,
) -> None:
    error = ServiceError("did not answer", where="mast", remedy="wait")
    error.__cause__ = ConnectionResetError("reset")
    made, tries = failing(error, 99)
    events, result = run(instance, made)
    assert not result.success
    assert tries == [0, 1, 2]
    assert (events["STEP_UP_FOR_RETRY"], events["STEP_FAILURE"]) == (2, 1)
    (record,) = instance.get_run_records()
    found = _failed(instance, record)
    assert (found.error, found.permanent) == ("ServiceError", False)
    assert found.message == "mast: did not answer (wait)"


@pytest.mark.parametrize(
    "error", [ConfigError("no such site"), MissingProductError("not there"), ZeroDivisionError("a defect")]
)
def test_what_stays_is_not_tried_again(instance: dg.DagsterInstance, error: Exception) -> None:
    made, tries = failing(error, 99)
    events, _ = run(instance, made)
    assert tries == [0]
    assert (events["STEP_UP_FOR_RETRY"], events["STEP_FAILURE"]) == (0, 1)
    (record,) = instance.get_run_records()
    found = _failed(instance, record)
    assert found.error == type(error).__name__
    assert found.permanent is (None if isinstance(error, ZeroDivisionError) else True)


def test_an_error_says_itself_that_its_kind_may_pass_but_it_does_not(instance: dg.DagsterInstance) -> None:
    refused = StoreError("the server answered AccessDenied")
    refused.permanent = True
    made, tries = failing(refused, 99)
    run(instance, made)
    assert tries == [0]
    (record,) = instance.get_run_records()
    assert _failed(instance, record).permanent is True


def test_what_only_a_new_run_can_help_is_left_to_it(instance: dg.DagsterInstance) -> None:
    made, tries = failing(LostError("the raw file is not in the store any more"), 99)
    run(instance, made)
    assert tries == [0]
    (record,) = instance.get_run_records()
    assert _failed(instance, record).permanent is False
    assert not is_permanent("LostError")


def test_a_stopped_step_is_not_tried_again(instance: dg.DagsterInstance) -> None:
    made, tries = failing(KeyboardInterrupt(), 99)
    events, result = run(instance, made)
    assert not result.success
    assert tries == [0]
    assert events["STEP_UP_FOR_RETRY"] == 0


def test_steps_wait_longer_each_time_and_not_all_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_failures, "FIRST_PAUSE", 15.0)

    def pause(attempt: int) -> float:
        with pytest.raises(dg.RetryRequested) as asked, telling_dagster(attempt):
            raise StoreError("503")
        return float(asked.value.seconds_to_wait or 0)

    first, second = [[pause(attempt) for _ in range(50)] for attempt in (0, 1)]
    assert 7.5 <= min(first) < 12 < 18 < max(first) <= 22.5
    assert 15 <= min(second) < 24 < 36 < max(second) <= 45
    # Outside of a step, nobody would try again.
    with pytest.raises(dg.Failure) as failure, telling_dagster(None):
        raise StoreError("503")
    assert failure.value.allow_retries


def test_a_failure_says_what_dagster_shows() -> None:
    failure = as_failure(ServiceError("did not answer", where="server", remedy="wait"))
    assert failure.description == "server: did not answer (wait)"
    assert failure.allow_retries
    assert not as_failure(MissingProductError("not there")).allow_retries


@pytest.mark.slow
def test_each_try_in_a_process_of_its_own(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with (
        dg.instance_for_test() as instance,
        dg.execute_job(
            dg.reconstructable(tried_in_processes),
            instance,
            run_config={"ops": {"twice": {"config": {"notes": str(notes)}}}},
        ) as result,
    ):
        assert result.success
        events = Counter(event.event_type_value for event in result.all_events)
    assert notes.read_text().split() == ["0", "1", "2"]
    assert events["STEP_UP_FOR_RETRY"] == events["STEP_RESTARTED"] == 2


def test_all_executors_try_steps_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextvars

    from dagster._core.execution.retries import RetryMode

    from astrid_pipeline import definitions
    from astrid_pipeline.settings import reset_settings

    for kind in ("in_process", "multiprocess", "celery", "k8s"):
        monkeypatch.setenv("ASTRID_EXECUTOR", kind)
        reset_settings()
        job = contextvars.Context().run(lambda: definitions.build_defs().resolve_job_def("process_night"))
        (told,) = dg.validate_run_config(job, {})["execution"].values()
        assert RetryMode.from_config(told["retries"]) == RetryMode.ENABLED, kind
    reset_settings()


def test_every_step_of_astrids_own_is_tried_again() -> None:
    from astrid_pipeline import definitions

    for job in definitions.defs.resolve_all_job_defs():
        for node in job.nodes:
            function = node.definition.compute_fn.decorated_fn
            assert getattr(function, "__wrapped__", None) is not None, f"{job.name}: {node.name}"
