"""What is wanted of MAST, as text; and the client that asks for it through astroquery without losing rows."""

from __future__ import annotations

import datetime as dt
import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import requests

from astrid_pipeline.archives.mast_rows import as_frame, as_rows
from astrid_pipeline.archives.web import BadAnswerError, Patience, persist, prepare
from astrid_pipeline.errors import ConfigError

T = TypeVar("T")

SERVER = "https://mast.stsci.edu"
#: Rows of one query. Beyond some 20,000 the service answers slowly or not at all; paging repeats and loses rows.
MAX_ROWS = 20_000
#: Halving ends here, days: exposures that begin within a second of each other are one query, however many.
SHORTEST = 1.0 / 86400
#: Observations whose products are asked for at once; the service refuses long lists.
PRODUCT_BATCH = 50
#: MJD before which nothing in the archive was taken (photographic plates are of 1949 and later).
FIRST_MJD = 32_000.0
#: One after which nothing will have been taken: the service wants both ends of a range.
LAST_MJD = 99_999.0
#: Seconds between questions while the service says that a query is still being worked on.
EXECUTING_PAUSE = 1.0


@dataclass(frozen=True)
class MastQuery:
    """Which observations of MAST are wanted; text form ``mast:HST,JWST?filter=F160W&product=FLT``.

    Attributes
    ----------
    collections:
        HST, JWST, TESS, PS1, SWIFT, GALEX, …
    filters, instruments:
        Names, ``*`` stands for any ending; empty for all.
    calib_levels:
        CAOM levels: 1 raw, 2 calibrated, 3 combined; empty for all.
    products:
        Kinds of product (FLT, DRZ, I2D …), the first that an observation has; empty for the collection's usual ones.
    product_type:
        CAOM data product type.
    start, end:
        MJD between which exposures began; from dates, ``from=2020-01-01&to=2020-12-31`` (that day too).
    intent:
        ``science`` or ``calibration``.
    public_only:
        Leave out what needs a token even where there is one.
    cloud:
        Take public files from their copy in the cloud, where there is one (see `archives.cloud`).
    server:
        Address of the service.
    """

    collections: tuple[str, ...]
    filters: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    calib_levels: tuple[int, ...] = ()
    products: tuple[str, ...] = ()
    product_type: str = "image"
    start: float = FIRST_MJD
    end: float = math.inf
    intent: str = "science"
    public_only: bool = False
    # Not in the text by which listings are kept: what is listed does not depend on it.
    cloud: bool = dataclass_field(default=False, repr=False)
    server: str = SERVER

    @classmethod
    def parse(cls, text: str) -> MastQuery:
        """Return the query of ``COLLECTIONS?name=value,…&name=value``.

        Raises
        ------
        ConfigError
            If no collection is named, or an option is not known.
        """
        names, _, options = text.partition("?")
        collections = tuple(name.strip().upper() for name in names.split(",") if name.strip())
        if not collections:
            raise ConfigError(
                "no collection is named", where=f"mast:{text}", remedy="write it as mast:HST or mast:HST,JWST"
            )
        given = {key: values[-1] for key, values in parse_qs(options, keep_blank_values=True).items()}
        known = {
            "filter",
            "instrument",
            "calib",
            "product",
            "type",
            "intent",
            "rights",
            "from",
            "to",
            "cloud",
            "server",
        }
        if unknown := set(given) - known:
            raise ConfigError(
                f"unknown option {', '.join(sorted(unknown))}",
                where=f"mast:{text}",
                remedy=f"use {', '.join(sorted(known))}",
            )

        def several(name: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in given.get(name, "").split(",") if part.strip())

        levels = several("calib")
        if bad := [level for level in levels if level not in ("0", "1", "2", "3", "4")]:
            raise ConfigError(
                f"calibration level {bad[0]!r} is not 0–4", where=f"mast:{text}", remedy="use calib=2,3"
            )
        if given.get("rights", "any") not in ("any", "public"):
            raise ConfigError(f"rights={given['rights']}", where=f"mast:{text}", remedy="use any or public")
        if given.get("cloud", "no") not in ("yes", "no"):
            raise ConfigError(f"cloud={given['cloud']}", where=f"mast:{text}", remedy="use yes or no")
        if "server" in given and not re.match(r"https?://", given["server"]):
            raise ConfigError(
                f"{given['server']!r} is no address", where=f"mast:{text}", remedy="begin it with https://"
            )
        return cls(
            collections=collections,
            filters=several("filter"),
            instruments=several("instrument"),
            calib_levels=tuple(int(level) for level in levels),
            products=tuple(kind.upper() for kind in several("product")),
            product_type=given.get("type", "image"),
            intent=given.get("intent", "science"),
            start=_mjd_of(given["from"], text) if "from" in given else FIRST_MJD,
            end=_mjd_of(given["to"], text) + 1.0 if "to" in given else math.inf,
            public_only=given.get("rights") == "public",
            cloud=given.get("cloud") == "yes",
            server=given.get("server", SERVER).rstrip("/"),
        )

    def criteria(self) -> dict[str, Any]:
        """Return astroquery's criteria. Filters and instruments with a wildcard are left to `keep`.

        The service takes one wildcard per criterion, and old rows lack intent and rights.
        """
        out: dict[str, Any] = {
            "obs_collection": list(self.collections),
            "dataproduct_type": [self.product_type],
        }
        if self.start > FIRST_MJD or math.isfinite(self.end):
            out["t_min"] = [self.start, min(self.end, LAST_MJD)]
        if self.calib_levels:
            out["calib_level"] = [str(level) for level in self.calib_levels]
        if self.instruments and not any("*" in name for name in self.instruments):
            out["instrument_name"] = list(self.instruments)
        return out

    def keep(self, rows: pd.DataFrame, filters: Sequence[str] = ()) -> pd.DataFrame:
        """Return the rows that are wanted, by what the service cannot be asked for.

        Parameters
        ----------
        rows:
            Observations with `COLUMNS`.
        filters:
            Filters of the field, besides the query's own.
        """
        if not len(rows):
            return rows
        good = np.isfinite(rows.t_min) & np.isfinite(rows.s_ra)
        good &= (rows.t_min >= self.start) & (rows.t_min < self.end)
        good &= rows.intentType.isna() | (rows.intentType == self.intent)
        # Full-frame images of TESS are cut out by TESSCut (`tesscut:`); whole, each is 35 MB and covers 24° squared.
        good &= ~rows.target_name.isin(["TESS FFI", "TICA FFI"])
        for wanted, column in (
            (self.instruments, "instrument_name"),
            (self.filters, "filters"),
            (filters, "filters"),
        ):
            if wanted:
                good &= rows[column].map(lambda value, wanted=wanted: _any_matches(value, wanted))
        return rows[good]


