"""TESS full-frame images as an archive: cut-outs by TESSCut, each epoch an exposure.

Opened by texts like ``tesscut:?size=120&sector=1,2&every=48``: side in pixels of 21″, sectors (default all), and every
how manieth epoch is taken (full-frame images come every 30, 10 or 3 minutes).
"""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from astrid_pipeline.archives.base import ExposureRecord, Field, night_of
from astrid_pipeline.archives.download import DiskCache, download
from astrid_pipeline.archives.header_cache import cache_folder
from astrid_pipeline.archives.hostile import from_zip
from astrid_pipeline.archives.mast_query import SERVER
from astrid_pipeline.archives.web import BRIEF, Patience, open_session, persist
from astrid_pipeline.errors import ConfigError, HeaderError, ReadError, ServiceError
from astrid_pipeline.settings import get_settings

if TYPE_CHECKING:
    import pandas as pd

#: Pixels on a side that the service gives at most.
MAX_SIZE = 99
#: Degrees of a TESS pixel.
PIXEL = 21.0 / 3600
#: TESS times are BJD − 2 457 000 (TDB): as MJD that is this much more.
MJD_OF_BTJD = 56_999.5
#: Electrons a second of a star of magnitude 0 on TESS's scale (TESS Instrument Handbook, sect. 6.1): 20.44 mag is one.
ZERO_POINT = 20.44


@dataclass(frozen=True)
class _Sector:
    name: str
    number: int
    camera: int
    ccd: int


