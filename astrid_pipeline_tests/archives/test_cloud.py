"""MAST's files from their copy in the cloud: a real S3 server with the objects under the bucket's own keys."""

from __future__ import annotations

import logging

import pytest

from astrid_pipeline.archives.mast import MastArchive
from astrid_pipeline.archives.mast_query import MastQuery
from astrid_pipeline.archives.web import Patience
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archive_server.certificates import write_certificate
from astrid_pipeline_tests.archives.test_mast import DEC, FIELD, RA, assert_everything_once, fetch_all
from astrid_pipeline_tests.s3_servers import s3_server

QUICK = Patience(tries=3, first=0.01, longest=0.05, connect=5.0, read=20.0)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_server("moto", tmp_path_factory.mktemp("s3")) as server:
        client = server.client()
        # As Amazon's: anybody may read it.
        client.create_bucket(Bucket="stpubdata", CreateBucketConfiguration={"LocationConstraint": "auto"})
        yield server


@pytest.fixture
def holdings() -> Holdings:
    made = Holdings()
    for number in range(4):
        made.add(f"icld{number:02d}q", RA, DEC, 59000.2 + number, "F160W")
    return made


@pytest.fixture
def server(holdings, bucket, tmp_path, monkeypatch):
    """The archive, standing in for the address that astroquery has hard-wired too."""
    certificate = write_certificate(tmp_path / "mast.pem", "mast.stsci.edu")
    with ArchiveServer(holdings, certificate=certificate) as started:
        monkeypatch.setenv("HTTPS_PROXY", started.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
        # Anonymous: there is nothing to sign with.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        yield started


def key_of(uri: str) -> str:
    return uri.removeprefix("mast:").lower()


def archive(server: ArchiveServer, tmp_path, text: str = "HST?cloud=yes") -> MastArchive:
    return MastArchive(f"{text}&server={server.url}", patience=QUICK, home=tmp_path / "home")


def fill(bucket, holdings: Holdings, *, without: int = 0) -> list[str]:
    client = bucket.client()
    for entry in client.list_objects_v2(Bucket="stpubdata").get("Contents", []):
        client.delete_object(Bucket="stpubdata", Key=entry["Key"])
    uris = sorted(holdings.files)
    for uri in uris[without:]:
        client.put_object(Bucket="stpubdata", Key=key_of(uri), Body=holdings.files[uri](), ACL="public-read")
    return uris


def test_files_come_from_the_bucket_and_the_archive_gives_none(server, holdings, bucket, tmp_path):
    fill(bucket, holdings)
    files = fetch_all(archive(server, tmp_path), tmp_path)
    assert_everything_once(files, holdings)
    assert server.count("/Download") == 0
    assert server.count("path_lookup") == 1  # four files, one question


def test_what_the_bucket_has_not_comes_from_the_archive_and_the_log_says_so(
    server, holdings, bucket, tmp_path, caplog
):
    missing = fill(bucket, holdings, without=1)[0]
    with caplog.at_level(logging.WARNING):
        files = fetch_all(archive(server, tmp_path), tmp_path)
    assert_everything_once(files, holdings)
    assert server.count("/Download") == 1
    name = missing.rsplit("/", 1)[1]
    assert [r.getMessage() for r in caplog.records if "cloud" in r.getMessage()] == [
        f"{name} has no copy in the cloud: fetched from the archive itself"
    ]


def test_a_damaged_copy_is_not_taken(server, holdings, bucket, tmp_path, caplog):
    uri = fill(bucket, holdings)[0]
    whole = holdings.files[uri]()
    bucket.client().put_object(
        Bucket="stpubdata", Key=key_of(uri), Body=whole[: len(whole) // 2], ACL="public-read"
    )
    files = fetch_all(archive(server, tmp_path), tmp_path)
    assert_everything_once(files, holdings)
    assert server.count("/Download") == 1
    assert "fetched from the archive itself" in caplog.text


def test_a_bucket_that_does_not_answer_is_waited_for_once(server, holdings, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    files = fetch_all(archive(server, tmp_path), tmp_path)
    assert_everything_once(files, holdings)
    assert server.count("/Download") == 4
    assert caplog.text.count("fetched from the archive itself") == 4


def test_without_the_option_nobody_is_asked(server, holdings, bucket, tmp_path):
    fill(bucket, holdings)
    fetch_all(archive(server, tmp_path, "HST?cloud=no"), tmp_path)
    assert server.count("path_lookup") == 0
    assert server.count("/Download") == 4


def test_the_option_is_yes_or_no_and_does_not_change_what_is_listed(server, tmp_path):
    with pytest.raises(ConfigError, match="use yes or no"):
        MastQuery.parse("HST?cloud=aws")
    one, other = archive(server, tmp_path), archive(server, tmp_path, "HST?cloud=no")
    assert one.listing(FIELD).table == other.listing(FIELD).table


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_refused_or_gone_is_asked_for_once(server, holdings, tmp_path, status):
    opened = archive(server, tmp_path, "HST?cloud=no")
    records = opened.exposures(FIELD)
    server.misbehave("status", "/Download", -1, value=status)
    with pytest.raises(ServiceError) as caught:
        opened.fetch(records[0], tmp_path / "out")
    assert caught.value.permanent
    assert server.count("/Download") == 1
