"""MAST through every fault: in the end everything is there exactly once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from astrid_pipeline.archives import mast_listing, mast_query
from astrid_pipeline.archives.base import Field, open_archive
from astrid_pipeline.archives.mast import MastArchive
from astrid_pipeline.archives.mast_query import MastQuery, filter_of
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings

RA, DEC = 10.6847, 41.2687
QUICK = Patience(tries=5, first=0.01, longest=0.05, connect=2.0, read=1.0)
FIELD = Field("m31", RA, DEC, 0.1, archive="mast:HST")


@pytest.fixture
def holdings() -> Holdings:
    made = Holdings()
    rng = random.Random(1)
    for number in range(12):
        made.add(
            f"ibxx{number:02d}q",
            RA + rng.uniform(-0.05, 0.05),
            DEC + rng.uniform(-0.05, 0.05),
            59000.2 + number,
            "F160W" if number % 2 else "F110W",
        )
    return made


@pytest.fixture
def server(holdings):
    with ArchiveServer(holdings) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(mast_query, "EXECUTING_PAUSE", 0.01)


def archive(server: ArchiveServer, tmp_path, text: str = "HST", **more) -> MastArchive:
    glue = "&" if "?" in text else "?"
    return MastArchive(f"{text}{glue}server={server.url}", patience=QUICK, home=tmp_path / "home", **more)


def fetch_all(opened: MastArchive, tmp_path, field: Field = FIELD) -> dict[str, bytes]:
    records = opened.exposures(field)
    opened.prefetch(records)
    return {record.exposure_id: opened.fetch(record, tmp_path / "out").read_bytes() for record in records}


def assert_everything_once(files: dict[str, bytes], holdings: Holdings) -> None:
    expected = Counter(hashlib.sha256(make()).hexdigest() for make in holdings.files.values())
    assert Counter(hashlib.sha256(content).hexdigest() for content in files.values()) == expected


FAULTS = [
    ("slow", "/invoke", 1, {"value": 1.4}),
    ("slow", "/Download", 2, {"value": 1.4}),
    ("status", "/invoke", 3, {"value": 429, "retry_after": "0"}),
    ("status", "/Download", 6, {"value": 429, "retry_after": "0.02"}),
    ("status", "/invoke", 3, {"value": 503}),
    ("status", "/Download", 6, {"value": 503}),
    ("status", "columnsconfig", 2, {"value": 502}),
    ("reset", "/invoke", 3, {}),
    ("reset", "/Download", 6, {}),
    ("truncated", "/invoke", 3, {}),
    ("truncated", "/Download", 6, {}),
    ("cut", "/Download", 6, {}),
    ("html", "/invoke", 3, {}),
    ("html", "/Download", 6, {}),
    ("wrong_size", "/Download", 6, {}),
    ("flipped", "/Download", 6, {}),
    ("half_json", "/invoke", 3, {}),
    ("executing", "/invoke", 3, {}),
    ("error_envelope", "/invoke", 3, {}),
    ("duplicate_rows", '"columns": "*"', -1, {}),
    ("duplicate_rows", "Mast.Caom.Products", -1, {}),
    ("masked", '"columns": "*"', -1, {}),
    ("missing_columns", '"columns": "*"', -1, {}),
]


@pytest.mark.parametrize(
    ("kind", "path", "times", "more"),
    FAULTS,
    ids=[f"{kind}-{path.strip('/')[:12]}" for kind, path, *_ in FAULTS],
)
def test_in_the_end_everything_is_there_exactly_once(server, holdings, tmp_path, kind, path, times, more):
    server.misbehave(kind, path, times, **more)
    files = fetch_all(archive(server, tmp_path), tmp_path)
    if kind == "masked":
        # A row whose filter is null is still an exposure; only its name differs.
        assert len(files) == 12
    assert_everything_once(files, holdings)
    assert not list(tmp_path.rglob("*.part*"))


def test_many_faults_at_once(server, holdings, tmp_path):
    for kind, path, times, more in FAULTS:
        if kind not in ("slow", "masked", "missing_columns") and times > 0:
            server.misbehave(kind, path, 1, **more)
    patient = Patience(tries=25, first=0.001, longest=0.01, connect=2.0, read=2.0)
    opened = MastArchive(f"HST?server={server.url}", patience=patient, home=tmp_path / "home")
    assert_everything_once(fetch_all(opened, tmp_path), holdings)


def test_a_fault_that_stays_is_told_with_what_came_back(server, tmp_path):
    server.misbehave("status", "/invoke", -1, value=503)
    with pytest.raises(ServiceError, match=r"503 .*after 5 tries") as caught:
        archive(server, tmp_path).exposures(FIELD)
    assert not caught.value.permanent
    server.faults.clear()
    server.misbehave("html", "/Download", -1)
    opened = archive(server, tmp_path)
    first = opened.exposures(FIELD)[0]
    with pytest.raises(ServiceError, match="web page"):
        opened.fetch(first, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_one_bad_file_does_not_take_the_others_along(server, holdings, tmp_path):
    server.misbehave("status", "ibxx03q", -1, value=404)
    opened = archive(server, tmp_path)
    records = opened.exposures(FIELD)
    opened.prefetch(records)
    got, lost = [], []
    for record in records:
        try:
            got.append(opened.fetch(record, tmp_path / "out"))
        except ServiceError as error:
            lost.append((record.exposure_id, error))
    assert len(got) == 11
    assert lost[0][0].startswith("ibxx03q")
    assert lost[0][1].permanent


def test_a_wrong_size_in_the_listing_is_found_out(server, holdings, tmp_path):
    """The archive's own sizes are not reliable: the same whole file twice outweighs its listing."""
    for products in holdings.products.values():
        for product in products:
            product["size"] += 2880
    assert_everything_once(fetch_all(archive(server, tmp_path), tmp_path), holdings)


