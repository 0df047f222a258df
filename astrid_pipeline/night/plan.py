"""What is to be done next: from what the archives list and what the store holds, the runs that are ready.

The demo, `astrid backfill` and the sensor ask the same question, and get the same answer. A step is ready when
everything it rests on is made; doing the ready steps and asking again walks a survey from its first raw frame to
its last detection, and asking of a finished survey gives nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from astrid_pipeline.archives.base import Archive, ExposureRecord, Field
from astrid_pipeline.errors import MissingProductError, NoReferenceError
from astrid_pipeline.night.masters import nearest_night
from astrid_pipeline.night.references import (
    MIN_FRAMES,
    choose_reference,
    exposures_named,
    note_of,
    plan_references,
    uses_own_frames,
)


class ProductView(Protocol):
    """What the planner must know of the store; `resources.products.Products` is one."""

    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field or instrument that an asset has been made for."""

    def metas(self, asset: str, owner: str, night: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the meta of each frame of a partition."""

    def table(self, asset: str, partition: str | None) -> Any:
        """Return a table asset's partition."""


@dataclass(frozen=True, order=True)
class Step:
    """One run: a job and its partition; `exposures` says how much work it is, `digest` on what it rests.

    The same step on other exposures has another digest, so that a scheduler that never repeats a key still
    does a night again to which exposures have come.
    """

    job: str
    partition: str
    exposures: int = field(default=0, compare=False)
    digest: str = field(default="", compare=False)

    @classmethod
    def on(cls, job: str, partition: str, inputs: Iterable[str]) -> Step:
        """Return the step that treats these inputs."""
        names = sorted(inputs)
        return cls(job, partition, len(names), hashlib.sha256("\n".join(names).encode()).hexdigest()[:16])

    @property
    def run_key(self) -> str:
        """A key that is the same for the same work."""
        return f"{self.job}:{self.partition}@{self.digest}"


@dataclass
class Listing:
    """What an archive lists of a field, by night.

    `for_reference` are nights besides those that were asked for: they are calibrated, for references are made of them,
    and not judged.
    """

    field: Field
    nights: dict[str, list[ExposureRecord]]
    for_reference: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, archive: Archive, sky_field: Field, start: str | None = None, end: str | None = None
    ) -> Listing:
        """Ask the archive for the field's light frames, with `start` and `end` of those nights.

        The earlier nights that the first references are made of, or those that the field's policy names, come too:
        without them the first nights asked for would have to be the reference, and remain unjudged.
        """
        named = exposures_named(sky_field.reference, sky_field.name)
        nights: dict[str, list[ExposureRecord]] = {}
        for record in archive.exposures(sky_field):
            if not sky_field.filters or record.filter in sky_field.filters:
                nights.setdefault(record.night, []).append(record)
        # What a policy names may be later than what it judges; all else is earlier.
        listed = {n: nights[n] for n in sorted(nights) if named or end is None or n <= end}
        asked = {n for n in listed if (start is None or n >= start) and (end is None or n <= end)}
        packets = getattr(archive, "gives_packets", False)
        founders = set() if packets or not asked else founding_nights(cls(sky_field, listed))
        others = frozenset(founders - asked)
        return cls(sky_field, {n: listed[n] for n in listed if n in asked or n in others}, others)

    @property
    def instruments(self) -> set[str]:
        """Names of the instruments that took the exposures."""
        return {record.instrument for records in self.nights.values() for record in records}


def ready_steps(
    archive: Archive, listing: Listing, products: ProductView, given_up: Collection[str] = ()
) -> list[Step]:
    """Return the runs of a field that can start now, in a good order; none when all is done.

    Masters come before the frames that need them, frames before the references made of them, references before
    the nights that they judge. A night whose list of exposures has changed since it was made is ready again.

    Parameters
    ----------
    given_up:
        Run keys of steps that failed and are not waited for: a survey that does not have the field must not hold up
        the nights that another reference judges.
    """
    name = listing.field.name
    if getattr(archive, "gives_packets", False):
        return _packet_steps(listing, products)
    masters = _missing_masters(archive, listing, products)
    waiting = {step.partition for step in masters}
    references = _reference_metas(products, name)
    calibrated, processed = (
        set(products.nights("calibrated_frames", name)),
        set(products.nights("night_summary", name)),
    )
    judged: list[Step] = []
    unjudged: list[Step] = []
    for night, records in listing.nights.items():
        if any(f"{record.instrument}|{night}" in waiting for record in records):
            continue
        ids = {record.exposure_id for record in records}
        fresh = night in calibrated and known_exposures(products, name, night) == ids
        partition = f"{name}|{night}"
        if night not in listing.for_reference and _judged(references, records, night):
            if not fresh or night not in processed:
                judged.append(Step.on("process_night", partition, ids))
        elif not fresh:
            unjudged.append(Step.on("calibrate_night", partition, ids))
    founders = {f"{name}|{night}" for night in founding_nights(listing)}
    first = [step for step in unjudged if step.partition in founders]
    if masters or first:
        # Frames that are still to be calibrated may go into a reference: what it judges waits for it.
        return masters + first
    # A new reference judges nights to come, not those already waiting for an older one; but the first one opens
    # the way to all of them. Where the founding frames were not good enough, the next night lends its own.
    due = [s for s in _references_due(listing, products, references) if s.run_key not in given_up]
    return due or judged or unjudged[:1]


