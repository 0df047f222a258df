"""Reference images: which frames go into them, from when on they hold, and which one judges a night.

A reference must not hold the light it is meant to reveal. So a reference of a field and filter is a version
with a date: it is made of nights strictly before `valid_from`, and judges only nights from then on. The
versions follow from the list of frames alone, so making them again gives the same versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
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
    instrument: str = ""


@dataclass(frozen=True)
class ReferencePlan:
    """One version to be made: its frames, and the first night it may judge.

    Attributes
    ----------
    exposure_ids, nights:
        The frames it is made of; of a survey's image: what it is asked of, and no night.
    rank:
        Place of its source in the field's policy: of several that hold, the first one judges.
    survey:
        Part of the policy that names the survey, where it is not made of the field's own frames.
    grid_of:
        Exposure on whose grid a survey's image is made.
    """

    reference_id: str
    filter: str
    valid_from: str
    exposure_ids: tuple[str, ...]
    nights: tuple[str, ...]
    instrument: str = ""
    rank: int = 0
    survey: str = ""
    grid_of: str = ""


def plan_references(field: str, notes: Iterable[FrameNote], policy: str = "auto") -> list[ReferencePlan]:
    """Return the versions of a field's references that its calibrated frames allow.

    Parameters
    ----------
    field:
        Name of the sky field.
    notes:
        Calibrated frames of the field, in any order.
    policy:
        Parts joined by ``+``, the first that holds for a night judges it. `auto` coadds earlier frames of the same
        instrument and filter: the first version as soon as `MIN_FRAMES` are there, a new one whenever `GROWTH` times
        as many are, valid `QUARANTINE_DAYS` after its last. `exposures:A,B,…` uses just those exposures, for every
        night that none of them was taken in: for data sets whose owner knows which epoch is the good one. A survey's
        name (``ps1``, ``legacy``, ``hips:ID@FIRST-LAST`` …, see `archives.survey_images`) allows its images too.

    Raises
    ------
    ConfigError
        If a part of the policy is not one of these, or names exposures that are not there.
    """
    groups: dict[tuple[str, str], list[FrameNote]] = {}
    for note in sorted(notes, key=lambda n: (n.night, n.exposure_id)):
        groups.setdefault((note.filter, note.instrument), []).append(note)
    plans: list[ReferencePlan] = []
    for rank, part in enumerate(_parts(policy, field)):
        if part == "auto":
            made = [plan for _, group in sorted(groups.items()) for plan in _versions(field, group)]
        elif isinstance(part, str):
            made = _named(field, groups, exposures_named(part, field))
        else:
            text = policy.split("+")[rank].strip()
            made = [_of_survey(field, group, text, part) for _, group in sorted(groups.items())]
        plans += [replace(plan, rank=rank) for plan in made]
    return plans


def _parts(policy: str, field: str | None) -> list[Any]:
    from astrid_pipeline.archives.survey_images import parse_policy

    try:
        return list(parse_policy(policy))
    except ConfigError as error:
        raise ConfigError(
            f"unknown reference policy {policy!r}: {error.what}",
            where=field,
            remedy=f"use auto, exposures:ID,ID,…, or surveys ({error.remedy}); several joined by +",
        ) from error


def exposures_named(policy: str, field: str | None = None) -> set[str]:
    """Return the exposures that a reference policy names, none where it names no exposure.

    Raises
    ------
    ConfigError
        If a part of the policy is not known.
    """
    named = [p for p in _parts(policy, field) if isinstance(p, str) and p.startswith("exposures:")]
    return {n.strip() for part in named for n in part.removeprefix("exposures:").split(",") if n.strip()}


def uses_own_frames(policy: str) -> bool:
    """Return whether a policy coadds the field's own earlier frames."""
    return "auto" in _parts(policy, None)


def _of_survey(field: str, group: Sequence[FrameNote], text: str, choice: Any) -> ReferencePlan:
    """Return the plan for a survey's image on the grid of the group's first frame, which does not change later."""
    plan = _plan(field, choice.valid_from, group[:1])
    return replace(
        plan,
        reference_id=f"{plan.reference_id}_{_safe(text.partition('?')[0])}",
        exposure_ids=(f"survey:{text}",),
        nights=(),
        survey=text,
        grid_of=group[0].exposure_id,
    )


def _named(
    field: str, groups: Mapping[tuple[str, str], Sequence[FrameNote]], wanted: set[str]
) -> list[ReferencePlan]:
    found = {n.exposure_id for group in groups.values() for n in group}
    if missing := wanted - found:
        raise ConfigError(
            f"the reference policy names exposures that are not calibrated: {', '.join(sorted(missing))}",
            where=field,
            remedy="materialize calibrated_frames of their nights, or mend the field's reference policy",
        )
    plans = []
    for _, group in sorted(groups.items()):
        chosen = [n for n in group if n.exposure_id in wanted]
        if chosen:
            plans.append(_plan(field, "0000-00-00", chosen))
    return plans


