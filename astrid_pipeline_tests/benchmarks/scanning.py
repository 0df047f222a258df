"""Many people scanning at once: ``python -m astrid_pipeline_tests.benchmarks.scanning``.

A server of its own, with a PostgreSQL of its own, holds a million detections; a hundred people each go through a part
of their own, one verdict every two seconds, as the page does it: the verdict is sent, the next panel and stamps are
asked for. In the middle the server is killed (SIGKILL) and started again; what was not answered is sent again, as the
page's outbox does. Measured is how long the next triplet takes; at the end every verdict must be there, once.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy import text

from astrid_pipeline.archives.base import Field
from astrid_pipeline.catalog import Catalog, access, labels, sky
from astrid_pipeline.night.stamps import STAMPS
from astrid_pipeline.resources.folders import put_folder
from astrid_pipeline.resources.store import open_store
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, settings_environment
from astrid_pipeline_tests.benchmarks.usage import Meter
from astrid_pipeline_tests.s3_servers import free_port
from astrid_pipeline_tests.services.homes import home

NIGHT = "2026-01-02"
#: Different stamps of a field; its sources share them, to fit the disk.
STAMPS_A_FIELD = 40
#: Detections of one exposure.
A_FRAME = 500
#: Detections of one object, and the points of its light curve.
AN_OBJECT, POINTS = 20, 20
#: Seconds between the looks at whether a killed server is back.
RETRY = 0.5


@dataclass
class Person:
    """Somebody scanning: their key, their queue, and what they have seen."""

    name: str
    key: str
    field: str
    queue: list[int] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    triplets: list[float] = field(default_factory=list)
    verdicts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of it: seconds of each triplet and verdict, verdicts sent, lost, doubled; processor time by process.

    The processor time (seconds) is that of the scanning alone, without what starting the server takes.
    """

    triplets: np.ndarray
    verdicts: np.ndarray
    sent: int
    lost: int
    doubled: int
    cpu: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the figures in one line."""
        t, v = 1e3 * np.percentile(self.triplets, [50, 95, 99]), 1e3 * np.percentile(self.verdicts, [50, 95])
        return (
            f"next triplet: median {t[0]:.0f} ms, p95 {t[1]:.0f} ms, p99 {t[2]:.0f} ms ({len(self.triplets)}); "
            f"verdict kept: median {v[0]:.0f} ms, p95 {v[1]:.0f} ms; "
            f"{self.sent} verdicts, {self.lost} lost, {self.doubled} twice"
            + "".join(
                f"; {name} {1e3 * spent / self.sent:.1f} ms CPU each" for name, spent in self.cpu.items()
            )
        )


def fill(settings: Settings, catalog: Catalog, people: int, rows: int, seed: int = 0) -> list[Person]:
    """Write `rows` detections over as many fields as people, with objects, light curves, stamps and a key for each."""
    rng = np.random.default_rng(seed)
    store = open_store(settings)
    each = rows // people
    crowd = []
    for number in range(people):
        name = f"f{number:03d}"
        ra, dec = 3.0 * number, float(rng.uniform(-60, 60))
        catalog.add_field(Field(name, ra, dec, 0.5, ("g",)))
        x, y = rng.uniform(40, 4000, each), rng.uniform(40, 4000, each)
        exposure = np.array([f"{name}-{i // A_FRAME:04d}" for i in range(each)], dtype=object)
        _sources(catalog, name, exposure, x, y, (ra + x / 3600) % 360, dec + y / 3600, rng)
        _stamps(store, name, exposure, x, y, rng)
        key = access.create_key(catalog, f"person{number:03d}", ["read", "label"])
        crowd.append(Person(f"key:person{number:03d}", key, name))
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE sources"))
        connection.execute(text("ANALYZE"))
    return crowd


def _sources(catalog: Catalog, name: str, exposure: np.ndarray, x, y, ra, dec, rng) -> None:  # type: ignore[no-untyped-def]
    n = len(x)
    about = {
        **dict.fromkeys(("fwhm_ratio", "elongation", "dipole", "chi2", "neg_fraction", "trail"), 0.123),
        **dict.fromkeys(
            ("unet_score", "real_bogus", "isolation", "one_class", "p_transient", "p_moving"), 0.5
        ),
    }
    table = pd.DataFrame(
        {
            "key": [
                f"{e}:{a:.0f}:{b:.0f}:{i}" for i, (e, a, b) in enumerate(zip(exposure, x, y, strict=True))
            ],
            "night": NIGHT,
            "exposure_id": exposure,
            "mjd": 61042.25,
            "filter": "g",
            "x": x,
            "y": y,
            "ra": ra,
            "dec": dec,
            "hpx29": sky.hpx29(ra, dec),
            "flux": 300.0,
            "flux_err": 10.0,
            "snr": rng.uniform(5, 50, n),
            "mag": 19.0,
            "mag_err": 0.03,
            "flags": 0,
            "score": np.round(rng.uniform(0.5, 1, n), 4),
            "class": "transient",
            "uncertainty": 0.05,
            "model_name": "unet",
            "model_version": "1",
            "features": json.dumps(about),
        }
    )
    with catalog.transaction("fill") as connection:
        at = connection.scalar(text("SELECT id FROM fields WHERE name = :name"), {"name": name})
        connection.execute(
            text(
                "INSERT INTO difference_runs (candidates, detections, dagster_run_id, status, exposures, field_id,"
                " night) VALUES (:n, :n, 'b', 'success', 1, :f, :night)"
            ),
            {"n": n, "f": at, "night": NIGHT},
        )
        table.insert(0, "field_id", at)
        identities = _objects(connection, int(at), name, table)
        table["object_id"] = identities[np.arange(n) // AN_OBJECT]
        _copy(connection, "sources", table)


def _objects(connection, field_id: int, name: str, sources: pd.DataFrame) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Write an object to every so many sources, with a light curve of its own; return their ids."""
    first = sources.iloc[::AN_OBJECT]
    ids = field_id * 1_000_000 + np.arange(len(first))
    table = pd.DataFrame(
        {"id": ids, "name": [f"AST26{name}{i}" for i in range(len(ids))], "field_id": field_id}
    )
    table = table.assign(
        kind="stationary", detections=AN_OBJECT, nights=1, first_mjd=61042.25, last_mjd=61042.25
    )
    table[["ra", "dec", "hpx29"]] = first[["ra", "dec", "hpx29"]].to_numpy(object)
    _copy(connection, "objects", table)
    k = np.repeat(ids, POINTS)
    night = np.tile(np.arange(POINTS), len(ids))
    points = pd.DataFrame(
        {"object_id": k, "field_id": field_id, "night": NIGHT, "exposure_id": [f"p{i}" for i in night]}
    )
    values = {
        "filter": "g",
        "flux": 300.0,
        "flux_err": 10.0,
        "snr": 30.0,
        "upper_limit": 40.0,
        "zero_point": 25.0,
    }
    points = points.assign(mjd=61000.0 + night, **values, mag=19.0, mag_err=0.03, mag_limit=21.0, flags=0)
    _copy(connection, "light_curve_points", points)
    return ids


