"""The truth of a simulated survey's night: what each exposure shows that the template season does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from astrid_pipeline.simulation.schedule import Plan
from astrid_pipeline.simulation.truth import ideal_flux_error
from astrid_pipeline.tables import Column, TableSchema

if TYPE_CHECKING:
    from astrid_pipeline.simulation.survey import SimulatedSurvey

SURVEY_TRUTH = TableSchema(
    "survey_truth",
    "What each exposure of a simulated night shows that the template season does not",
    (
        Column("exposure_id", "string", "the exposure"),
        Column("field", "string", "the field"),
        Column("night", "string", "the night, YYYY-MM-DD"),
        Column("filter", "string", "the filter"),
        Column("mjd", "float64", "middle of the exposure, UTC", "d"),
        Column("object_id", "string", "the object, the same in all exposures; artefacts have the exposure's"),
        Column("kind", "string", "point, variable, moving or artefact"),
        Column(
            "class", "string", "supernova, hostless, fading, variable_star, agn, asteroid, satellite_trail, …"
        ),
        Column("x", "float64", "column in the trimmed frame, middle of the exposure", "px"),
        Column("y", "float64", "row in the trimmed frame", "px"),
        Column("ra", "float64", "ICRS right ascension", "deg"),
        Column("dec", "float64", "ICRS declination", "deg"),
        Column("flux", "float64", "this exposure minus the mean of the template season", "electron"),
        Column("mag", "float64", "AB magnitude of |flux|", "mag"),
        Column("snr", "float64", "|flux| over the error of the best matched flux in this exposure alone"),
        Column("total_mag", "float64", "magnitude of the object itself now; null without light", "mag"),
        Column("on_galaxy", "bool", "whether it sits on a galaxy"),
        Column("host_mag", "float64", "magnitude of that galaxy", "mag"),
        Column("host_re", "float64", "effective radius of that galaxy", "px"),
        Column("host_distance", "float64", "distance from that galaxy's centre", "px"),
        Column("length", "float64", "length of the trail", "px"),
        Column("angle", "float64", "direction of the trail, anticlockwise from the x axis", "rad"),
        Column("saturated", "bool", "whether the place is over the full well"),
    ),
    sort_by=("mjd", "exposure_id", "kind", "object_id", "x"),
)


def exposure_truth(survey: SimulatedSurvey, plan: Plan, *, artefacts: bool = False) -> pd.DataFrame:
    """Return the truth rows of one exposure, those of the satellite's trail and, on request, all artefacts' too."""
    sky = survey.sky(plan.field)
    table = sky.changing(plan.mjd, plan.filter)
    if len(table):
        table = _measure(survey, plan, table)
    rows = _artefacts(survey, plan) if artefacts else _satellite(survey, plan)
    if rows:
        table = (
            pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if len(table) else pd.DataFrame(rows)
        )
    if not len(table):
        return table
    for name in ("on_galaxy", "saturated"):
        values = table[name] if name in table else [False] * len(table)
        table[name] = [value is not None and value == value and bool(value) for value in values]
    return SURVEY_TRUTH.conform(
        table.assign(
            exposure_id=plan.exposure_id, field=plan.field, night=plan.night, filter=plan.filter, mjd=plan.mjd
        )
    )


def _measure(survey: SimulatedSurvey, plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    sky, camera, size = survey.sky(plan.field), survey.camera, survey.options.size
    ra, dec = survey.plane_wcs(plan.field).all_pix2world(table["x"], table["y"], 0)
    x, y = survey.to_detector(plan, table["x"], table["y"])
    hours = plan.exposure / 3600
    dx, dy = table["rate_x"].to_numpy() * hours, table["rate_y"].to_numpy() * hours
    zero_point = survey.zero_point(plan)
    before = sky.template_flux(plan.filter).reindex(table["object_id"]).fillna(0.0).to_numpy()
    flux = 10 ** (0.4 * zero_point) * (10 ** (-0.4 * table["mag"].to_numpy()) - before)
    with np.errstate(divide="ignore"):
        table = table.assign(
            ra=np.asarray(ra) % 360,
            dec=dec,
            x=x,
            y=y,
            flux=flux,
            mag=zero_point - 2.5 * np.log10(np.abs(flux)),
            total_mag=table["mag"].where(np.isfinite(table["mag"])),
            dx=dx,
            dy=dy,
            length=np.hypot(dx, dy),
            angle=np.arctan2(dy, dx) % math.pi,
        )
    inside = table["x"].between(-0.5, size - 0.5) & table["y"].between(-0.5, size - 0.5) & (flux != 0)
    table = table[inside].reset_index(drop=True)
    if not len(table):
        return table
    light = survey.expected(plan, near=table)
    flat = camera.flat(plan.filter)
    noise = light * flat + camera.dark * np.float32(plan.exposure) + np.float32(camera.read_noise**2)
    psf = survey.psf(plan)
    error = ideal_flux_error(table["x"], table["y"], psf.model(), noise / flat**2)
    rows, columns = (np.clip(np.rint(table[c]).astype(int), 0, size - 1) for c in ("y", "x"))
    return table.assign(
        snr=table["flux"].abs() / error * psf.trail_loss(table["dx"], table["dy"]),
        saturated=light[rows, columns] * flat[rows, columns] > camera.full_well,
    )


def _satellite(survey: SimulatedSurvey, plan: Plan) -> list[dict[str, object]]:
    if not plan.satellite:
        return []
    trail = survey.satellite(plan)[1]
    return [
        {
            "object_id": plan.exposure_id,
            "kind": "artefact",
            "class": "satellite_trail",
            "length": math.hypot(*survey.camera.shape),
            **trail,
        }
    ]


def _artefacts(survey: SimulatedSurvey, plan: Plan) -> list[dict[str, object]]:
    rows = _satellite(survey, plan)
    for row, column, charge in survey.cosmic_rays(plan):
        total = float(charge.sum())
        rows.append(
            {
                "object_id": plan.exposure_id,
                "kind": "artefact",
                "class": "cosmic_ray",
                "x": float(column @ charge) / total,
                "y": float(row @ charge) / total,
                "flux": total,
                "length": float(np.hypot(np.ptp(row), np.ptp(column))),
            }
        )
    for x, y0, y1, _ in survey.camera.bad_columns:
        rows.append(
            {
                "object_id": plan.exposure_id,
                "kind": "artefact",
                "class": "bad_column",
                "x": float(x),
                "y": (y0 + y1 - 1) / 2,
                "length": float(y1 - y0),
                "angle": math.pi / 2,
            }
        )
    return rows
