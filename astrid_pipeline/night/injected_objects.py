"""Objects that live over the nights, to be put into copies of frames: supernovae in galaxies, and periodic stars.

Nothing is kept of them. Which galaxy or star of a reference it is, when it peaks, how bright beside it, of which
period: all follows from the seed, the field and the place, so that nights made in any order, or again, show one and the
same object; its flux in each is that of its light curve. A reference that is made anew keeps them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from astrid_pipeline.imaging.frame import Difference, Frame
from astrid_pipeline.imaging.mask import UNUSABLE, Mask, is_set
from astrid_pipeline.imaging.stars import extract_plain
from astrid_pipeline.simulation.transients import WAVELENGTHS, periodic_magnitude, supernova_flux

#: Shares of a reference's galaxies that have supernovae, of which about half shine at a time, and of its stars that are
#: periodic: some half of what may get any injection in an exposure (`injections.HOST_SHARE`,
#: `injected_changes.STAR_SHARE`). The other half is for changes of one night.
HOSTS, STARS = 0.05, 0.025
#: Days from one supernova of a galaxy to its next; each can be seen for some seventy.
CYCLE = 150.0
#: Light of a supernova at its peak over that of its galaxy: M_B = -19.3 of type Ia beside galaxies of -18 to -21.
BESIDE_HOST = (0.2, 3.3)
#: Amplitudes of stars, mag, as of the simulated survey's (`simulation.transients.draw_variables`).
AMPLITUDES = (0.08, 1.0)
#: Fainter than this in a night, there is nothing to be found: it is not put in.
LEAST_SNR = 3.0
#: Periods, days: RR Lyrae to long ones.
PERIODS = (0.3, 60.0)
#: Side of the cells that places are named by, px: a centroid's error seldom leads into the next.
_CELL = 12.0
_COLUMNS = [
    "object_id",
    "kind",
    "ra",
    "dec",
    "flux",
    "peak",
    "stretch",
    "shape",
    "period",
    "amplitude",
    "turn",
    "rank",
]


def draw_objects(reference: Frame, field: str, seed: int = 0) -> pd.DataFrame:
    """Choose the objects of a field's reference.

    Parameters
    ----------
    reference:
        With PSF, WCS, its sky taken off and the noise of it known; the objects are chosen among its sources.
    field, seed:
        With the place they decide everything.

    Returns
    -------
    DataFrame
        object_id, kind (``supernova`` or ``variable``), ra, dec (ICRS, deg), flux (at a supernova's peak, or the
        star's mean; units of the reference), peak (MJD of one of the galaxy's supernovae), stretch, shape, period (d),
        amplitude (mag), turn (phase at MJD 0) and rank (0-1: where some are too many, the lowest stay). Empty without a
        WCS.
    """
    from astropy import units
    from astropy.wcs.utils import proj_plane_pixel_scales
    from astropy_healpix import HEALPix

    if reference.wcs is None or reference.psf is None:
        return pd.DataFrame(columns=_COLUMNS)
    sources = _sources(reference)
    scale = float(np.mean(proj_plane_pixel_scales(reference.wcs.celestial)))
    order = int(np.clip(math.floor(math.log2(58.6 / (_CELL * scale))), 0, 29))
    cells = HEALPix(2**order, "nested")
    # A fifth of a cell, some 2 to 5 px: by the grid, not by the seeing, so that it is one place in all filters.
    reach = 58.6 / 2**order / scale / 5
    rows = []
    seen: set[tuple[bool, int]] = set()
    sky = reference.wcs.all_pix2world(sources["x"], sources["y"], 0)
    numbers = cells.lonlat_to_healpix(*(np.asarray(a) * units.deg for a in sky))
    for (x, y, light, galaxy), number in zip(
        sources[["x", "y", "flux", "galaxy"]].itertuples(index=False), numbers, strict=True
    ):
        # The brightest of a cell comes first, and is alone.
        if (galaxy, int(number)) in seen:
            continue
        seen.add((galaxy, int(number)))
        kind = "supernova" if galaxy else "variable"
        rng = _rng(seed, field, kind, order, int(number))
        rank = float(rng.random()) / (HOSTS if galaxy else STARS)
        if rank >= 1:
            continue
        name = f"{field}-{'sn' if galaxy else 'var'}-{order}-{int(number)}"
        draw = _supernova(rng, x, y, light, reach) if galaxy else _variable(rng, x, y, light)
        rows.append({"object_id": name, "kind": kind, "rank": rank, **draw})
    table = pd.DataFrame(rows, columns=[*_COLUMNS, "x", "y"])
    if len(table):
        table["ra"], table["dec"] = reference.wcs.all_pix2world(table["x"], table["y"], 0)
    return table[_COLUMNS]


def _rng(*names: object) -> np.random.Generator:
    text = ":".join(map(str, names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _supernova(rng: np.random.Generator, x: float, y: float, light: float, reach: float) -> dict[str, object]:
    radius, angle = reach * math.sqrt(rng.random()), 2 * math.pi * rng.random()
    return {
        "x": x + radius * math.cos(angle),
        "y": y + radius * math.sin(angle),
        "flux": light * _log_uniform(rng, *BESIDE_HOST),
        "peak": CYCLE * rng.random(),
        "stretch": rng.uniform(0.8, 1.25),
        "shape": "",
        "period": np.nan,
        "amplitude": np.nan,
        "turn": np.nan,
    }


def _variable(rng: np.random.Generator, x: float, y: float, light: float) -> dict[str, object]:
    return {
        "x": x,
        "y": y,
        "flux": light,
        "peak": np.nan,
        "stretch": np.nan,
        "shape": str(rng.choice(["sine", "sawtooth", "eclipse"])),
        "period": _log_uniform(rng, *PERIODS),
        "amplitude": _log_uniform(rng, *AMPLITUDES),
        "turn": rng.random(),
    }


def _sources(reference: Frame) -> pd.DataFrame:
    """Return x, y, flux and galaxy (else star) of the reference's sources, the brightest first."""
    assert reference.psf is not None
    fwhm = float(reference.psf.fwhm())
    bad = is_set(reference.mask, int(UNUSABLE | Mask.EDGE)) | ~np.isfinite(reference.data)
    image = np.where(bad, 0, reference.data).astype(np.float32)
    found = extract_plain(image, float(reference.meta["sky_sigma"]), bad, 10.0)
    size = 2.3548 * np.sqrt(np.maximum(found["a"] * found["b"], 0))
    table = pd.DataFrame({name: found[name].astype(float) for name in ("x", "y", "flux")})
    table = table.assign(galaxy=size > 1.3 * fwhm)
    return table.sort_values(["flux", "x"], ascending=[False, True], kind="stable").reset_index(drop=True)