def _copy(connection, name: str, table: pd.DataFrame) -> None:  # type: ignore[no-untyped-def]
    block = io.StringIO(table.to_csv(index=False, header=False, sep="\t"))
    columns = ", ".join(f'"{column}"' for column in table.columns)
    raw = connection.connection.driver_connection.cursor()
    raw.copy_expert(f"COPY {name} ({columns}) FROM STDIN WITH (FORMAT csv, DELIMITER E'\\t')", block)


def _stamps(store, name: str, exposure: np.ndarray, x, y, rng) -> None:  # type: ignore[no-untyped-def]
    pixels = rng.standard_normal((STAMPS_A_FIELD, 4, 63, 63)).astype(np.float16)
    table = pd.DataFrame({"exposure_id": exposure, "x": x, "y": y})
    values = {"science_sigma": 1.0, "reference_sigma": 0.5, "north": 0.0, "pixel_scale": 1.0, "masked": 0.0}
    table = STAMPS.conform(
        table.assign(row=np.arange(len(x)) % STAMPS_A_FIELD, turns=0, mirrored=False, **values)
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "stamps.npy", pixels, allow_pickle=False)
        table.to_parquet(Path(folder) / "stamps.parquet", index=False)
        put_folder(store, f"stamps/{name}/{NIGHT}", Path(folder), {"run_id": "b", "partition": ""})


