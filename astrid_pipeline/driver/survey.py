"""Fields, and the walk through their nights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from astrid_pipeline.archives.base import Archive, Field, open_archive
from astrid_pipeline.driver.runner import Runner, RunResult
from astrid_pipeline.errors import MissingProductError
from astrid_pipeline.night.plan import (
    Listing,
    Step,
    founding_nights,
    known_exposures,
    made_nights,
    ready_steps,
)
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
    if any(getattr(archive, "gives_packets", False) for archive in survey.archives.values()):
        # There is nothing to be fetched but the packets themselves, and they are made in one go.
        steps = survey.ready()
        survey.listings.clear()
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
    survey = Survey([open_catalogue().field(field)], night, night)
    (listing,) = survey.listings
    if night not in listing.nights:
        last = list(Listing.of(survey.archives[listing.field.archive], listing.field).nights)[-5:]
        raise MissingProductError(
            f"the archive has no exposure of {field} in the night {night}",
            where=listing.field.archive,
            remedy=f"its last nights are {', '.join(last) or 'none at all'}",
        )
    with Runner(workers or get_settings().workers) as runner:
        return survey.walk(runner, report)


def backfill(
    field: str,
    start: str | None = None,
    end: str | None = None,
    workers: int | None = None,
    report: Report = ignore,
    *,
    begin: Callable[[list[Step]], Any] = ignore,
    say: Callable[[str], Any] = ignore,
    tags: Mapping[str, str] | None = None,
) -> list[RunResult]:
    """Make all nights of a field within the dates; what is made already is left as it is.

    Parameters
    ----------
    report, begin:
        Called as each run ends, and with the runs that are about to start.
    say:
        Called with sentences about the whole: what is to be done, and what is left undone.
    tags:
        Added to each run's tags.

    Raises
    ------
    ConfigError
        If there is no such field.
    """
    survey = Survey([open_catalogue().field(field)], start, end)
    (listing,) = survey.listings
    say(_plan_in_words(listing, survey.products))
    with Runner(workers or get_settings().workers, tags) as runner:
        results = survey.walk(runner, report, begin)
    if left := _left_in_words(listing, survey.products, results):
        say(left)
    return results


def _plan_in_words(listing: Listing, products: Products) -> str:
    asked = [night for night in listing.nights if night not in listing.for_reference]
    if not asked:
        return f"{listing.field.name}: the archive has no exposure in these nights"
    made = made_nights(products, listing.field.name)
    words = [f"{listing.field.name}: {_nights(asked)} with exposures, {len(made & set(asked))} made before"]
    if others := sorted(
        listing.for_reference - set(products.nights("calibrated_frames", listing.field.name))
    ):
        words.append(
            f"{_nights(others)} besides, calibrated for the reference ({', '.join(others[:3])}"
            + (", …)" if len(others) > 3 else ")")
        )
    return "; ".join(words)


def _left_in_words(listing: Listing, products: Products, results: Sequence[RunResult]) -> str:
    """Return which nights were not judged and why, or ""."""
    name = listing.field.name
    failed = {result.step.partition for result in results if result.error}
    made = made_nights(products, name)
    asked = [n for n in listing.nights if n not in listing.for_reference and n not in made]
    left = [night for night in asked if f"{name}|{night}" not in failed]
    if not left:
        return ""
    span = left[0] if len(left) == 1 else f"{left[0]} to {left[-1]}"
    text = f"{name}: {_nights(left)} not judged ({span}), for no reference holds there"
    if set(left) & founding_nights(listing):
        text += ": the first reference is made of just these frames"
    return text + "; to judge them too, name a survey or good exposures in the field's reference policy"


def _nights(nights: Sequence[str]) -> str:
    return f"{len(nights)} night" + ("" if len(nights) == 1 else "s")