def objects_at(objects: pd.DataFrame, mjd: float, band: str) -> pd.DataFrame:
    """Return what shines at a time: object_id, kind, ra, dec, rank, phase, flux (the change, units of the reference).

    The phase is days since a supernova's peak, or the star's turn (0-1). A galaxy's next supernova is another object.

    Parameters
    ----------
    band:
        Name of the filter: supernovae rise and fall at the pace of the nearest of `WAVELENGTHS`.
    """
    rows = []
    for row in objects.to_dict(orient="records"):
        known = {name: row[name] for name in ("kind", "ra", "dec", "rank")}
        if row["kind"] == "supernova":
            number = round((mjd - row["peak"]) / CYCLE)
            phase = mjd - row["peak"] - number * CYCLE
            share = float(supernova_flux(phase, band_of(band), stretch=row["stretch"]))
            rows.append(
                {
                    **known,
                    "object_id": f"{row['object_id']}-{number}",
                    "phase": phase,
                    "flux": row["flux"] * share,
                }
            )
            continue
        fainter = periodic_magnitude(mjd, row["shape"], row["period"], row["amplitude"], row["turn"])
        change = row["flux"] * (10 ** (-0.4 * float(fainter)) - 1)
        phase = (mjd / row["period"] + row["turn"]) % 1.0
        rows.append({**known, "object_id": row["object_id"], "phase": phase, "flux": change})
    return pd.DataFrame(rows, columns=["object_id", "kind", "ra", "dec", "rank", "phase", "flux"])


