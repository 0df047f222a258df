"""Another survey's alerts as candidates: scored by the alert model, kept with what the survey says of them.

The survey's own scores, and the known objects that it found near, stay with each candidate; its history (earlier
detections and upper limits) becomes points of the object's light curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from astrid_pipeline.archives.alert_packets import AlertPacket, UnreadablePacket
from astrid_pipeline.archives.base import night_of, safe_name
from astrid_pipeline.imaging.candidates import CANDIDATES
from astrid_pipeline.learning.schema import CLASSES, DETECTIONS
from astrid_pipeline.night.alerts import CUTOUT_SIZE
from astrid_pipeline.night.stamps import PLANES, STAMPS, turned
from astrid_pipeline.tables import Column, TableSchema

if TYPE_CHECKING:
    from astrid_pipeline.learning.alert_model import AlertModel
    from astrid_pipeline.learning.detector import Detector

#: Probability from which an alert is a detection: more likely real than not.
MIN_PROBABILITY = 0.5
#: Fluxes are those of the survey's magnitudes at this zero point: µJy where the magnitudes are AB.
ZERO_POINT = 23.9
#: Error of a magnitude times this is that of the flux over the flux.
_MAG = 2.5 / math.log(10)
#: What stands for "nothing" in packets.
_NOTHING = (-999.0, -99.0)
#: Upper limits in packets are of 5 sigma; light curves here hold limits of 3.
_LIMIT_SIGMA, _OUR_SIGMA = 5.0, 3.0

SURVEY_ALERTS = TableSchema(
    "survey_alerts",
    "Alerts of another survey, one row each; `fields` holds all that the packet says, as JSON",
    (
        Column("alert_id", "string", "survey and its number of the alert"),
        Column("survey", "string", "ztf, lsst, pgir, …"),
        Column("survey_object", "string", "the survey's name of the object"),
        Column("mjd", "float64", "middle of the exposure, UTC", "d"),
        Column("filter", "string", "filter name"),
        Column("ra", "float64", "ICRS", "deg"),
        Column("dec", "float64", "ICRS", "deg"),
        Column("mag", "float64", "as the survey gives it", "mag"),
        Column("snr", "float64", "signed: below zero where the source faded"),
        Column(
            "real_probability", "float64", "by the alert model; null where the packet has no usable cut-outs"
        ),
        Column("class", "string", "by the alert model"),
        Column("uncertainty", "float64", "standard deviation of the model's forests"),
        Column("survey_score", "float64", "the survey's own real/bogus score; null where it gave none"),
        Column("known_object", "string", "solar-system object that the survey found there; null where none"),
        Column("known_distance", "float64", "its distance", "arcsec"),
        Column("star_score", "float64", "survey's star/galaxy score of the nearest source, 1: a star"),
        Column("star_distance", "float64", "that source's distance", "arcsec"),
        Column("fields", "string", "the packet's record without cut-outs and history, as JSON"),
        Column("problem", "string", "why it could not be scored; null where it could"),
    ),
    sort_by=("alert_id",),
)


def take_alerts(
    packets: Mapping[str, AlertPacket | UnreadablePacket],
    model: AlertModel,
    detector: Detector,
    device: Any = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of a night's alerts (`SURVEY_ALERTS`), and the features that the alert model looked at.

    Parameters
    ----------
    packets:
        By alert id; those that cannot be read or scored have their `problem` in the table.
    """
    from astrid_pipeline.learning.alert_model import stamp_features
    from astrid_pipeline.learning.alert_scores import stamp_of

    rows: list[dict[str, Any]] = []
    stamps, scored = [], []
    for identity, packet in packets.items():
        if isinstance(packet, UnreadablePacket):
            rows.append({"alert_id": identity, "problem": packet.problem})
            continue
        row = _row(identity, packet)
        try:
            stamps.append(stamp_of(packet))
            scored.append(identity)
        except ValueError as error:
            row["problem"] = str(error)
        rows.append(row)
    features = stamp_features(stamps, detector, device=device).set_axis(scored)
    table = pd.DataFrame(rows, columns=[c for c in SURVEY_ALERTS.names if c not in _SCORED])
    # Not every survey tells an S/N or an error: then it is that of the cut-out.
    faded = pd.Series({i: getattr(packet, "positive", None) is False for i, packet in packets.items()})
    seen = (features["snr"] * np.where(faded.reindex(scored), -1.0, 1.0)).reindex(table["alert_id"])
    table["snr"] = table["snr"].astype(float).fillna(seen.set_axis(table.index))
    return SURVEY_ALERTS.conform(table.join(model.score(features), on="alert_id")), features


