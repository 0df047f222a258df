"""The store on a server that speaks S3: Cloudflare R2, Amazon, MinIO, rclone."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster_aws.s3 import S3Resource
from pydantic import Field

from astrid_pipeline.errors import DamagedError, MissingProductError, StoreError
from astrid_pipeline.resources.store import StoredObject, _missing, check_key, sha256_of

#: Larger objects go up in parts of this size. R2 and Amazon take 5 GiB in one PUT; parts keep a retry cheap.
_SINGLE_PUT_LIMIT = 64 * 1024 * 1024
_DIGEST = "astrid-sha256"
#: Times an object is asked for whose bytes are not those of its digest. rclone's server, for one, replaces an object
#: and its notes one after the other, and cuts what it sends at the length of what was there before: a moment later both
#: fit.
_LOOKS = 5
#: Errors that asking again cannot mend.
_PERMANENT = {
    "NoSuchBucket",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "403",
    "InvalidBucketName",
}


class R2Resource(S3Resource):
    """`S3Resource` with what Cloudflare R2 and other S3 servers need and the stock resource cannot be told.

    Path-style addresses, checksums only when an operation requires them (newer botocore adds headers that
    many servers refuse), a connection pool wide enough for parallel reads, and time-outs, so that a server
    that stopped answering becomes an error instead of a run that hangs.
    """

    region_name: str | None = Field(default="auto", description="Region; R2 has one, called auto.")
    connect_timeout: float = Field(default=10.0, description="Seconds to wait for a connection.")
    read_timeout: float = Field(
        default=60.0, description="Seconds without a byte before a request is given up."
    )
    max_pool_connections: int = Field(default=16, description="Connections kept open at once.")

    def get_client(self) -> Any:
        """Return a boto3 S3 client."""
        from botocore.config import Config

        given = (
            self.profile_name,
            self.aws_access_key_id,
            self.aws_secret_access_key,
            self.aws_session_token,
        )
        named = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        # Clients may be used by threads side by side, but not made by them.
        with _making_a_client:
            return _session(*given, named).client(
                "s3",
                endpoint_url=self.endpoint_url,
                region_name=self.region_name,
                use_ssl=self.use_ssl,
                verify=self.verify,
                config=Config(
                    connect_timeout=self.connect_timeout,
                    read_timeout=self.read_timeout,
                    max_pool_connections=self.max_pool_connections,
                    retries={"max_attempts": self.max_attempts, "mode": "standard"},
                    s3={"addressing_style": "path"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )


_making_a_client = threading.Lock()


@functools.lru_cache(maxsize=16)
def _session(
    profile: str | None,
    key: str | None,
    secret: str | None,
    token: str | None,
    environment: tuple[tuple[str, str], ...],
) -> Any:
    """Return a boto3 session, one for all that is the same: each reads megabytes of JSON about S3, 0.2 s.

    `environment` is not used: other AWS_* variables are another session.
    """
    import boto3

    return boto3.session.Session(
        profile_name=profile, aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
    )


class S3Store:
    """A store in a bucket, below a prefix. Every object carries its SHA-256 as metadata."""

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self._conditional: bool | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def location(self, key: str) -> str:
        """Return the object's s3:// address."""
        return f"{self.url}/{check_key(key)}"

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _failing(self, what: str, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("NoSuchKey", "404", "NotFound"):
                raise _missing(key, self.url) from error
            failure = StoreError(
                f"cannot {what}: the server answered {code or 'an error'}",
                where=f"{self.url}/{key}",
                remedy="check ASTRID_STORE, ASTRID_STORE_ENDPOINT and the AWS keys"
                if code in _PERMANENT
                else "run it again; what was made is kept",
            )
            failure.permanent = code in _PERMANENT
            raise failure from error
        except (BotoCoreError, Boto3Error, RetriesExceededError) as error:
            raise StoreError(
                f"cannot {what}: {error}",
                where=f"{self.url}/{key}",
                remedy="check that the server of ASTRID_STORE_ENDPOINT is up and the AWS keys are set",
            ) from error

    def _put(self, key: str, data: bytes, **condition: str) -> StoredObject:
        digest = hashlib.sha256(data).hexdigest()
        self.client.put_object(
            Bucket=self.bucket,
            Key=self._key(key),
            Body=data,
            # The server refuses a body that was damaged on its way.
            ContentMD5=base64.b64encode(_md5(data).digest()).decode(),
            Metadata={_DIGEST: digest},
            **condition,
        )
        return StoredObject(key, len(data), digest)

    def put_bytes(self, key: str, data: bytes) -> StoredObject:
        """Keep `data` under `key`, replacing what was there, all or nothing."""
        with self._failing("write", key):
            return self._put(key, data)

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Keep a copy of the file under `key`; large files go up in parts that become visible together."""
        path = Path(path)
        size = path.stat().st_size
        if size <= _SINGLE_PUT_LIMIT:
            return self.put_bytes(key, path.read_bytes())
        from boto3.s3.transfer import TransferConfig

        digest = sha256_of(path)
        with self._failing("write", key):
            self.client.upload_file(
                str(path),
                self.bucket,
                self._key(key),
                ExtraArgs={"Metadata": {_DIGEST: digest}},
                Config=TransferConfig(
                    multipart_threshold=_SINGLE_PUT_LIMIT, multipart_chunksize=_SINGLE_PUT_LIMIT
                ),
            )
        return StoredObject(key, size, digest)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Keep `data` under `key` unless something is there; True for the one writer that won.

        Make `data` unique to the writer: if the server's reply to a successful PUT is lost, the retry is
        refused, and only the digest tells that it was this writer who won.

        Raises
        ------
        StoreError
            If the server ignores `If-None-Match`: every racing writer would believe to have won.
        """
        from botocore.exceptions import ClientError

        if not self._honours_conditions():
            error = StoreError(
                "the server ignores If-None-Match, so that nothing can be reserved on it",
                where=self.url,
                remedy="use a server that honours conditional PUTs (Cloudflare R2, Amazon S3, MinIO)",
            )
            error.permanent = True
            raise error
        with self._failing("write", key):
            try:
                self._put(key, data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 412:
                    raise
        return self.stat(key).sha256 == hashlib.sha256(data).hexdigest()

    def _honours_conditions(self) -> bool:
        from botocore.exceptions import ClientError

        if self._conditional is None:
            key = f"probe/{uuid.uuid4().hex}"
            with self._failing("write", key):
                self._put(key, b"first")
                try:
                    self._put(key, b"second", IfNoneMatch="*")
                    self._conditional = False
                except ClientError as error:
                    if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (409, 412):
                        raise
                    self._conditional = True
            self.delete([key])
        return self._conditional

    def get_bytes(self, key: str) -> bytes:
        """Return the object.

        Raises
        ------
        StoreError
            If its bytes are not those that it was written with, by the digest that it carries.
        """
        from botocore.exceptions import ResponseStreamingError

        for look in range(_LOOKS):
            with self._failing("read", key):
                answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key))
                try:
                    data: bytes = answer["Body"].read()
                except ResponseStreamingError:
                    # Cut off in the middle.
                    if look == _LOOKS - 1:
                        raise
                    data = b""
            fits = _fits(answer, data)
            if fits or (fits is None and look == _LOOKS - 1):
                return data
            time.sleep(0.05 * look)
        raise _damaged(key, self.url)

    def get_file(self, key: str, path: Path) -> Path:
        """Copy the object to `path` (all or nothing) and return it. Raises as `get_bytes`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            for look in range(_LOOKS):
                with self._failing("read", key):
                    head = self.client.head_object(Bucket=self.bucket, Key=self._key(key))
                    self.client.download_file(self.bucket, self._key(key), str(temporary))
                fits = _fits(head, temporary)
                if fits or (fits is None and look == _LOOKS - 1):
                    os.replace(temporary, target)
                    return target
                time.sleep(0.05 * look)
            raise _damaged(key, self.url)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def open_local(self, key: str) -> Iterator[Path]:
        """Give a temporary copy of the object; it is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="astrid-") as folder:
            yield self.get_file(key, Path(folder) / key.rsplit("/", 1)[-1])

    def exists(self, key: str) -> bool:
        """Tell whether there is an object under `key`."""
        try:
            self.stat(key)
        except MissingProductError:
            return False
        return True

    def stat(self, key: str) -> StoredObject:
        """Return the object's size and the digest it was written with."""
        with self._failing("read", key):
            head = self.client.head_object(Bucket=self.bucket, Key=self._key(key))
        return StoredObject(key, int(head["ContentLength"]), _digest_of(head))

    def list(self, prefix: str = "") -> list[StoredObject]:
        """Return the objects below the folder `prefix`, sorted by key; digests are not fetched."""
        folder = prefix.strip("/")
        start = f"{self._key(folder)}/" if folder else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        found = []
        with self._failing("list", folder):
            for page in self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            ):
                found += [
                    StoredObject(
                        entry["Key"][cut:],
                        int(entry["Size"]),
                        version=str(entry.get("ETag", "")),
                        modified=entry["LastModified"].timestamp(),
                    )
                    for entry in page.get("Contents", [])
                ]
        return sorted(found, key=lambda entry: entry.key)

    def signed_url(self, key: str, seconds: int) -> str:
        """Return an address at which anybody may fetch the object for so many seconds (a week at most)."""
        with self._failing("sign an address", key):
            return str(
                self.client.generate_presigned_url(
                    "get_object", Params={"Bucket": self.bucket, "Key": self._key(key)}, ExpiresIn=seconds
                )
            )

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for key in keys:
            with self._failing("delete", key):
                # One by one: the bulk operation requires a checksum header that not every server knows.
                self.client.delete_object(Bucket=self.bucket, Key=self._key(key))


