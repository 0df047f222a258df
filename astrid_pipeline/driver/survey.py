"""Fields, and the walk through their nights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from astrid_pipeline.archives.base import Archive, Field, open_archive
from astrid_pipeline.driver.runner import Runner, RunResult
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night.plan import Listing, Step, known_exposures, ready_steps
from astrid_pipeline.resources.catalogue import open_catalogue
from astrid_pipeline.resources.products import Products
from astrid_pipeline.resources.store import open_store
from astrid_pipeline.settings import get_settings

Report = Callable[[RunResult], Any]


def ignore(_: Any) -> None:
    """Tell nobody."""


def open_products() -> Products:
    """Return read access to the products of this home."""
    return Products(open_store())


def register_partitions(listings: Sequence[Listing]) -> None:
    """Make the fields and instruments of the listings partitions in Dagster.

    Raises
    ------
    ConfigError
        If a night lies before the first night.
    """
    from astrid_pipeline.partitions import FIELDS, INSTRUMENTS, require_night_in_range
    from astrid_pipeline.services.dagster_home import dagster_instance

    for listing in listings:
        for night in list(listing.nights)[:1]:
            require_night_in_range(night)
    with dagster_instance() as instance:
        instance.add_dynamic_partitions(str(FIELDS.name), [listing.field.name for listing in listings])
        names = sorted({name for listing in listings for name in listing.instruments})
        instance.add_dynamic_partitions(str(INSTRUMENTS.name), names)


def forget_partition(field: str) -> None:
    """Take a field that is no longer watched off Dagster's list of partitions."""
    from astrid_pipeline.partitions import FIELDS
    from astrid_pipeline.services.dagster_home import dagster_instance

    with dagster_instance() as instance:
        instance.delete_dynamic_partition(str(FIELDS.name), field)


class Survey:
    """Some fields with their archives, each opened and listed once.

    Parameters
    ----------
    fields:
        The fields to work on.
    start, end:
        First and last night, YYYY-MM-DD; None for all.
    """

    def __init__(self, fields: Iterable[Field], start: str | None = None, end: str | None = None) -> None:
        self.archives: dict[str, Archive] = {}
        self.listings: list[Listing] = []
        for field in fields:
            if field.archive not in self.archives:
                self.archives[field.archive] = open_archive(field.archive)
            self.listings.append(Listing.of(self.archives[field.archive], field, start, end))
        register_partitions(self.listings)
        self.products = open_products()

    def ready(self, given_up: Collection[str] = ()) -> list[Step]:
        """Return the steps of all fields that can start now, those given up apart; one that two need comes once."""
        steps = {
            step.run_key: step
            for listing in self.listings
            for step in ready_steps(self.archives[listing.field.archive], listing, self.products, given_up)
        }
        # The largest first: at the end no worker waits long for the other.
        return sorted(steps.values(), key=lambda s: (-s.exposures, s.partition))

    def walk(
        self, runner: Runner, report: Report, begin: Callable[[list[Step]], Any] = ignore
    ) -> list[RunResult]:
        """Do what is ready until nothing is; `begin` is told what starts, `report` what has ended.

        A step that failed is not tried again in the same walk, and what rests on it stays undone.
        """
        tried: set[str] = set()
        results: list[RunResult] = []
        while steps := [step for step in self.ready(tried) if step.run_key not in tried]:
            tried |= {step.run_key for step in steps}
            begin(steps)
            results += runner.run(steps, report)
        return results


def list_fields(fields: Sequence[Field]) -> list[Listing]:
    """Ask each field's archive what it has, and make fields, instruments and nights known to Dagster."""
    return Survey(fields).listings


def ingest(field: str, workers: int | None = None, report: Report = ignore) -> list[RunResult]:
    """Fetch what the archive has of a field and the store has not; `report` is called as each run ends."""
    survey = Survey([open_catalogue().field(field)])
    steps = []
    for listing in survey.listings:
        for night, records in listing.nights.items():
            ids = {record.exposure_id for record in records}
            if known_exposures(survey.products, field, night) != ids:
                steps.append(Step.on("ingest", f"{field}|{night}", ids))
    with Runner(workers or get_settings().workers) as runner:
        return runner.run(steps, report)


def run(field: str, night: str, workers: int | None = None, report: Report = ignore) -> list[RunResult]:
    """Make one night of a field, with what it rests on; `report` is called as each run ends.

    Raises
    ------
    ConfigError
        If there is no such field.
    MissingProductError
        If the archive has nothing of that night.
    """
    survey = Survey([open_catalogue().field(field)])
    (listing,) = survey.listings
    if night not in listing.nights:
        raise MissingProductError(
            f"the archive has no exposure of {field} in the night {night}",
            where=listing.field.archive,
            remedy=f"its last nights are {', '.join(list(listing.nights)[-5:]) or 'none at all'}",
        )
    if listing.field.reference == "auto":
        # Later nights cannot be part of what judges this one.
        listing.nights = {n: records for n, records in listing.nights.items() if n <= night}
    with Runner(workers or get_settings().workers) as runner:
        return survey.walk(runner, report)


def backfill(
    field: str,
    start: str | None = None,
    end: str | None = None,
    workers: int | None = None,
    report: Report = ignore,
) -> list[RunResult]:
    """Make all nights of a field within the dates; what is made already is left as it is."""
    survey = Survey([open_catalogue().field(field)], start, end)
    with Runner(workers or get_settings().workers) as runner:
        return survey.walk(runner, report)