def band_of(name: str) -> str:
    """Return which of the filters u, g, r, i, z one is nearest to: by its letter, else r."""
    letters = [letter for letter in name.strip().lower() if letter.isalpha()]
    if letters and letters[-1] in WAVELENGTHS:
        return letters[-1]
    return {"b": "g", "v": "g", "y": "z", "j": "z", "h": "z", "k": "z"}.get(
        letters[-1] if letters else "", "r"
    )


def plan_objects(
    objects: pd.DataFrame, difference: Difference, *, hosts: int, stars: int, border: int = 12
) -> pd.DataFrame:
    """Return what of the objects goes into an exposure, as `injections.plan_injections` does, with object_id and phase.

    Objects off the frame, on masked pixels, or fainter than `LEAST_SNR` there are left out; of two within 6 FWHM, and
    where they are more than `hosts` or `stars`, those of the lower rank stay.
    """
    names = ["x", "y", "flux", "snr", "on_galaxy", "kind", "length", "angle", "object_id", "phase"]
    mjd = difference.meta.get("mjd")
    if difference.wcs is None or not len(objects) or mjd is None:
        return pd.DataFrame(columns=names)
    now = objects_at(objects, float(mjd), str(difference.meta.get("filter") or ""))
    x, y = difference.wcs.all_world2pix(now["ra"], now["dec"], 0)
    flux = now["flux"] * float(difference.meta.get("flux_ratio") or 1.0)
    now = now.assign(x=x, y=y, flux=flux).sort_values("rank", kind="stable")
    bad = is_set(difference.mask, int(UNUSABLE | Mask.EDGE), reference=True)
    height, width = difference.shape
    left = {"supernova": hosts, "variable": stars}
    apart = (6 * difference.psf.fwhm()) ** 2
    rows: list[dict[str, object]] = []
    at: list[tuple[float, float]] = []
    for row in now.to_dict(orient="records"):
        if not (np.isfinite(row["x"]) and np.isfinite(row["y"])):
            continue
        column, line = round(row["x"]), round(row["y"])
        inside = border <= column < width - border and border <= line < height - border
        if not inside or not left[row["kind"]] or bad[line - 3 : line + 4, column - 3 : column + 4].any():
            continue
        if any((row["x"] - a) ** 2 + (row["y"] - b) ** 2 < apart for a, b in at):
            continue
        at.append((row["x"], row["y"]))
        # One that does not shine has its place all the same: else another would come and go with it.
        left[row["kind"]] -= 1
        snr = abs(row["flux"]) / float(difference.flux_err[line, column])
        if snr < LEAST_SNR:
            continue
        known = {name: row[name] for name in ("x", "y", "flux", "kind", "object_id", "phase")}
        rows.append(
            {**known, "snr": snr, "on_galaxy": row["kind"] == "supernova", "length": 0.0, "angle": 0.0}
        )
    return pd.DataFrame(rows, columns=names)


def in_words(truth: pd.DataFrame) -> str:
    """Return the long-lived objects of a night's injections as JSON: object_id, kind, snr, phase, detected of each."""
    if "object_id" not in truth:
        return "[]"
    mine = truth[truth["object_id"].notna()]
    keep = ["object_id", "kind", "snr", "phase", "detected"]
    return json.dumps(json.loads(mine[keep].round(3).to_json(orient="records")))


def followed(nights: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Return how often each long-lived object was put in and found again.

    Parameters
    ----------
    nights:
        Night, and what `in_words` wrote of it (of one filter).

    Returns
    -------
    DataFrame
        object_id, kind, nights (in which it was put in), found (of these, nights in which it was detected), first and
        last of the phases at which it was.
    """
    rows = [{"night": night, **row} for night, text in nights for row in json.loads(text or "[]")]
    names = ["object_id", "kind", "nights", "found", "first_phase", "last_phase"]
    if not rows:
        return pd.DataFrame(columns=names)
    table = pd.DataFrame(rows)
    seen = table[table["detected"]]
    grouped, hits = table.groupby("object_id", sort=True), seen.groupby("object_id")
    out = pd.DataFrame({"kind": grouped["kind"].first(), "nights": grouped["night"].nunique()})
    out["found"] = hits["night"].nunique().reindex(out.index).fillna(0).astype(int)
    out["first_phase"], out["last_phase"] = (
        getattr(hits["phase"], f)().reindex(out.index) for f in ("min", "max")
    )
    return out.reset_index()[names]