def _mjd_of(text: str, where: str) -> float:
    try:
        return float((dt.date.fromisoformat(text) - dt.date(1858, 11, 17)).days)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no date", where=f"mast:{where}", remedy="write it as YYYY-MM-DD"
        ) from error


def _any_matches(value: Any, wanted: Sequence[str]) -> bool:
    names = [str(value), filter_of(value), *str(value).split(";")]
    return any(
        re.fullmatch(".*".join(re.escape(part) for part in one.split("*")), name, re.IGNORECASE)
        for one in wanted
        for name in names
    )


def filter_of(value: Any) -> str:
    """Return one filter's name from the archive's list of what stood in the beam (``F606W;CLEAR2L``)."""
    parts = [part.strip() for part in re.split(r"[;/]", str(value or ""))]
    real = [
        part
        for part in parts
        if part and not re.match(r"(CLEAR|OPEN|NONE|NAN|DETECTION)", part, re.IGNORECASE)
    ]
    return "+".join(dict.fromkeys(real)) or "none"


class MastClient:
    """Asks MAST through astroquery: counts, observations without gaps, products; with patience.

    Parameters
    ----------
    server:
        Address of the service.
    token:
        What opens exclusive data; None to ask as anybody.
    patience:
        How long to wait, and how often to ask again.
    """

    def __init__(
        self, server: str = SERVER, token: str | None = None, patience: Patience | None = None
    ) -> None:
        self.server = server.rstrip("/")
        self.token = token
        self.patience = patience or Patience()
        self._lock = threading.RLock()
        self._made: Any = None

    @property
    def session(self) -> requests.Session:
        """The session that astroquery uses, with the token and with time-outs."""
        return self._observations()._session

    def astroquery(self) -> Any:
        """Return astroquery's own client, pointed at the server."""
        return self._observations()

    def _observations(self) -> Any:
        """Return astroquery's client, pointed at the server; astroquery takes a second to import."""
        with self._lock:
            if self._made is None:
                from astroquery.mast import ObservationsClass

                made = ObservationsClass()
                prepare(made._session, self.patience)
                made._session.hooks["response"].append(_wait_while_executing)
                portal = made._portal_api_connection
                # The class reads its addresses from the configuration at import; an instance may have its own.
                portal.MAST_REQUEST_URL = f"{self.server}/api/v0/invoke"
                portal.COLUMNS_CONFIG_URL = f"{self.server}/portal/Mashup/Mashup.asmx/columnsconfig"
                portal.MAST_DOWNLOAD_URL = f"{self.server}/api/v0.1/Download/file"
                portal._column_configs = {}
                made._auth_obj.SESSION_INFO_URL = f"{self.server}/whoami"
                if self.token:
                    self._log_in(made)
                self._made = made
            return self._made

    def _log_in(self, made: Any) -> None:
        from astroquery.exceptions import LoginError

        def ask() -> None:
            try:
                made.login(token=self.token)
            except LoginError as error:
                raise ConfigError(
                    "the archive does not know this token",
                    where="MAST_API_TOKEN",
                    remedy="make a new one at https://auth.mast.stsci.edu/tokens, or unset it for public data",
                ) from error

        persist(ask, "log in", self.server, self.patience)

    def _ask(self, call: Callable[[Any], T], what: str) -> T:
        from astroquery.exceptions import InvalidQueryError, RemoteServiceError

        client = self._observations()

        def once() -> T:
            with self._lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "no results" is an answer
                try:
                    return call(client)
                except InvalidQueryError as error:
                    raise ConfigError(
                        str(error), where=self.server, remedy="mend the archive's text"
                    ) from error
                except RemoteServiceError as error:
                    raise BadAnswerError(f"the service says: {error}") from error
                except (KeyError, TypeError, AttributeError, IndexError) as error:
                    # What astroquery makes of an answer in another form than the service's.
                    raise BadAnswerError(
                        f"the answer has another form ({type(error).__name__}: {error})"
                    ) from error

        return persist(once, what, self.server, self.patience)

    def count(self, criteria: Mapping[str, Any]) -> int:
        """Return how many observations satisfy the criteria."""
        return int(self._ask(lambda mast: mast.query_criteria_count(**criteria), "count the observations"))

    def observations(
        self, criteria: Mapping[str, Any], start: float, end: float, column: str = "t_min"
    ) -> pd.DataFrame:
        """Return all observations with `start` ≤ `column` ≤ `end` (MJD), each once, in order of time.

        They are counted first, and the time range is halved until a query is under `MAX_ROWS`.

        Raises
        ------
        ServiceError
            If the service does not answer properly.
        """
        ranges = self._ranges(criteria, column, start, end)
        parts = [self._query(criteria, column, first, last, count) for first, last, count in ranges]
        rows = pd.concat([as_rows(None), *parts], ignore_index=True) if parts else as_rows(None)
        # Ranges share their borders, and the service itself repeats rows.
        rows = rows.drop_duplicates("obsid", keep="last")
        return rows.sort_values(["t_min", "obsid"], ignore_index=True)

    def _ranges(
        self, criteria: Mapping[str, Any], column: str, start: float, end: float
    ) -> Iterator[tuple[float, float, int]]:
        count = self.count({**criteria, column: [start, end]})
        if count == 0:
            return
        if count <= MAX_ROWS or end - start <= SHORTEST:
            yield start, end, count
            return
        middle = (start + end) / 2
        yield from self._ranges(criteria, column, start, middle)
        yield from self._ranges(criteria, column, middle, end)

    def _query(
        self, criteria: Mapping[str, Any], column: str, start: float, end: float, count: int
    ) -> pd.DataFrame:
        def call(mast: Any) -> pd.DataFrame:
            table = mast.query_criteria(
                pagesize=max(count + 1000, 50_000), **{**criteria, column: [start, end]}
            )
            rows = as_rows(table)
            if rows.obsid.nunique() < count:
                raise BadAnswerError(f"{rows.obsid.nunique()} of {count} observations came")
            return rows

        return self._ask(call, f"list {count} observations")

    def products(self, obsids: Sequence[str]) -> pd.DataFrame:
        """Return the products of some observations, each once, with `obsID` as the observation asked for."""
        out = []
        for first in range(0, len(obsids), PRODUCT_BATCH):
            batch = [str(obsid) for obsid in obsids[first : first + PRODUCT_BATCH]]
            what = f"list the products of {len(batch)} observations"
            table = self._ask(partial(_product_list, batch), what)
            out.append(as_frame(table))
        rows = pd.concat(out, ignore_index=True) if out else pd.DataFrame()
        if "parent_obsid" in rows:
            # Newer answers name the member that a product is of, and beside it the observation asked for.
            rows["obsID"] = rows["parent_obsid"].fillna(rows["obsID"])
        return rows.drop_duplicates(["obsID", "dataURI"]) if len(rows) else rows


def _product_list(obsids: list[str], mast: Any) -> Any:
    return mast.get_product_list(obsids)


def _wait_while_executing(response: requests.Response, *_: Any, **__: Any) -> None:
    """Pause after an answer that says "still at it": astroquery asks again at once."""
    if "/invoke" in response.url and b'"EXECUTING"' in response.content[:200]:
        time.sleep(EXECUTING_PAUSE)