class TesscutArchive:
    """Cut-outs of TESS full-frame images around each field's centre.

    Parameters
    ----------
    text:
        What stands behind ``tesscut:``.
    patience, home, in_tick:
        As of `MastArchive`.

    Raises
    ------
    ConfigError
        If an option is not known.
    """

    name = "tesscut"

    def __init__(
        self,
        text: str = "",
        *,
        patience: Patience | None = None,
        home: Path | None = None,
        in_tick: bool = False,
    ) -> None:
        given = {key: values[-1] for key, values in parse_qs(text.lstrip("?")).items()}
        if unknown := set(given) - {"size", "sector", "every", "server"}:
            raise ConfigError(
                f"unknown option {', '.join(sorted(unknown))}",
                where=f"tesscut:{text}",
                remedy="use size, sector, every, server",
            )
        try:
            self.size = int(given["size"]) if "size" in given else None
            self.sectors = {int(part) for part in given.get("sector", "").split(",") if part}
            self.every = int(given.get("every", "1"))
        except ValueError as error:
            raise ConfigError(f"{error}", where=f"tesscut:{text}", remedy="write whole numbers") from error
        if self.every < 1 or (self.size is not None and not 1 <= self.size <= MAX_SIZE):
            raise ConfigError(
                f"size={self.size}, every={self.every}",
                where=f"tesscut:{text}",
                remedy=f"size 1–{MAX_SIZE}, every ≥ 1",
            )
        self.server = given.get("server", SERVER).rstrip("/")
        self.patience = patience or (BRIEF if in_tick else Patience())
        self.in_tick = in_tick
        self.session = open_session(self.patience)
        folder = home or cache_folder().parent / "tesscut"
        self.cache = DiskCache(folder, int(get_settings().archive_cache_gb * 1e9))

    def fields(self) -> list[Field]:
        """Return nothing: the whole sky is there, and a person says what is wanted of it."""
        return []

    def _found(self, field: Field) -> list[_Sector]:
        if not math.isfinite(field.ra):
            raise ConfigError("the field has no position", where=field.name, remedy="give it --ra and --dec")
        query = urlencode({"ra": field.ra, "dec": field.dec, "radius": 0.0})

        def ask() -> list[dict[str, Any]]:
            reply = self.session.get(f"{self.server}/tesscut/api/v0.1/sector?{query}")
            reply.raise_for_status()
            return list(reply.json()["results"])

        rows = persist(ask, f"list the TESS sectors of {field.name}", self.server, self.patience)
        found = [_Sector(r["sectorName"], int(r["sector"]), int(r["camera"]), int(r["ccd"])) for r in rows]
        return [sector for sector in found if not self.sectors or sector.number in self.sectors]

    def _url(self, field: Field, sector: int) -> str:
        side = self.size or min(MAX_SIZE, max(5, math.ceil(2 * field.radius / PIXEL)))
        asked = {"x": side, "y": side, "units": "px", "sector": sector, "ra": field.ra, "dec": field.dec}
        return f"{self.server}/tesscut/api/v0.1/astrocut?{urlencode(asked)}"

    def _zip(self, url: str) -> Path:
        if (there := self.cache.get(url)) is not None:
            return there
        if self.in_tick:
            raise ServiceError(
                "the cut-outs are not fetched yet, which takes longer than a sensor's tick",
                where=self.server,
                remedy="run `astrid ingest` for this field once",
            )
        path = download(
            url, self.cache.path(url), session=self.session, patience=self.patience, what="a TESS cut-out"
        )
        if not zipfile.is_zipfile(path):
            path.unlink(missing_ok=True)
            raise ReadError("no zip came", where=url, remedy="try again; the service may have cut it off")
        self.cache.trim([path])
        return path

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the good epochs of all sectors, in order of time; the cut-outs themselves are fetched for that.

        Raises
        ------
        ServiceError
            If the service does not answer.
        """
        out = []
        for sector in self._found(field):
            url = self._url(field, sector.number)
            with _opened(self._zip(url)) as hdus:
                times, rows, seconds = _epochs(hdus)
            for mjd, row in list(zip(times, rows, strict=True))[:: self.every]:
                if since is None or mjd > since:
                    out.append(
                        ExposureRecord(
                            exposure_id=f"tess-s{sector.number:04d}-{sector.camera}-{sector.ccd}-{row:05d}",
                            field=field.name,
                            kind="light",
                            mjd=float(mjd),
                            night=night_of(float(mjd), field.site_longitude),
                            filter="TESS",
                            instrument="TESS",
                            exposure=seconds,
                            url=f"{url}#{row}",
                            size=-1,
                            ra=field.ra,
                            dec=field.dec,
                        )
                    )
        return sorted(out, key=lambda record: (record.mjd, record.exposure_id))

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return none: the images are calibrated."""
        return []

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Write one epoch as a FITS file (SCI and ERR with WCS) into `folder` and return its path.

        Raises
        ------
        HeaderError
            If the cut-out's WCS does not put the asked position into the cut-out (files of 2018).
        """
        url, _, row = record.url.rpartition("#")
        target = Path(folder) / f"{record.exposure_id}.fits"
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opened(self._zip(url)) as hdus:
            made = _frame(hdus, int(row), record)
        partial = target.with_name(f".{target.name}.part")
        made.writeto(partial, overwrite=True, checksum=True)
        partial.replace(target)
        return target

    def catalogue(self, field: Field) -> pd.DataFrame | None:
        """Return None: star catalogues are asked for elsewhere."""
        return None

    def truth(self, field: Field, night: str) -> pd.DataFrame | None:
        """Return None: nobody planted anything in real frames."""
        return None


def _opened(path: Path) -> fits.HDUList:
    """Return the one FITS file of a zip."""
    import io

    try:
        return fits.open(io.BytesIO(from_zip(path, ".fits")))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        path.unlink(missing_ok=True)
        raise ReadError(
            f"the cut-out is damaged: {error}", where=path, remedy="run it again: it is fetched anew"
        ) from error


def _epochs(hdus: fits.HDUList) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], float]:
    """Return MJD (UTC, spacecraft) and row of the epochs without a quality flag, and their spacing in seconds."""
    table = hdus[1].data
    flux = table["FLUX"]
    good = np.isfinite(table["TIME"]) & (table["QUALITY"] == 0) & np.isfinite(flux).all(axis=(1, 2))
    rows = np.flatnonzero(good)
    # TIMECORR is what was added to bring the spacecraft's clock to the barycentre.
    barycentric = np.asarray(table["TIME"][rows], float) - np.nan_to_num(
        np.asarray(table["TIMECORR"][rows], float)
    )
    times = Time(barycentric + MJD_OF_BTJD, format="mjd", scale="tdb").utc.mjd
    spacing = float(np.median(np.diff(times))) * 86400 if len(times) > 1 else 1800.0
    return np.asarray(times, float), rows, round(spacing, 1)


def _frame(hdus: fits.HDUList, row: int, record: ExposureRecord) -> fits.HDUList:
    table, aperture = hdus[1].data, hdus[2].header
    flux, error = np.asarray(table["FLUX"][row], np.float32), np.asarray(table["FLUX_ERR"][row], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        wcs = WCS(aperture)
        x, y = wcs.all_world2pix(record.ra, record.dec, 0)
        header = wcs.to_header(relax=True)
    if not (-0.5 <= x <= flux.shape[1] - 0.5 and -0.5 <= y <= flux.shape[0] - 0.5):
        raise HeaderError(
            f"the WCS puts the position asked for at pixel ({x:.0f}, {y:.0f}), outside of the cut-out",
            where=record.exposure_id,
            remedy="ask TESSCut again: its files of 2018 have a wrong reference pixel",
        )
    primary = fits.PrimaryHDU()
    cards: dict[str, Any] = {
        "TELESCOP": "TESS",
        "INSTRUME": "TESS",
        "FILTER": "TESS",
        "MJD-AVG": record.mjd,
        "EXPTIME": record.exposure,
        "SECTOR": int(record.exposure_id.split("-")[1][1:]),
        "FFI_FILE": str(table["FFI_FILE"][row]).strip(),
        "FLATCORR": "COMPLETE",
        "MAGZERO": ZERO_POINT,
    }
    for key, value in cards.items():
        primary.header[key] = value
    header["BUNIT"] = "electron/s"
    return fits.HDUList([primary, fits.ImageHDU(flux, header, name="SCI"), fits.ImageHDU(error, name="ERR")])