class _Nights(Protocol):
    def nights(self, asset: str, owner: str) -> list[str]:
        """Return the nights of a field that an asset has been made for."""


def made_nights(products: _Nights, name: str) -> set[str]:
    """Return the nights of a field that are made: differenced, or taken from alert packets."""
    return set(products.nights("night_summary", name)) | set(products.nights("alert_stamps", name))


def _packet_steps(listing: Listing, products: ProductView) -> list[Step]:
    """Return the nights of alert packets that are not made, or to which packets have come since."""
    name = listing.field.name
    made = set(products.nights("alert_stamps", name))
    steps = []
    for night, records in listing.nights.items():
        ids = {record.exposure_id for record in records}
        if night not in made or known_exposures(products, name, night, "survey_alerts", "alert_id") != ids:
            steps.append(Step.on("take_alerts", f"{name}|{night}", ids))
    return steps


def founding_nights(listing: Listing) -> set[str]:
    """Return the nights whose frames make the first references; the others are calibrated when they are judged."""
    if wanted := exposures_named(listing.field.reference, listing.field.name):
        return {n for n, records in listing.nights.items() if any(r.exposure_id in wanted for r in records)}
    # A survey's image wants one frame of each kind, for its grid; a coadd wants several.
    enough = MIN_FRAMES if uses_own_frames(listing.field.reference) else 1
    nights: set[str] = set()
    counts: Counter[tuple[str, str]] = Counter()
    for night, records in listing.nights.items():
        if any(counts[record.filter, record.instrument] < enough for record in records):
            nights.add(night)
        counts.update((record.filter, record.instrument) for record in records)
    return nights


def _missing_masters(archive: Archive, listing: Listing, products: ProductView) -> list[Step]:
    steps: dict[Step, None] = {}  # a set that keeps its order
    for night, records in listing.nights.items():
        for instrument in sorted({record.instrument for record in records}):
            if night in products.nights("master_calibrations", instrument):
                continue
            frames = archive.calibrations(instrument, night)
            # Calibration frames of another night are that night's masters.
            if any(frame.night == night for frame in frames):
                steps[Step.on("make_masters", f"{instrument}|{night}", _ids(frames, night))] = None
            elif frames and nearest_night(products.nights("master_calibrations", instrument), night) is None:
                nearest = nearest_night(sorted({frame.night for frame in frames}), night)
                if nearest is not None:
                    steps[Step.on("make_masters", f"{instrument}|{nearest}", _ids(frames, nearest))] = None
    return list(steps)


def _ids(frames: Iterable[ExposureRecord], night: str) -> list[str]:
    return [frame.exposure_id for frame in frames if frame.night == night]


def known_exposures(
    products: ProductView, name: str, night: str, asset: str = "observations", column: str = "exposure_id"
) -> set[str]:
    """Return the exposures that were ingested of a field's night, those that could not be read among them."""
    try:
        return set(products.table(asset, f"{name}|{night}")[column])
    except MissingProductError:
        return set()


def _reference_metas(products: ProductView, name: str) -> dict[str, dict[str, Any]]:
    try:
        return products.metas("reference_images", name)
    except MissingProductError:
        return {}


def _judged(
    references: Mapping[str, Mapping[str, Any]], records: Sequence[ExposureRecord], night: str
) -> bool:
    """Tell whether a reference holds for at least one filter of the night."""
    for name, instrument in {(record.filter, record.instrument) for record in records}:
        try:
            choose_reference(references, name, night, instrument)
        except NoReferenceError:
            continue
        return True
    return False


def _references_due(
    listing: Listing, products: ProductView, references: Mapping[str, Mapping[str, Any]]
) -> list[Step]:
    sky_field = listing.field
    notes = [
        note_of(meta)
        for night in products.nights("calibrated_frames", sky_field.name)
        for meta in products.metas("calibrated_frames", sky_field.name, night).values()
    ]
    wanted = exposures_named(sky_field.reference, sky_field.name)
    if not wanted <= {note.exposure_id for note in notes}:
        return []
    plans = plan_references(sky_field.name, notes, sky_field.reference)
    # A version that no listed night can be judged by is not wanted yet.
    latest = max(listing.nights, default="")
    plans = [plan for plan in plans if plan.valid_from <= latest]
    have = {key: meta.get("inputs") for key, meta in references.items()}
    due = [p for p in plans if have.get(p.reference_id) != json.dumps(p.exposure_ids)]
    inputs = [f"{p.reference_id}:{exposure}" for p in plans for exposure in p.exposure_ids]
    return [Step.on("make_references", sky_field.name, inputs)] if due else []


def total(steps: Iterable[Step]) -> int:
    """Return how many exposures the steps treat."""
    return sum(step.exposures for step in steps)