def test_a_broken_download_goes_on_where_it_broke(server, holdings, tmp_path):
    opened = archive(server, tmp_path)
    record = opened.exposures(FIELD)[0]
    server.misbehave("truncated", "/Download", 1)
    opened.fetch(record, tmp_path / "out")
    gets = [line for line in server.requests if "/Download" in line]
    assert len(gets) == 2  # and the second asked for the rest only:
    assert opened.cache.path(record.url, record.exposure_id).stat().st_size == record.size


def test_resuming_does_not_join_two_versions_of_a_file(server, holdings, tmp_path):
    opened = archive(server, tmp_path)
    record = opened.exposures(FIELD)[0]
    one_try = MastArchive(
        f"HST?server={server.url}", patience=Patience(tries=1, read=2.0), home=tmp_path / "home"
    )
    server.misbehave("truncated", "/Download", 1)
    with pytest.raises(ServiceError):
        one_try.fetch(record, tmp_path / "out")
    new = holdings.files[opened.exposures(FIELD)[1].url]()
    holdings.files[record.url] = lambda: new
    assert one_try.fetch(record, tmp_path / "out").read_bytes() == new


def test_a_range_is_halved_until_each_query_is_small(server, holdings, tmp_path, monkeypatch):
    monkeypatch.setattr(mast_query, "MAX_ROWS", 3)
    files = fetch_all(archive(server, tmp_path), tmp_path)
    assert_everything_once(files, holdings)
    assert server.count("COUNT_BIG") > 5


def test_many_exposures_of_one_moment_end_the_halving(server, holdings, tmp_path, monkeypatch):
    for number in range(6):
        holdings.add(f"same{number}", RA, DEC, 59100.0, "F160W")
    monkeypatch.setattr(mast_query, "MAX_ROWS", 3)
    assert len(archive(server, tmp_path).exposures(FIELD)) == 18


def test_a_poll_asks_for_what_is_new_and_sees_what_changed(server, holdings, tmp_path):
    opened = archive(server, tmp_path)
    before = {r.exposure_id for r in opened.exposures(FIELD)}
    asked = server.count("COUNT_BIG")
    assert {r.exposure_id for r in opened.exposures(FIELD)} == before
    assert server.count("COUNT_BIG") == asked  # just listed: not asked again

    new = holdings.add("ibnew1q", RA, DEC, 59020.0, "F160W")
    assert opened.refresh(FIELD) == [new["obsid"]]
    assert server.count('"t_obs_release"') > 0
    assert opened.refresh(FIELD) == []  # the overlap comes again and is known

    # Processed again: a higher level, released later, and so another exposure id.
    holdings.rows[-1].update(calib_level=3, t_obs_release=59022.5)
    assert opened.refresh(FIELD) == [new["obsid"]]
    after = {r.exposure_id for r in opened.exposures(FIELD)}
    assert len(after) == 13
    assert len([i for i in after if i.startswith("ibnew1q")]) == 1


