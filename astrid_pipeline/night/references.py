"""Reference images: which frames go into them, from when on they hold, and which one judges a night.

A reference must not hold the light it is meant to reveal. So a reference of a field and filter is a version
with a date: it is made of nights strictly before `valid_from`, and judges only nights from then on. The
versions follow from the list of frames alone, so making them again gives the same versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from astrid_pipeline.errors import AstridError, ConfigError, NoReferenceError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.night.outcome import Outcome, for_each

#: Three frames are the fewest from which an asteroid or a cosmic ray in one of them can be told and left out.
MIN_FRAMES = 3
#: Beyond this many, a reference's noise is no longer what limits the difference, only its cost grows.
MAX_FRAMES = 25
#: A later version leaves out the last month, so that a supernova on the rise is not built into it. The first
#: has no choice.
QUARANTINE_DAYS = 30
#: A new version must rest on this many times the frames of the one before: 0.2 mag deeper is worth its cost,
#: and the number of versions grows with the logarithm of the frames.
GROWTH = 1.5


@dataclass(frozen=True)
class FrameNote:
    """What must be known of a calibrated frame to choose it for a reference."""

    exposure_id: str
    night: str
    filter: str
    seeing: float
    depth: float
    masked_fraction: float


@dataclass(frozen=True)
class ReferencePlan:
    """One version to be made: its frames, and the first night it may judge."""

    reference_id: str
    filter: str
    valid_from: str
    exposure_ids: tuple[str, ...]
    nights: tuple[str, ...]


def plan_references(field: str, notes: Iterable[FrameNote], policy: str = "auto") -> list[ReferencePlan]:
    """Return the versions of a field's references that its calibrated frames allow.

    Parameters
    ----------
    field:
        Name of the sky field.
    notes:
        Calibrated frames of the field, in any order.
    policy:
        `auto` coadds earlier frames: the first version as soon as `MIN_FRAMES` are there, a new one whenever
        `GROWTH` times as many are, valid `QUARANTINE_DAYS` after its last. `exposures:A,B,…` uses just those
        exposures, for every night that none of them was taken in: for data sets whose owner knows which epoch is
        the good one.

    Raises
    ------
    ConfigError
        If the policy is not one of these, or names exposures that are not there.
    """
    by_filter: dict[str, list[FrameNote]] = {}
    for note in sorted(notes, key=lambda n: (n.night, n.exposure_id)):
        by_filter.setdefault(note.filter, []).append(note)
    if wanted := exposures_named(policy, field):
        return _named(field, by_filter, wanted)
    return [plan for name, group in sorted(by_filter.items()) for plan in _versions(field, name, group)]


def exposures_named(policy: str, field: str | None = None) -> set[str]:
    """Return the exposures that a reference policy names, none for `auto`.

    Raises
    ------
    ConfigError
        If the policy is neither `auto` nor `exposures:A,B,…`.
    """
    names = {name.strip() for name in policy.removeprefix("exposures:").split(",") if name.strip()}
    if policy.startswith("exposures:") and names:
        return names
    if policy != "auto":
        raise ConfigError(
            f"unknown reference policy {policy!r}", where=field, remedy="use auto, or exposures:ID,ID,…"
        )
    return set()


def _named(field: str, by_filter: Mapping[str, list[FrameNote]], wanted: set[str]) -> list[ReferencePlan]:
    found = {n.exposure_id for group in by_filter.values() for n in group}
    if missing := wanted - found:
        raise ConfigError(
            f"the reference policy names exposures that are not calibrated: {', '.join(sorted(missing))}",
            where=field,
            remedy="materialize calibrated_frames of their nights, or mend the field's reference policy",
        )
    plans = []
    for name, group in sorted(by_filter.items()):
        chosen = [n for n in group if n.exposure_id in wanted]
        if chosen:
            plans.append(_plan(field, name, "0000-00-00", chosen))
    return plans


def _versions(field: str, name: str, group: Sequence[FrameNote]) -> list[ReferencePlan]:
    plans: list[ReferencePlan] = []
    made_of = 0
    for night in sorted({n.night for n in group}):
        usable = [n for n in group if n.night <= night]
        if not plans and len(usable) >= MIN_FRAMES:
            plans.append(_plan(field, name, _after(night, 1), _best(usable)))
        elif plans and len(plans[-1].exposure_ids) < MAX_FRAMES and len(usable) >= GROWTH * made_of:
            plans.append(_plan(field, name, _after(night, 1 + QUARANTINE_DAYS), _best(usable)))
        else:
            continue
        made_of = len(usable)
    return plans


def _best(notes: Sequence[FrameNote]) -> list[FrameNote]:
    """Leave out what would spoil the coadd: the worst third in seeing and depth once there are enough frames."""
    good = [n for n in notes if n.masked_fraction < 0.3]  # a third of the frame lost is a failed exposure
    if len(good) <= 2 * MIN_FRAMES:
        return list(good or notes)

    # Depth in magnitudes and seeing in log2: a frame half as sharp collects the noise of four times the area,
    # 0.75 mag, so both count in magnitudes.
    def merit(note: FrameNote) -> float:
        seeing = 0.75 * math.log2(note.seeing) if note.seeing > 0 else 0.0
        return (note.depth if math.isfinite(note.depth) else 0.0) - seeing

    ranked = sorted(good, key=lambda n: (-merit(n), n.night, n.exposure_id))
    return sorted(
        ranked[: min(MAX_FRAMES, max(MIN_FRAMES, math.ceil(2 * len(good) / 3)))], key=lambda n: n.exposure_id
    )


def _plan(field: str, name: str, valid_from: str, notes: Sequence[FrameNote]) -> ReferencePlan:
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return ReferencePlan(
        reference_id=f"{field}_{safe}_{valid_from}",
        filter=name,
        valid_from=valid_from,
        exposure_ids=tuple(n.exposure_id for n in notes),
        nights=tuple(sorted({n.night for n in notes})),
    )


def _after(night: str, days: int) -> str:
    return (date.fromisoformat(night) + timedelta(days=days)).isoformat()


def build_references(
    plans: Sequence[ReferencePlan],
    load: Callable[[str], Frame],
    existing: Mapping[str, Frame] | None = None,
    progress: Callable[[str], Any] | None = None,
    into: MutableMapping[str, Frame] | None = None,
) -> Outcome[Frame]:
    """Coadd each plan's frames; provenance (`inputs`, `nights`, `valid_from`, `coverage`) goes into its meta.

    Parameters
    ----------
    plans:
        From `plan_references`.
    load:
        Returns the calibrated frame of an exposure id.
    existing:
        References made before by the same code: one of the same id and inputs is taken over as it is.
    progress, into:
        As in `for_each`.
    """
    from astrid_pipeline.imaging.coadd import coadd

    kept = {} if existing is None else existing

    def build(plan: ReferencePlan) -> Frame:
        if plan.reference_id in kept:
            before = kept[plan.reference_id]
            if before.meta.get("inputs") == json.dumps(plan.exposure_ids):
                return before
        frames = [load(exposure_id) for exposure_id in plan.exposure_ids]
        stack = frames[0] if len(frames) == 1 else coadd(frames)
        return stack.replace(
            meta={
                "exposure_id": plan.reference_id,
                "filter": plan.filter,
                "valid_from": plan.valid_from,
                "nights": json.dumps(plan.nights),
                "inputs": json.dumps(plan.exposure_ids),
                "n_frames": len(plan.exposure_ids),
            }
        )

    return for_each(
        {p.reference_id: p for p in plans}, build, stage="reference_images", progress=progress, into=into
    )


def choose_reference(references: Mapping[str, Mapping[str, Any]], filter_name: str, night: str) -> str:
    """Return the id of the reference that judges exposures in a filter and night: the latest valid one.

    Parameters
    ----------
    references:
        The meta of each reference of the field, by reference id.

    Raises
    ------
    NoReferenceError
        If there is none: of that filter, from before that night, or without that night in it.
    """
    same = {k: m for k, m in references.items() if m["filter"] == filter_name}
    valid = {
        k: m
        for k, m in same.items()
        if m["valid_from"] <= night and night not in json.loads(m.get("nights", "[]"))
    }
    if valid:
        return max(valid, key=lambda k: (valid[k]["valid_from"], k))
    if not same:
        have = ", ".join(sorted({str(m["filter"]) for m in references.values()})) or "none at all"
        what = f"no reference in filter {filter_name} (there are: {have})"
    else:
        first = min(str(m["valid_from"]) for m in same.values())
        what = f"no reference in filter {filter_name} holds for {night} (the first is valid from {first})"
    raise NoReferenceError(
        what,
        where=night,
        remedy="calibrate at least three frames of earlier nights and materialize reference_images, "
        "or name good exposures in the field's reference policy",
    )


def note_of(frame_meta: Mapping[str, Any]) -> FrameNote:
    """Return what `plan_references` wants to know, from a calibrated frame's meta.

    Raises
    ------
    AstridError
        If the meta lacks night or filter: the frame was not made by `calibrated_frames`.
    """
    try:
        return FrameNote(
            exposure_id=str(frame_meta["exposure_id"]),
            night=str(frame_meta["night"]),
            filter=str(frame_meta["filter"]),
            seeing=float(frame_meta.get("seeing") or float("nan")),
            depth=float(frame_meta.get("depth") or float("nan")),
            masked_fraction=float(frame_meta.get("masked_fraction") or 0.0),
        )
    except KeyError as error:
        raise AstridError(
            f"a calibrated frame does not say its {error}",
            where=str(frame_meta.get("exposure_id")),
            remedy="materialize calibrated_frames of that night again",
        ) from error
