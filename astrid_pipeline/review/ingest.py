"""Requests for exposures and survey images: each starts Dagster runs and answers with their ids.

An API is open to many, so it takes no addresses: archives are those that AstrID is set up with, or public ones by name.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from astrid_pipeline.archives import base as archives
from astrid_pipeline.catalog import access
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.night.reference_dataset import (
    LEAST_DEGREES,
    MOST_DEGREES,
    MOST_PIXELS,
    reference_key,
    square_grid,
)
from astrid_pipeline.review import signed
from astrid_pipeline.review.api import RESPONSES
from astrid_pipeline.review.context import Context, Here, Ingester, Reader, tidy
from astrid_pipeline.review.problems import Problem
from astrid_pipeline.review.schemas import Latitude, Text

router = APIRouter(prefix="/api/v1", tags=["ingestion"], responses=RESPONSES)
#: Nights of one request: a run each, and a season is asked for in a few requests.
MOST_NIGHTS = 100
#: Places of one random sample: the archive is asked for each while the client waits.
MOST_PLACES = 50
#: Archives that anybody with the scope may name: public, and no address among their options.
_PUBLIC = re.compile(r"^(mast|tesscut):[A-Za-z0-9,]{0,100}$")
RightAscension = Annotated[float, Field(ge=0, lt=360, allow_inf_nan=False)]
Radius = Annotated[float, Field(ge=0.001, le=5, allow_inf_nan=False, description="degrees")]
Survey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,20}$")]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")]
Band = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{0,3}$")]


class Window(BaseModel):
    """A time, and where exposures of it come from."""

    model_config = ConfigDict(extra="forbid")

    start: dt.date = Field(description="first night")
    end: dt.date = Field(description="last night")
    archive: Text | None = Field(
        default=None,
        description="`mast:HST,JWST`, `tesscut:`, or one that a field has; default: ASTRID_ARCHIVE",
    )
    filters: list[Text] = Field(default=[], max_length=20, description="only these; empty: all")

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        if self.end < self.start:
            raise ValueError("the end is before the start")
        return self


class Region(Window):
    """A circle of the sky and a time."""

    ra: RightAscension
    dec: Latitude
    radius: Radius = 0.25


class RandomSample(Window):
    """Places drawn evenly over the sphere; the same seed draws the same."""

    count: int = Field(default=5, ge=1, le=MOST_PLACES)
    seed: int = Field(default=0, ge=0, lt=2**32)
    radius: Radius = 0.25
    dec_min: Latitude = -90.0
    dec_max: Latitude = 90.0
    galactic_latitude_min: Annotated[float, Field(ge=0, lt=90, allow_inf_nan=False)] = Field(
        default=0.0, description="degrees from the Milky Way's plane at least"
    )


class ReferenceRequest(BaseModel):
    """A square of the sky and the survey that is to show it."""

    model_config = ConfigDict(extra="forbid")

    ra: RightAscension
    dec: Latitude
    size: Annotated[
        float, Field(ge=LEAST_DEGREES, le=MOST_DEGREES, allow_inf_nan=False, description="side, degrees")
    ] = 0.25
    pixels: Annotated[int, Field(ge=8, le=MOST_PIXELS, description="side, pixels")] = 512
    survey: Survey = "dss2"
    band: Band = Field(default="", description="filter; empty: red")


class Ingestion(BaseModel):
    """What was started for one place: a run a night."""

    field: str
    ra: float
    dec: float
    radius: float
    exposures: int
    nights: list[str]
    run_ids: list[str]


class Sample(BaseModel):
    """What was started for a random sample; places without exposures have no runs."""

    places: list[Ingestion]
    run_ids: list[str]


class Fetching(BaseModel):
    """The run that fetches an image, and where the image will be once it has ended."""

    run_ids: list[str]
    key: str
    url: str = Field(description="signed: whoever has it may fetch the file")
    expires: str


def _archive(here: Context, named: str | None) -> str:
    if named is None or named == here.settings.archive or _PUBLIC.match(named):
        return named or here.settings.archive
    if named in {field.archive for field in here.catalog.fields()}:
        return named
    raise Problem(422, "this archive is not known", "name one that a field has, or mast:COLLECTION")


def _field_of(place: dict[str, Any], archive: str, filters: list[str]) -> archives.Field:
    """Return the field of a region; the same region has the same name, another archive or filter another."""
    text = json.dumps([place, archive, sorted(filters)])
    where = f"{place['ra']:.4f}{'m' if place['dec'] < 0 else 'p'}{abs(place['dec']):.4f}"
    name = f"sky{where}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return archives.Field(name=name, **place, archive=archive, filters=tuple(filters))


def _ingest(here: Context, window: Window, ra: float, dec: float, radius: float) -> Ingestion:
    """Ask the archive, add the field, and start a run for each night that has exposures."""
    from astrid_pipeline.partitions import require_night_in_range

    field = _field_of(
        {"ra": ra, "dec": dec, "radius": radius}, _archive(here, window.archive), window.filters
    )
    archive = archives.open_archive(field.archive, in_tick=True)
    if (refresh := getattr(archive, "refresh", None)) is not None:
        refresh(field)
    records = [
        record
        for record in archive.exposures(field)
        if window.start.isoformat() <= record.night <= window.end.isoformat()
        and (not field.filters or record.filter in field.filters)
    ]
    nights = sorted({record.night for record in records})
    if len(nights) > MOST_NIGHTS:
        raise Problem(
            422, f"{len(nights)} nights have exposures; {MOST_NIGHTS} are started at once", "ask for less"
        )
    run_ids = []
    if nights:
        require_night_in_range(nights[0])
        if field.name not in {known.name for known in here.catalog.fields()}:
            here.catalog.add_field(field)
        here.runs.add_field(field.name)
        run_ids = [
            here.runs.launch(
                "ingest", partition={"field": field.name, "night": night}, tags={"astrid/field": field.name}
            )
            for night in nights
        ]
    return Ingestion(
        field=field.name,
        ra=ra,
        dec=dec,
        radius=radius,
        exposures=len(records),
        nights=nights,
        run_ids=run_ids,
    )


@router.post("/observations/ingest", status_code=202)
def ingest(here: Here, me: Ingester, region: Region) -> Ingestion:
    """Fetch the exposures of a region and time: a Dagster run a night. The region becomes a field that is watched."""
    made = _ingest(here, region, region.ra, region.dec, region.radius)
    if not made.run_ids:
        raise Problem(404, "the archive has no exposures there and then", "widen the region or the time")
    access.audit(here.catalog, me.who, "ingest", made.model_dump())
    return made


@router.post("/observations/ingest/batch-random", status_code=202)
def ingest_random(here: Here, me: Ingester, sample: RandomSample) -> Sample:
    """Fetch the exposures of random places of the sky: for a sample that no one has chosen."""
    if sample.dec_min >= sample.dec_max:
        raise Problem(422, "dec_min is not below dec_max", "swap them")
    made = [_ingest(here, sample, ra, dec, sample.radius) for ra, dec in random_places(sample)]
    access.audit(
        here.catalog,
        me.who,
        "ingest random sample",
        {"asked": sample.model_dump(mode="json"), "fields": [one.field for one in made if one.run_ids]},
    )
    return Sample(places=made, run_ids=[run for one in made for run in one.run_ids])


def random_places(sample: RandomSample) -> list[tuple[float, float]]:
    """Return places (ra, dec), ICRS degrees, even in solid angle between the declinations and off the Milky Way.

    Raises
    ------
    Problem
        422 if hardly any sky is left.
    """
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(sample.seed)
    low, high = np.sin(np.radians([sample.dec_min, sample.dec_max]))
    places: list[tuple[float, float]] = []
    # Half of all draws lie beyond 30° of the plane; a hundred rounds find places in a percent of the sky.
    for _ in range(100):
        ra, dec = rng.uniform(0, 360, 100), np.degrees(np.arcsin(rng.uniform(low, high, 100)))
        away = np.abs(SkyCoord(ra * u.deg, dec * u.deg).galactic.b.deg) >= sample.galactic_latitude_min
        places += [
            (round(float(a), 4) % 360, round(float(d), 4)) for a, d in zip(ra[away], dec[away], strict=True)
        ]
        if len(places) >= sample.count:
            return places[: sample.count]
    raise Problem(422, "there is hardly any sky between these limits", "widen them")


@router.post("/observations/ingest/reference-dataset", status_code=202)
def reference_dataset(request: Request, here: Here, me: Ingester, wanted: ReferenceRequest) -> Fetching:
    """Fetch a survey's image of a place as FITS; the address holds as soon as the run has ended."""
    from astrid_pipeline.archives.survey_images import SurveyChoice, surveys

    survey = wanted.survey.lower()
    if survey not in surveys() or survey == "hips":
        known = ", ".join(sorted(set(surveys()) - {"hips"}))
        raise Problem(422, f"no survey is called {wanted.survey}", f"use one of {known}")
    try:
        SurveyChoice.parse(survey)
        square_grid(wanted.ra, wanted.dec, wanted.size, wanted.pixels)
    except ConfigError as error:
        raise Problem(422, error.what, error.remedy) from error
    config = {**wanted.model_dump(), "survey": survey}
    key = reference_key(survey, wanted.ra, wanted.dec, wanted.size, wanted.pixels, wanted.band)
    run = here.runs.launch("fetch_reference", config={"ops": {"reference_dataset": {"config": config}}})
    access.audit(here.catalog, me.who, "fetch reference", {**config, "run_id": run})
    url, expires = signed.url(here, str(request.base_url), key)
    return Fetching(run_ids=[run], key=key, url=url, expires=expires)


@router.get("/runs/{run_id}")
def run(here: Here, me: Reader, run_id: RunId) -> dict[str, Any]:
    """Return what has become of a run."""
    found = here.runs.status(run_id)
    if found is None:
        raise Problem(404, f"there is no run {run_id}", "see the Dagster page")
    return tidy(found)


@router.get("/files/{token}", response_class=Response, responses={200: {"content": {"application/fits": {}}}})
def file(here: Here, token: Annotated[str, StringConstraints(max_length=600)]) -> Response:
    """Return a file of the store to whoever has its signed address."""
    key = signed.key_of(here, token)
    name = key.rsplit("/", 1)[-1]
    return Response(
        here.store.get_bytes(key),
        media_type="application/fits",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