def test_late_rows_within_the_overlap_are_found_and_older_changes_by_the_whole_listing(
    server, holdings, tmp_path
):
    opened = archive(server, tmp_path)
    opened.exposures(FIELD)
    newest = max(row["t_obs_release"] for row in holdings.rows)
    late = holdings.add("iblate1q", RA, DEC, newest - 100, "F160W", release=newest - 2.5)
    assert opened.refresh(FIELD) == [late["obsid"]]
    old = holdings.add("ibold1q", RA, DEC, 58000.0, "F160W")
    assert opened.refresh(FIELD) == []
    assert opened.refresh(FIELD, full=True) == [old["obsid"]]


def test_what_the_archive_withdraws_is_no_longer_listed(server, holdings, tmp_path):
    opened = archive(server, tmp_path)
    assert len(opened.exposures(FIELD)) == 12
    del holdings.rows[0]
    opened.refresh(FIELD, full=True)
    assert len(opened.exposures(FIELD)) == 11


def test_exclusive_data_come_with_a_token_or_when_they_are_released(server, holdings, tmp_path):
    holdings.tokens.add("secret")
    far = mast_listing.mjd_now() + 100
    holdings.add("ibprivq", RA, DEC, 59050.0, "F160W", exclusive=True, release=far)
    assert len(archive(server, tmp_path).exposures(FIELD)) == 12
    with_token = archive(server, tmp_path, token="secret")
    mine = with_token.exposures(FIELD)
    assert len(mine) == 13
    assert with_token.fetch(mine[-1], tmp_path / "out").stat().st_size > 2880
    with pytest.raises(ConfigError, match="does not know this token"):
        archive(server, tmp_path / "other", token="wrong").exposures(FIELD)
    # Whoever may not read it is told what to do, and is not asked to try again.
    with pytest.raises(ServiceError, match="MAST_API_TOKEN") as caught:
        archive(server, tmp_path / "third").fetch(mine[-1], tmp_path / "out2")
    assert caught.value.permanent


def test_newly_public_data_fire_again(server, holdings, tmp_path):
    row = holdings.add("ibprivq", RA, DEC, 59050.0, "F160W", exclusive=True, release=59051.0)
    opened = archive(server, tmp_path)
    opened.exposures(FIELD)
    row["dataRights"] = "PUBLIC"
    assert opened.refresh(FIELD) == [row["obsid"]]


def test_downloads_are_few_at_once(server, holdings, tmp_path):
    opened = archive(server, tmp_path)
    records = opened.exposures(FIELD)
    server.busiest = 0
    server.misbehave("slow", "/Download", -1, value=0.05)
    opened.prefetch(records)
    assert 2 <= server.busiest <= 4


def test_the_cache_has_a_limit_and_files_come_again(server, holdings, tmp_path):
    size = len(next(iter(holdings.files.values()))())
    opened = archive(server, tmp_path, cache_bytes=3 * size)
    files = fetch_all(opened, tmp_path)
    assert_everything_once(files, holdings)
    kept = [p for p in (tmp_path / "home" / "files").glob("*/*") if p.is_file()]
    assert len(kept) <= 3
    asked = server.count("/Download")
    last = opened.exposures(FIELD)[-1]
    opened.fetch(last, tmp_path / "again")
    assert server.count("/Download") == asked  # from the cache


def test_only_what_is_wanted_is_listed(server, holdings, tmp_path):
    holdings.add(
        "jw1", RA, DEC, 59990.0, "F200W", collection="JWST", instrument="NIRCAM/IMAGE", kinds=("I2D",)
    )
    holdings.add("spec1", RA, DEC, 59990.0, "G141", dataproduct_type="spectrum")
    holdings.add("cal1", RA, DEC, 59990.0, "F160W", intentType="calibration")
    holdings.add(
        "acs1", RA, DEC, 59990.0, "F606W;CLEAR2L", instrument="ACS/WFC", calib_level=3, kinds=("DRC", "FLC")
    )
    holdings.add("far1", RA + 5, DEC, 59990.0, "F160W")
    holdings.add("preview", RA, DEC, 59990.0, "F160W", kinds=())

    def names(text: str, field: Field = FIELD) -> list[str]:
        return [r.exposure_id.split("-")[0] for r in archive(server, tmp_path / text, text).exposures(field)]

    assert len(names("HST")) == 13
    assert names("JWST") == ["jw1"]
    assert names("HST?instrument=ACS*") == ["acs1"]
    assert names("HST?filter=F606W") == ["acs1"]
    assert len(names("HST?filter=F1*W&calib=2")) == 12
    assert names("HST?calib=3") == ["acs1"]
    assert names("HST", Field("m31", RA, DEC, 0.1, filters=("F606W",))) == ["acs1"]
    (record,) = archive(server, tmp_path / "flc", "HST?product=FLC").exposures(FIELD)
    assert record.url.endswith("acs1_flc.fits")
    assert record.filter == "F606W"


