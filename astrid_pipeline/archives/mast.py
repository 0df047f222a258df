"""MAST as an archive: HST, JWST, PS1, Swift, GALEX and others, listed without gaps and fetched once.

Opened by texts like ``mast:HST?filter=F160W&product=FLT`` (see `mast_query.MastQuery`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from astrid_pipeline.archives import footprint
from astrid_pipeline.archives.base import ExposureRecord, Field, copy_checked, night_of, safe_name
from astrid_pipeline.archives.cloud import CloudCopy
from astrid_pipeline.archives.download import DiskCache, download, side_by_side
from astrid_pipeline.archives.header_cache import cache_folder
from astrid_pipeline.archives.mast_listing import KeptListing, State, mjd_now, usable_products, version_of
from astrid_pipeline.archives.mast_query import MastClient, MastQuery, filter_of
from astrid_pipeline.archives.mast_rows import each
from astrid_pipeline.archives.profiles import usual_products
from astrid_pipeline.archives.web import BRIEF, Patience
from astrid_pipeline.errors import AstridError, ConfigError, ReadError, ServiceError
from astrid_pipeline.settings import get_settings

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Minutes for which a listing is taken as it is: a run asks for what the sensor has just listed.
FRESH_MINUTES = 15.0
#: Seconds that a tick spends on products; a field of 20,000 observations is listed in several ticks.
TICK_SECONDS = 20.0


class MastArchive:
    """Observations of MAST that a query names.

    Parameters
    ----------
    query:
        Which ones.
    token:
        What opens exclusive data; default the variable MAST_API_TOKEN.
    patience:
        How long to wait for the archive.
    home:
        Folder for listings and fetched files; default under AstrID's home.
    cache_bytes:
        How much of them is kept; default is the setting.
    in_tick:
        See `open_archive`.
    """

    def __init__(
        self,
        query: MastQuery | str,
        *,
        token: str | None = None,
        patience: Patience | None = None,
        home: Path | None = None,
        cache_bytes: int | None = None,
        in_tick: bool = False,
    ) -> None:
        self.query = MastQuery.parse(query) if isinstance(query, str) else query
        self.name = "mast:" + ",".join(self.query.collections)
        self.patience = patience or (BRIEF if in_tick else Patience())
        self.fresh_minutes = math.inf if in_tick else FRESH_MINUTES
        self.token = os.environ.get("MAST_API_TOKEN") if token is None else token
        folder = home or cache_folder().parent / "mast"
        self.folder = folder
        if cache_bytes is None:
            cache_bytes = int(get_settings().archive_cache_gb * 1e9)
        self.cache = DiskCache(folder / "files", cache_bytes)
        self.client = MastClient(self.query.server, self.token, self.patience)
        self.cloud = CloudCopy(self.client, self.patience) if self.query.cloud else None
        self.seconds = TICK_SECONDS if in_tick else math.inf
        #: Observations whose products the last `refresh` had no time to ask for; the next one goes on with them.
        self.unfinished = 0
        self._failed: dict[str, AstridError] = {}

    def fields(self) -> list[Field]:
        """Return nothing: all of the sky is in the archive, and a person says what is wanted of it."""
        return []

    def listing(self, field: Field) -> KeptListing:
        """Return where the field's listing is kept."""
        key = repr((self.query, round(field.ra, 6), round(field.dec, 6), round(field.radius, 6)))
        return KeptListing(self.folder / "listings", field.name, key)

    def state(self, field: Field) -> State:
        """Return how far the field's listing is."""
        return self.listing(field).state()

    def refresh(self, field: Field, *, full: bool = False) -> list[str]:
        """Ask the archive for what is new or changed in a field; return the ids of those observations.

        Raises
        ------
        ConfigError
            If the field has no position.
        ServiceError
            If the archive does not answer; what was known stays.
        """
        from astropy import units
        from astropy.coordinates import SkyCoord

        if not np.isfinite(field.ra):
            raise ConfigError("the field has no position", where=field.name, remedy="give it --ra and --dec")
        where = {
            "coordinates": SkyCoord(field.ra, field.dec, unit="deg"),
            "radius": field.radius * units.deg,
        }
        kept = self.listing(field)
        with kept.lock():
            changed = kept.update(self.client, {**self.query.criteria(), **where}, full)
            self._find_products(kept, field)
        return changed

    def _find_products(self, kept: KeptListing, field: Field) -> None:
        """Ask for the products of the wanted observations whose file is not known yet; kept after each batch."""
        began = time.monotonic()
        rows = kept.rows()
        wanted = self._wanted(rows, field)
        missing = wanted[wanted.uri.isna() & wanted.kind.isna()]
        step = 500
        for first in range(0, len(missing), step):
            self.unfinished = len(missing) - first
            if time.monotonic() - began > self.seconds:
                return
            part = missing.iloc[first : first + step]
            products = self.client.products([str(obsid) for obsid in part.obsid])
            for collection in sorted(set(part.obs_collection)):
                usual = self.query.products or usual_products(str(collection))
                mine = set(part.obsid[part.obs_collection == collection])
                best = usable_products(
                    products[products.obsID.isin(mine)] if len(products) else products, usual
                )
                found = {str(row.obsID): row for row in each(best)}
                chosen = rows.obsid.isin(mine)
                # `kind` is set for all that were asked for: an observation without a file is not asked for again.
                rows.loc[chosen, "kind"] = [
                    str(found[obsid].productSubGroupDescription or "image") if obsid in found else "none"
                    for obsid in rows.obsid[chosen]
                ]
                rows.loc[chosen, "uri"] = [
                    found[obsid].dataURI if obsid in found else None for obsid in rows.obsid[chosen]
                ]
                rows.loc[chosen, "size"] = [
                    float(found[obsid].size) if obsid in found and found[obsid].size is not None else np.nan
                    for obsid in rows.obsid[chosen]
                ]
            kept.save(rows, kept.state())
        self.unfinished = 0

    def _wanted(self, rows: pd.DataFrame, field: Field) -> pd.DataFrame:
        """Return the observations that belong to the field: centred in it, or with its centre in their footprint."""
        rows = self.query.keep(rows, field.filters)
        if not len(rows):
            return rows
        near = [
            field.holds(row.s_ra, row.s_dec)
            or (not field.cell and footprint.contains(row.s_region, field.ra, field.dec))
            for row in each(rows)
        ]
        return rows[near]

    def exposures(self, field: Field, since: float | None = None) -> list[ExposureRecord]:
        """Return the field's exposures that can be fetched, in order of time.

        The listing is brought up to date if it is older than `FRESH_MINUTES`. If the archive does not answer then,
        what is known is returned, with a warning in the log: nights that are listed can be made.

        Raises
        ------
        ServiceError
            If nothing is known and the archive does not answer.
        """
        kept = self.listing(field)
        if (mjd_now() - kept.state().polled) * 1440 > self.fresh_minutes:
            try:
                self.refresh(field)
            except ServiceError as error:
                if not kept.table.exists() or error.permanent:
                    raise
                log.warning("%s: the listing is as of its last poll: %s", field.name, error)
        rows = self._wanted(kept.rows(), field)
        now = mjd_now()
        out: dict[str, ExposureRecord] = {}
        for row in each(rows):
            if not row.uri or not self._readable(row, now):
                continue
            # TESS and others list an observation of weeks as one row; its middle is what its file is of.
            end = row.t_max if np.isfinite(row.t_max) else row.t_min
            mjd = (row.t_min + end) / 2
            identity = f"{safe_name(str(row.obs_id))}-{version_of(row)}"
            if identity in out:
                identity = f"{identity}-{row.obsid}"
            if since is not None and mjd <= since:
                continue
            out[identity] = ExposureRecord(
                exposure_id=identity,
                field=field.name,
                kind="light",
                mjd=float(mjd),
                night=night_of(float(mjd), field.site_longitude),
                filter=filter_of(row.filters),
                instrument=str(row.instrument_name or row.obs_collection),
                exposure=float(row.t_exptime)
                if np.isfinite(row.t_exptime)
                else float((end - row.t_min) * 86400),
                url=str(row.uri),
                size=int(row.size) if np.isfinite(row.size) else -1,
                ra=float(row.s_ra),
                dec=float(row.s_dec),
            )
        return sorted(out.values(), key=lambda r: (r.mjd, r.exposure_id))

    def _readable(self, row: Any, now: float) -> bool:
        """Tell whether the file may be read: public (also where the row does not say), or there is a token."""
        public = row.dataRights in (None, "PUBLIC") or (
            np.isfinite(row.t_obs_release) and row.t_obs_release <= now
        )
        return bool(public or (self.token and not self.query.public_only))

    def calibrations(self, instrument: str, night: str) -> list[ExposureRecord]:
        """Return none: the archive's images are calibrated."""
        return []

    def catalogue(self, field: Field) -> pd.DataFrame | None:
        """Return None: star catalogues are asked for elsewhere."""
        return None

    def truth(self, field: Field, night: str) -> pd.DataFrame | None:
        """Return None: nobody planted anything in real frames."""
        return None

    def prefetch(self, records: Sequence[ExposureRecord]) -> None:
        """Bring the records' files into the cache, a few at a time; what fails is told by `fetch`."""
        if self.cloud is not None and records:
            with contextlib.suppress(ServiceError):  # told for each file as it is fetched
                self.cloud.find([record.url for record in records])
        waiting = {record.url: partial(self._cached, record) for record in records}
        for url, result in side_by_side(waiting).items():
            if isinstance(result, AstridError):
                self._failed[url] = result

    def _cached(self, record: ExposureRecord) -> Path:
        version = record.exposure_id
        if (there := self.cache.get(record.url, version)) is not None:
            return there
        target = self.cache.path(record.url, version)
        size = record.size if record.size > 0 else None
        if self.cloud is not None and self.cloud.fetch(record.url, target, size) is not None:
            self.cache.trim([target])
            return target
        address = f"{self.query.server}/api/v0.1/Download/file?uri={quote(record.url, safe=':/')}"
        download(
            address,
            target,
            size=size,
            session=self.client.session,
            patience=self.patience,
            what=Path(record.url).name,
        )
        self.cache.trim([target])
        return target

    def fetch(self, record: ExposureRecord, folder: Path) -> Path:
        """Bring the exposure's file into `folder` and return its path.

        Raises
        ------
        ServiceError
            If no whole file came.
        """
        if (error := self._failed.pop(record.url, None)) is not None:
            raise error
        ending = "".join(suffix for suffix in Path(record.url).suffixes[-2:] if suffix.lower() in _ENDINGS)
        target = Path(folder) / f"{record.exposure_id}{ending.lower() or '.fits'}"
        for _ in range(2):
            cached = self._cached(record)
            try:
                return copy_checked(cached, target, size=cached.stat().st_size)
            except (FileNotFoundError, ReadError):
                # Another process has made room by removing just this file: fetch it once more.
                continue
        return Path(shutil.copyfile(self._cached(record), target))


_ENDINGS = (".fits", ".fit", ".fts", ".fz", ".gz", ".bz2")
