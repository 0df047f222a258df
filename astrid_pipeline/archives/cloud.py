"""MAST's public products from their copy in the cloud (the bucket `stpubdata`), where an archive text enables it.

astroquery says where a product lies there, and asks the bucket whether it does; it is fetched anonymously, with the
same checks, resuming and patience as from the archive itself. In the bucket's own region this is many times as fast.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from astrid_pipeline.archives.download import download
from astrid_pipeline.archives.mast_query import MastClient
from astrid_pipeline.archives.web import LATER, BadAnswerError, Patience, open_session, persist
from astrid_pipeline.errors import ServiceError

log = logging.getLogger(__name__)


class CloudCopy:
    """Where MAST's products lie in the cloud, and how they are fetched from there.

    The bucket's server is Amazon's, or what `AWS_ENDPOINT_URL_S3` names, as for every program that uses boto3.

    Parameters
    ----------
    client:
        Asks MAST.
    patience:
        How long to wait for MAST and for the bucket.
    """

    def __init__(self, client: MastClient, patience: Patience) -> None:
        self.client = client
        self.patience = patience
        self._known: dict[str, str | None] = {}
        self._lock = threading.Lock()
        # Not MAST's session: its token is nobody else's business.
        self._session: requests.Session | None = None
        self._s3: Any = None
        self._silent = ""

    def find(self, uris: Sequence[str]) -> dict[str, str | None]:
        """Return each product's ``s3://bucket/key``, None where the cloud has no copy; each is asked for once.

        Raises
        ------
        ServiceError
            If MAST or the bucket does not answer.
        """
        with self._lock:
            if self._silent:
                return {uri: self._known.get(uri) for uri in uris}
            missing = [uri for uri in dict.fromkeys(uris) if uri not in self._known]
            if missing:
                try:
                    self._known |= persist(
                        lambda: self._ask(missing),
                        f"find {len(missing)} products in the cloud",
                        self.client.server,
                        self.patience,
                    )
                except ServiceError as error:
                    self._silent = str(error)
                    raise
            return {uri: self._known[uri] for uri in uris}

    def _ask(self, uris: list[str]) -> dict[str, str | None]:
        from botocore.exceptions import BotoCoreError, ClientError

        observations = self.client.astroquery()
        if observations._cloud_connection is None:
            observations.enable_cloud_dataset("AWS", verbose=False)

        def ask() -> dict[str, str | None]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "unable to locate" is an answer
                return dict(observations.get_cloud_uris(uris, return_uri_map=True, verbose=False) or {})

        # astroquery's look-up has no time-out of its own.
        pool = ThreadPoolExecutor(1, thread_name_prefix="cloud")
        try:
            found = pool.submit(ask).result(self.patience.connect + self.patience.read)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in LATER:
                raise BadAnswerError(f"the bucket says: {error}") from error
            refused = ServiceError(f"the bucket refuses: {error}", where="stpubdata")
            refused.permanent = True
            raise refused from error
        except BotoCoreError as error:
            raise BadAnswerError(f"the bucket does not answer: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswerError(f"the answer has another form ({type(error).__name__}: {error})") from error
        finally:
            pool.shutdown(wait=False)
        return {uri: found.get(uri) for uri in uris}

    def fetch(self, uri: str, target: Path, size: int | None) -> Path | None:
        """Bring a product to `target`; None, with a line in the log, where it must come from the archive itself."""
        name = Path(uri).name
        if self._silent:
            # One file has waited for it; the others of this run need not.
            log.warning("%s: %s; fetched from the archive itself", name, self._silent)
            return None
        try:
            place = self.find([uri])[uri]
            if place is None:
                log.warning("%s has no copy in the cloud: fetched from the archive itself", name)
                return None
            return download(
                self._address(place),
                target,
                size=size,
                session=self._open(),
                patience=self.patience,
                what=f"{name} from the cloud",
            )
        except ServiceError as error:
            if not error.permanent:
                self._silent = str(error)
            log.warning("%s: %s; fetched from the archive itself", name, error)
            return None

    def _open(self) -> requests.Session:
        if self._session is None:
            self._session = open_session(self.patience)
        return self._session

    def _address(self, place: str) -> str:
        """Return the address of an object of a public bucket."""
        with self._lock:
            if self._s3 is None:
                import boto3
                from botocore import UNSIGNED
                from botocore.config import Config

                self._s3 = boto3.client("s3", config=Config(signature_version=UNSIGNED))
            bucket, _, key = place.removeprefix("s3://").partition("/")
            # Of an unsigned client this is the plain address.
            return str(self._s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))