def _digest_of(answer: Mapping[str, Any]) -> str | None:
    # Headers have no case, and servers return the name in another than it was sent in.
    notes = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    return notes.get(_DIGEST)


def _fits(answer: Mapping[str, Any], data: bytes | Path) -> bool | None:
    """Tell whether these are the bytes that the answer's digest names; None if it names none."""
    digest = _digest_of(answer)
    if digest is not None:
        return digest == (sha256_of(data) if isinstance(data, Path) else hashlib.sha256(data).hexdigest())
    tag = str(answer.get("ETag", "")).strip('"')
    whole = int(answer["ContentLength"]) == (data.stat().st_size if isinstance(data, Path) else len(data))
    if not tag or not whole:
        # Every server tags what it keeps: one that does not is just about to replace it.
        return None if whole else False
    # What came in parts, or is encrypted with somebody's key, has a tag that is no MD5.
    if len(tag) != 32 or "SSECustomerAlgorithm" in answer or "kms" in answer.get("ServerSideEncryption", ""):
        return True
    if isinstance(data, Path):
        with data.open("rb") as stream:
            return hashlib.file_digest(stream, _md5).hexdigest() == tag
    return _md5(data).hexdigest() == tag


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _damaged(key: str, where: str) -> DamagedError:
    return DamagedError(
        "the object is not what was written: its bytes have another digest than it carries",
        where=f"{where}/{key}",
        remedy="materialize the asset that makes it again, and look after the server's disks",
    )


def open_s3_store(url: str, *, endpoint: str | None = None, region: str = "auto") -> S3Store:
    """Return the store at `s3://bucket/prefix`; keys come from the usual AWS variables or files.

    Raises
    ------
    StoreError
        If the address names no bucket, or there are no keys.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        error = StoreError("names no bucket", where=url, remedy="write s3://bucket/prefix")
        error.permanent = True
        raise error
    if prefix.strip("/"):
        check_key(prefix.strip("/"))
    if region == "auto" and endpoint is None:
        # Amazon has no region of this name: leave the choice to AWS_REGION and the user's AWS configuration.
        resource = R2Resource(region_name=None)
    else:
        resource = R2Resource(endpoint_url=endpoint, region_name=region)
    return S3Store(resource.get_client(), bucket, prefix)