_SCORED = ("real_probability", "class", "uncertainty")


def _row(identity: str, packet: AlertPacket) -> dict[str, Any]:
    source = packet.source
    sigma = _first(source, "sigmapsf", "Dmag")
    snr = packet.snr if math.isfinite(packet.snr) else (_MAG / sigma if sigma > 0 else math.nan)
    name = source.get("ssnamenr")
    known = _first(source, "ssdistnr")
    named = isinstance(name, str) and name.strip().lower() not in ("", "null", "none")
    return {
        "alert_id": identity,
        "survey": packet.survey,
        "survey_object": packet.object_id or None,
        "mjd": packet.mjd,
        "filter": packet.filter,
        "ra": packet.ra,
        "dec": packet.dec,
        "mag": packet.mag if packet.mag not in _NOTHING else math.nan,
        "snr": -abs(snr) if packet.positive is False else snr,
        "survey_score": packet.survey_score,
        "known_object": name if named and known >= 0 else None,
        "known_distance": known if known >= 0 else math.nan,
        "star_score": _first(source, "sgscore1"),
        "star_distance": _first(source, "distpsnr1"),
        "fields": json.dumps(_plain(source)),
        "problem": None,
    }


def _first(source: Mapping[str, Any], *names: str) -> float:
    for name in names:
        value = source.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and value not in _NOTHING:
            return float(value)
    return math.nan


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that JSON can hold; numbers that are none, and what stands for nothing, are left out."""
    return {
        key: value
        for key, value in source.items()
        if isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value) and value not in _NOTHING)
    }


def as_candidates(
    table: pd.DataFrame, features: pd.DataFrame, packets: Mapping[str, Any], model: AlertModel
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return candidates and detections (with what the survey says in more columns), as the catalogue keeps them."""
    table = table[table["survey"].notna() & table["ra"].notna()].set_index("alert_id", drop=False)
    ids = list(table.index)
    flux, flux_err = _flux(table["mag"], table["snr"])
    # Where a survey does not say where on its frame the source is: the middle of the cut-out.
    places = [
        [v if math.isfinite(v) else CUTOUT_SIZE // 2 for v in (packets[i].x, packets[i].y)] for i in ids
    ]
    own = pd.DataFrame(
        {
            "candidate_id": table["alert_id"],
            "exposure_id": table["alert_id"],
            "x": [x for x, _ in places],
            "y": [y for _, y in places],
            **{name: table[name] for name in ("ra", "dec", "mjd", "filter", "mag", "snr")},
            "hpx29": np.int64(-1),
            "flux": flux,
            "flux_err": flux_err,
            "mag_err": flux_err / np.abs(flux) * _MAG,
            "sign": np.where(table["snr"] < 0, -1, 1),
            **dict.fromkeys(("npix", "n_near", "flags"), 0),
            "flag_names": "",
        },
        index=table.index,
    )
    extra = {
        name: table[name]
        for name in (
            *("survey", "survey_object", "survey_score", "known_object", "known_distance"),
            *("star_score", "star_distance", "real_probability"),
        )
    }
    measured = {f"alert_{name}": features[name].reindex(ids) for name in features}
    told = [json.loads(text) for text in table["fields"]]
    own = own.assign(**extra, **measured, alert=told)
    candidates = CANDIDATES.conform(own, extra=True)
    real = own[table["real_probability"] >= MIN_PROBABILITY]
    shares = real[[f"alert_p_{name}" for name in CLASSES]].to_numpy(float)
    detections = real.assign(
        detection_id=real["candidate_id"],
        score=real["real_probability"],
        uncertainty=table["uncertainty"].reindex(real.index),
        **{f"p_{name}": shares[:, k] for k, name in enumerate(CLASSES)},
        **{"class": np.array(CLASSES, object)[shares.argmax(axis=1)] if len(real) else []},
        mask_area=np.nan,
        origin="alert",
        model_name=model.name,
        model_version=model.version,
    )
    return candidates, DETECTIONS.conform(detections, extra=True)


def _flux(mag: pd.Series, snr: pd.Series) -> tuple[pd.Series, pd.Series]:
    flux = 10.0 ** (-0.4 * (mag - ZERO_POINT)) * np.sign(snr)
    return flux, np.abs(flux / snr)


def history_points(
    packets: Mapping[str, AlertPacket], objects: Mapping[str, int], longitude: float | None
) -> dict[str, pd.DataFrame]:
    """Return light-curve points by night: each alert, and the earlier detections and limits that its packet tells.

    Parameters
    ----------
    objects:
        The catalogue's id of each alert's object.
    longitude:
        East longitude of the site, for what a night is.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for identity, number in objects.items():
        packet = packets[identity]
        previous = packet.record_fields.get("prv_candidates") or ()
        for past in (*previous, packet.source):
            row = _point(past, packet, identity if past is packet.source else "")
            if row is not None:
                rows[number, row["exposure_id"]] = {"object_id": number, **row}
    out: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        out.setdefault(night_of(row["mjd"], longitude), []).append(row)
    return {night: pd.DataFrame(of_night) for night, of_night in sorted(out.items())}


def _point(past: Mapping[str, Any], packet: AlertPacket, identity: str) -> dict[str, Any] | None:
    from astrid_pipeline.archives import alert_packets as packed

    mjd = packed.mjd_of(past, {}) if not identity else packet.mjd
    if not math.isfinite(mjd):
        return None
    mag, sigma, limit = (
        _first(past, *names) for names in (("magpsf", "Mag"), ("sigmapsf", "Dmag"), ("diffmaglim",))
    )
    point: dict[str, Any] = {
        "exposure_id": identity or safe_name(f"{packet.survey}-{past.get('candid') or f'{mjd:.5f}'}"),
        "mjd": mjd,
        "filter": packed.filter_name(next((past[k] for k in ("fid", "band", "filter") if past.get(k)), None))
        or packet.filter,
        "zero_point": ZERO_POINT,
        "flags": 0,
    }
    if math.isfinite(mag) and sigma > 0:
        flux = 10.0 ** (-0.4 * (mag - ZERO_POINT))
        error = flux * sigma / _MAG
        if packed.is_positive(past, {}) is False:
            flux = -flux
        return {
            **point, "flux": flux, "flux_err": error, "snr": flux / error, "mag": mag, "mag_err": sigma,
            "upper_limit": max(flux, 0.0) + _OUR_SIGMA * error, "mag_limit": math.nan,
        }  # fmt: skip
    if not math.isfinite(limit):
        return None
    error = 10.0 ** (-0.4 * (limit - ZERO_POINT)) / _LIMIT_SIGMA
    # What was measured there is not told, only that it was less than this.
    return {
        **point, "flux": 0.0, "flux_err": error, "snr": 0.0, "mag": math.nan, "mag_err": math.nan,
        "upper_limit": _OUR_SIGMA * error, "mag_limit": ZERO_POINT - 2.5 * math.log10(_OUR_SIGMA * error),
    }  # fmt: skip


def write_alert_stamps(
    folder: Path, packets: Mapping[str, AlertPacket], candidates: pd.DataFrame
) -> pd.DataFrame:
    """Write the cut-outs of all candidates as `night.stamps` does those of AstrID's own; return their table.

    Planes are in units of their own noise. Rows are counted upwards, as surveys do; which way north is, packets do not
    say. The score is the difference filtered by a Gaussian, for packets bring no PSF along.
    """
    from astrid_pipeline.learning.alert_scores import stamp_of
    from astrid_pipeline.learning.stamps import score_of

    rows: list[dict[str, Any]] = []
    images = []
    for identity, x, y in candidates[["exposure_id", "x", "y"]].itertuples(index=False):
        packet = packets[identity]
        try:
            stamp = stamp_of(packet)
        except ValueError:
            continue  # the table says so
        none = np.full(stamp.difference.shape, np.nan, np.float32)
        planes = np.stack(
            [
                none if stamp.science is None else stamp.science,
                none if stamp.template is None else stamp.template,
                stamp.difference * np.float32(stamp.sign),
                score_of(stamp) * np.float32(stamp.sign),
            ]
        )
        planes[:, stamp.blank] = np.nan
        # 64² with the source at (32, 32): the 63² around it.
        images.append(turned(planes[:, 1:, 1:], True, 2))
        rows.append(
            {
                "exposure_id": identity,
                "x": x,
                "y": y,
                "row": len(rows),
                "turns": 2,
                "mirrored": True,
                "north": math.nan,
                "pixel_scale": math.nan,
                "science_sigma": stamp.noise[0],
                "reference_sigma": stamp.noise[1],
                "masked": float(stamp.blank[1:, 1:].mean()),
            }
        )
    largest = float(np.finfo(np.float16).max)
    shape = (0, len(PLANES), CUTOUT_SIZE, CUTOUT_SIZE)
    stack = np.clip(np.stack(images), -largest, largest) if images else np.zeros(shape)
    np.save(folder / "stamps.npy", stack.astype(np.float16), allow_pickle=False)
    table = STAMPS.conform(pd.DataFrame(rows))
    table.to_parquet(folder / "stamps.parquet", index=False)
    return table