def test_a_time_range_is_asked_for_and_kept_to(server, holdings, tmp_path):
    opened = archive(server, tmp_path, "HST?from=2020-06-02&to=2020-06-04")
    nights = [record.night for record in opened.exposures(FIELD)]
    assert nights == ["2020-06-02", "2020-06-03", "2020-06-04"]
    assert len(opened.listing(FIELD).rows()) == 3  # the others were not even listed
    holdings.add("inew00q", RA, DEC, 59002.4, "F160W", release=mast_listing.mjd_now() - 0.1)
    holdings.add("inew01q", RA, DEC, 59012.4, "F160W", release=mast_listing.mjd_now() - 0.1)
    opened.refresh(FIELD)
    assert [r.night for r in opened.exposures(FIELD)].count("2020-06-02") == 2
    assert len(opened.exposures(FIELD)) == 4


def test_a_wide_footprint_around_the_field_counts(server, holdings, tmp_path):
    row = holdings.add(
        "galex", RA + 0.4, DEC, 59990.0, "NUV", collection="GALEX", instrument="GALEX", kinds=("INT",)
    )
    row["s_region"] = f"CIRCLE ICRS {RA + 0.4} {DEC} 0.625"
    wide = Field("m31", RA, DEC, 0.2)
    holdings.select = lambda filters, position, select=holdings.select: select(
        filters, position and ",".join([*position.split(",")[:2], "1.0"])
    )
    assert len(archive(server, tmp_path, "GALEX").exposures(wide)) == 1
    row["s_region"] = f"CIRCLE ICRS {RA + 0.4} {DEC} 0.1"
    assert archive(server, tmp_path / "2", "GALEX").exposures(wide) == []


def test_the_archive_that_is_down_leaves_what_is_known(server, holdings, tmp_path, caplog):
    opened = archive(server, tmp_path)
    assert len(opened.exposures(FIELD)) == 12
    kept = opened.listing(FIELD)
    state = kept.state()
    state.polled -= 1.0
    kept.save(kept.rows(), state)
    server.misbehave("status", "/invoke", -1, value=503)
    assert len(opened.exposures(FIELD)) == 12
    assert "as of its last poll" in caplog.text
    with pytest.raises(ServiceError):
        opened.refresh(FIELD)
    assert len(opened.exposures(FIELD)) == 12


def test_a_tick_lists_a_large_field_in_several_goes_and_loses_none(server, holdings, tmp_path, monkeypatch):
    opened = archive(server, tmp_path, in_tick=True)
    opened.seconds = -1.0
    opened.refresh(FIELD)
    assert opened.unfinished == 12
    assert opened.exposures(FIELD) == []
    opened.seconds = 60.0
    assert opened.refresh(FIELD) == []  # nothing new, but what was left
    assert opened.unfinished == 0
    assert len(opened.exposures(FIELD)) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no collection"),
        ("HST?colour=red", "unknown option colour"),
        ("HST?calib=nine", "calibration level"),
        ("HST?rights=mine", "rights"),
        ("HST?server=mast", "no address"),
        ("HST?from=2020", "no date"),
    ],
)
def test_a_wrong_text_is_told(text, message):
    with pytest.raises(ConfigError, match=message):
        MastQuery.parse(text)


def test_open_archive_knows_mast():
    opened = open_archive("mast:HST,JWST?filter=F160W,F200W&product=flt")
    assert isinstance(opened, MastArchive)
    assert opened.query.collections == ("HST", "JWST")
    assert opened.query.products == ("FLT",)


def test_filters_in_the_beam():
    assert filter_of("F606W;CLEAR2L") == "F606W"
    assert filter_of("CLEAR1L;F814W") == "F814W"
    assert filter_of("F444W;F470N") == "F444W+F470N"
    assert filter_of(None) == "none"


def test_a_field_without_position_is_refused(server, tmp_path):
    with pytest.raises(ConfigError, match="no position"):
        archive(server, tmp_path).exposures(Field("nowhere", float("nan"), float("nan"), 1.0))