class Server:
    """`astrid review` as a process of its own, in a group of its own, so that all of it can be killed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "astrid_pipeline.review.app"],
            env=settings_environment(self.settings),
            start_new_session=True,
        )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: see what it said above")
            try:
                asyncio.run(request(self.settings.review_port, "GET", "/docs", ""))
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the server does not answer")

    def kill(self) -> None:
        """Kill it and its children at once, with nothing said (SIGKILL)."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Connection:
    """One kept-alive HTTP connection: as little work as can be, since it shares the machine with what it measures."""

    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, data: object = None) -> tuple[int, bytes]:
        """Return status and body. Raises `OSError` where the server is gone."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        body = b"" if data is None else json.dumps(data).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            length = next(
                int(v) for k, _, v in (ln.partition(":") for ln in lines) if k.lower() == "content-length"
            )
            answer = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._streams = None
            writer.close()
            raise ConnectionError("the server is gone") from error
        return int(lines[0].split()[1]), answer


async def request(port: int, method: str, path: str, key: str) -> tuple[int, bytes]:
    """Ask once on a connection of its own."""
    return await Connection(port, key).ask(method, path)


async def scan(person: Person, port: int, until: float, period: float, rng: np.random.Generator) -> None:
    """Go through a queue: look, decide, send, and ask for what comes next."""
    line = Connection(port, person.key)
    await asyncio.sleep(float(rng.uniform(0, period)))
    for source in person.queue:
        if time.monotonic() >= until:
            return
        begun = time.monotonic()
        data = {"verdict": str(rng.choice(["real", "bogus"])), "token": uuid.uuid4().hex}
        person.sent[data["token"]] = source
        while True:
            try:
                status, _ = await line.ask("POST", f"/api/v1/detections/{source}/labels", data)
            except OSError:
                status = 0
            if status == 201:
                break
            if status not in (0, 429) and status < 500:
                raise AssertionError(f"a verdict was answered with {status}")
            await asyncio.sleep(RETRY)
        person.kept.add(data["token"])
        person.verdicts.append(time.monotonic() - begun)
        asked = time.monotonic()
        following = source + 1
        try:
            panel, _ = await line.ask("GET", f"/review/panel/{following}")
            stamp, _ = await line.ask("GET", f"/api/v1/detections/{following}/stamp.png")
        except OSError:
            continue
        if (panel, stamp) != (200, 200):
            raise AssertionError(f"the next triplet was answered with {panel} and {stamp}")
        person.triplets.append(time.monotonic() - asked)
        await asyncio.sleep(max(0.0, period - (time.monotonic() - begun)))


def measure(
    people: int, rows: int, seconds: float, *, period: float = 2.0, kill: bool = True, seed: int = 0
) -> Outcome:
    """Fill, serve, let people scan, kill in the middle, and count."""
    port = free_port()
    with home(review_port=port, review_workers=os.cpu_count() or 1) as settings:
        catalog = Catalog(postgres.database_url("astrid", settings))
        crowd = fill(settings, catalog, people, rows, seed)
        server, meter = Server(settings), Meter()
        try:
            server.start()
            asyncio.run(_everybody(crowd, server, meter, seconds, period, kill, seed))
        finally:
            server.kill()
        there = pd.DataFrame(labels.events(catalog))
        catalog.close()
    sent = {token: source for person in crowd for token, source in person.sent.items()}
    counts = there["token"].value_counts()
    return Outcome(
        np.concatenate([person.triplets for person in crowd]),
        np.concatenate([person.verdicts for person in crowd]),
        sent=len(sent),
        lost=sum(token not in counts.index for person in crowd for token in person.kept),
        doubled=int((counts > 1).sum()) + int(there["source_key"].duplicated().sum()),
        cpu=meter.spent,
    )


async def _everybody(
    crowd: list[Person], server: Server, meter: Meter, seconds: float, period: float, kill: bool, seed: int
) -> None:
    port = server.settings.review_port

    def count() -> None:
        assert server.process is not None
        database = (server.settings.home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]
        meter.start(server=server.process.pid, database=int(database), client=os.getpid())

    for person in crowd:
        query = f"/api/v1/detections?field={person.field}&sort=id&descending=false&limit=1000"
        _, body = await request(port, "GET", query, person.key)
        person.queue = [row["id"] for row in json.loads(body)["items"]][:-1]
    count()
    until = time.monotonic() + seconds
    rngs = [np.random.default_rng([seed, k]) for k in range(len(crowd))]
    everybody = asyncio.gather(
        *(scan(p, port, until, period, rng) for p, rng in zip(crowd, rngs, strict=True))
    )
    if kill:
        await asyncio.sleep(seconds / 2)
        meter.stop()
        server.kill()
        await asyncio.to_thread(server.start)
        count()
    await everybody
    meter.stop()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--detections", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--period", type=float, default=2.0, help="seconds from one verdict to the next")
    parser.add_argument("--no-kill", action="store_true")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    found = measure(
        chosen.people, chosen.detections, chosen.seconds, period=chosen.period, kill=not chosen.no_kill
    )
    print(found.line())
    print(
        f"{chosen.people} people, {chosen.detections} detections, {os.cpu_count()} cores, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} at the end, {time.perf_counter() - begun:.0f} s in all"
    )


if __name__ == "__main__":
    main()