def _versions(field: str, group: Sequence[FrameNote]) -> list[ReferencePlan]:
    plans: list[ReferencePlan] = []
    made_of = 0
    for night in sorted({n.night for n in group}):
        usable = [n for n in group if n.night <= night]
        if not plans and len(usable) >= MIN_FRAMES:
            plans.append(_plan(field, _after(night, 1), _best(usable)))
        elif plans and len(plans[-1].exposure_ids) < MAX_FRAMES and len(usable) >= GROWTH * made_of:
            plans.append(_plan(field, _after(night, 1 + QUARANTINE_DAYS), _best(usable)))
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


def _plan(field: str, valid_from: str, notes: Sequence[FrameNote]) -> ReferencePlan:
    what = [name for name in (notes[0].instrument, notes[0].filter) if name]
    return ReferencePlan(
        reference_id="_".join([field, *map(_safe, what), valid_from]),
        filter=notes[0].filter,
        valid_from=valid_from,
        exposure_ids=tuple(n.exposure_id for n in notes),
        nights=tuple(sorted({n.night for n in notes})),
        instrument=notes[0].instrument,
    )


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


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
        shared = {
            "exposure_id": plan.reference_id,
            "filter": plan.filter,
            "valid_from": plan.valid_from,
            "nights": json.dumps(plan.nights),
            "inputs": json.dumps(plan.exposure_ids),
            "serves": plan.instrument,
            "policy_rank": plan.rank,
        }
        if plan.survey:
            return _survey_frame(plan, load(plan.grid_of)).replace(meta=shared)
        frames = [load(exposure_id) for exposure_id in plan.exposure_ids]
        stack = frames[0] if len(frames) == 1 else coadd(frames)
        return stack.replace(meta={**shared, "n_frames": len(plan.exposure_ids)})

    return for_each(
        {p.reference_id: p for p in plans}, build, stage="reference_images", progress=progress, into=into
    )


def _survey_frame(plan: ReferencePlan, science: Frame) -> Frame:
    from astrid_pipeline.archives.survey_images import SurveyChoice, survey_reference

    if science.wcs is None:
        raise NoReferenceError(
            f"{plan.grid_of} has no WCS, so that nobody can say which part of the sky to ask {plan.survey} for",
            where=plan.reference_id,
            remedy="solve its astrometry, or take survey images out of the field's reference policy",
        )
    choice = SurveyChoice.parse(plan.survey)
    return survey_reference(choice, plan.filter, (science.wcs, science.shape), instrument=plan.instrument)


def choose_reference(
    references: Mapping[str, Mapping[str, Any]], filter_name: str, night: str, instrument: str = ""
) -> str:
    """Return the id of the reference that judges exposures in a filter and night.

    Of those that hold, the one whose source stands first in the field's policy; of these the latest.

    Parameters
    ----------
    references:
        The meta of each reference of the field, by reference id.
    instrument:
        That of the exposures. References made of another instrument's frames do not serve; those of a survey that
        the policy names do, and say so in their `caveats`.

    Raises
    ------
    NoReferenceError
        If there is none: of that filter and instrument, from before that night, or without that night in it.
    """
    of_filter = {k: m for k, m in references.items() if m["filter"] == filter_name}
    same = {k: m for k, m in of_filter.items() if _serves(m, instrument)}
    valid = {
        k: m
        for k, m in same.items()
        if m["valid_from"] <= night and night not in json.loads(m.get("nights", "[]"))
    }
    if valid:
        return max(valid, key=lambda k: (-int(valid[k].get("policy_rank", 0)), valid[k]["valid_from"], k))
    if not of_filter:
        have = ", ".join(sorted({str(m["filter"]) for m in references.values()})) or "none at all"
        what = f"no reference in filter {filter_name} (there are: {have})"
    elif not same:
        others = ", ".join(sorted({str(m.get("serves")) for m in of_filter.values()}))
        what = (
            f"no reference of {instrument} in filter {filter_name}: those of {others} are another instrument's, "
            "whose pixels and passband differ"
        )
    else:
        first = min(str(m["valid_from"]) for m in same.values())
        what = f"no reference in filter {filter_name} holds for {night} (the first is valid from {first})"
    raise NoReferenceError(
        what,
        where=night,
        remedy="calibrate at least three frames of earlier nights and materialize reference_images, "
        "or name good exposures or a survey in the field's reference policy",
    )


def _serves(meta: Mapping[str, Any], instrument: str) -> bool:
    """Tell whether a reference serves an instrument; one that does not say of which it is serves all."""
    return not instrument or meta.get("serves") in (None, "", instrument)


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
            instrument=str(frame_meta.get("instrument") or ""),
        )
    except KeyError as error:
        raise AstridError(
            f"a calibrated frame does not say its {error}",
            where=str(frame_meta.get("exposure_id")),
            remedy="materialize calibrated_frames of that night again",
        ) from error
