"""The simulated survey as an archive: exposures are rendered when they are fetched."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
from astropy.io import fits

from astrid_pipeline.archives.base import ExposureRecord, Field, copy_checked
from astrid_pipeline.errors import ConfigError
from astrid_pipeline.simulation.schedule import SITE_LONGITUDE, Plan, SurveyOptions, field_centre
from astrid_pipeline.simulation.survey import SimulatedSurvey

_BLOCK = 2880


class SimulatedArchive:
    """An archive of a sky that does not exist; the same options give the same bytes.

    Parameters
    ----------
    options:
        The survey; default `SurveyOptions()`.
    folder:
        Where rendered files are kept for the next time; without it each `fetch` renders anew.
    spec:
        The text that `open_archive` opens it by; made from the options if not given.
    """

    name = "simulated"

    def __init__(
        self, options: SurveyOptions | None = None, *, folder: Path | None = None, spec: str | None = None
    ) -> None:
        self.survey = SimulatedSurvey(options)
        self.folder = folder
        self.spec = spec or _spec(self.survey.options, folder)

    @property
    def instrument(self) -> str:
        """The camera's name."""
        return self.survey.camera.name

    def fields(self) -> list[Field]:
        """Return the survey's fields."""
        return [
            Field(
                name,
                *field_centre(i),
                radius=self.survey.options.size * 0.75 * self.survey.options.pixel_scale / 3600,
                filters=self.survey.options.filters,
                archive=self.spec,
                site_longitude=SITE_LONGITUDE,
            )
            for i, name in enumerate(self.survey.field_names)
        ]

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the field's light frames in order of time, templates among them; with `since`, the later ones.

        Raises
        ------
        InputError
            If the survey has no such field.
        """
        self.survey.sky(field.name)
        wanted = set(field.filters or self.survey.options.filters)
        return [
            self._record(plan)
            for plan in self.survey.plans.values()
            if plan.field == field.name and plan.filter in wanted and (since is None or plan.mjd > since)
        ]

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return the bias, dark and flat frames of that night; none for another instrument or night."""
        if instrument != self.instrument:
            return []
        return [self._record(p) for p in self.survey.plans.values() if p.kind != "light" and p.night == night]

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Render the exposure into `folder`, as `<exposure_id>.fits`, and return its path.

        Raises
        ------
        InputError
            If the survey has no such exposure.
        """
        plan = self.survey.plan(record.exposure_id)
        kept = Path(folder if self.folder is None else self.folder) / f"{plan.exposure_id}.fits"
        size = self._size(plan)
        if not (kept.is_file() and kept.stat().st_size == size):
            self._render(plan, kept)
        if self.folder is None or kept.parent.resolve() == Path(folder).resolve():
            return kept
        return copy_checked(kept, Path(folder) / kept.name, size=size)

    def catalogue(self, field: Field) -> pd.DataFrame:
        """Return the field's stars to r = 21: ra, dec, mag_<filter>.

        Raises
        ------
        InputError
            If the survey has no such field.
        """
        return self.survey.catalogue(field.name)

    def truth(self, field: Field, night: str) -> pd.DataFrame:
        """Return what each exposure of the night shows that the template season does not: `SURVEY_TRUTH`.

        Raises
        ------
        InputError
            If the survey has no such field.
        """
        return self.survey.truth(field.name, night)

    def _record(self, plan: Plan) -> ExposureRecord:
        ra, dec = self.survey.header_wcs(plan).wcs.crval if plan.field else (math.nan, math.nan)
        return ExposureRecord(
            exposure_id=plan.exposure_id,
            field=plan.field,
            kind=plan.kind,
            mjd=plan.mjd,
            night=plan.night,
            filter=plan.filter,
            instrument=self.instrument,
            exposure=plan.exposure,
            url=f"{self.spec}#{plan.exposure_id}",
            size=self._size(plan),
            ra=float(ra),
            dec=float(dec),
        )

    def _hdu_header(self, plan: Plan) -> fits.Header:
        """Return the header as it will be written: the survey's, behind what FITS itself wants."""
        camera = self.survey.camera
        header = fits.Header(
            [
                ("SIMPLE", True, "conforms to FITS standard"),
                ("BITPIX", 16, "array data type"),
                ("NAXIS", 2, "number of array dimensions"),
                ("NAXIS1", camera.shape[1] + camera.overscan),
                ("NAXIS2", camera.shape[0]),
                ("BSCALE", 1),
                ("BZERO", 32768),
            ]
        )
        header.extend(self.survey.header(plan), update=False)
        return header

    def _size(self, plan: Plan) -> int:
        camera = self.survey.camera
        data = 2 * camera.shape[0] * (camera.shape[1] + camera.overscan)
        return len(self._hdu_header(plan).tostring()) + -(-data // _BLOCK) * _BLOCK

    def _render(self, plan: Plan, target: Path) -> None:
        counts, _ = self.survey.expose(plan.exposure_id)
        # Unsigned 16-bit integers, as FITS has them: signed with an offset of 32768, big-endian.
        data = (counts.astype(np.int32) - 32768).astype(">i2").tobytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with open(partial, "wb") as file:
                file.write(self._hdu_header(plan).tostring().encode("ascii"))
                file.write(data)
                file.write(b"\0" * (-len(data) % _BLOCK))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def open_simulated(spec: str) -> SimulatedArchive:
    """Return the archive that `simulated`, `simulated?seed=7&nights=2` or `simulated:FOLDER?seed=7` names.

    After the question mark stand fields of `SurveyOptions`; filters are separated by commas.

    Raises
    ------
    ConfigError
        If an option is not known or has an impossible value.
    """
    where, _, query = spec.partition("?")
    folder = where.partition(":")[2]
    if where.partition(":")[0] != "simulated":
        raise ConfigError(f"{spec!r} is no simulated archive", remedy="write simulated:FOLDER?seed=7")
    kinds = {f.name: f.type for f in dataclasses.fields(SurveyOptions)}
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in kinds:
            raise ConfigError(f"unknown option {key!r}", where=spec, remedy=f"choose of {', '.join(kinds)}")
        values[key] = _value(str(kinds[key]), key, text, spec)
    return SimulatedArchive(SurveyOptions(**values), folder=Path(folder) if folder else None, spec=spec)


def _value(kind: str, key: str, text: str, spec: str) -> Any:
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        return tuple(part for part in text.split(",") if part)
    except (ValueError, KeyError):
        raise ConfigError(
            f"{key}={text!r} is no {kind}", where=spec, remedy="mend the archive's name"
        ) from None


def _spec(options: SurveyOptions, folder: Path | None) -> str:
    default = SurveyOptions()
    changed = {
        f.name: getattr(options, f.name)
        for f in dataclasses.fields(options)
        if getattr(options, f.name) != getattr(default, f.name)
    }
    texts = [f"{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in changed.items()]
    return ("simulated" + (f":{folder}" if folder else "")) + ("?" + "&".join(texts) if texts else "")
