"""When archives are asked, what an inbox takes, and which failures are worth another try."""

from __future__ import annotations

import os

import numpy as np
import pytest
from astropy.io import fits

from astrid_pipeline.archives.base import Field
from astrid_pipeline.errors import ReadError, ServiceError
from astrid_pipeline.night.inbox import Inbox, mirror
from astrid_pipeline.night.polling import LONGEST_PAUSE, PollState
from astrid_pipeline.night.retries import MAX_RETRIES, FailedRun, is_permanent, judge
from astrid_pipeline.resources.store import LocalStore
from astrid_pipeline_tests.archives.some_fits import write

MAST = Field("m31", 10.0, 41.0, 1.0, archive="mast:HST")
FOLDER = Field("sim", 10.0, 41.0, 1.0, archive="folder:/x")


def test_an_answer_is_followed_by_the_field_s_own_pace():
    state = PollState()
    assert state.due(MAST, 1000.0)
    state.answered(MAST, 1000.0)
    assert not state.due(MAST, 1000.0 + 59 * 60)
    assert state.due(MAST, 1000.0 + 60 * 60)
    assert state.report(1000.0) == []
    assert state.waiting(1000.0).startswith("next poll: m31 at 1970-01-01 01:16 UTC")


def test_silence_is_answered_by_longer_and_longer_pauses_and_told():
    state, now, gaps = PollState(), 0.0, []
    for _ in range(9):
        state.silent(FOLDER, now, ServiceError("status 503", where="mast"))
        gaps.append((state.of_field(FOLDER).next - now) / 60)
        now = state.of_field(FOLDER).next
    assert gaps[:4] == [5, 10, 20, 40]
    assert max(gaps) == LONGEST_PAUSE
    (sentence,) = state.report(now)
    assert sentence.startswith(
        "sim: no answer 9 times in a row (mast: status 503); asked again at 1970-01-01"
    )
    state.answered(FOLDER, now)
    assert state.report(now) == []


def test_the_state_survives_as_text_and_forgets_fields_that_are_gone():
    state = PollState()
    state.silent(MAST, 0.0, ServiceError("x"))
    state.answered(FOLDER, 0.0)
    again = PollState.of(state.cursor())
    assert again == state
    assert [f.name for f in again.order([MAST, FOLDER])] == ["sim", "m31"]
    again.order([FOLDER])
    assert list(again.fields) == ["sim"]
    for cursor in (None, "", "17", "{}", '{"fields": {"a": {"x": 1}}}', "no json"):
        assert PollState.of(cursor) == PollState()


# -- retries -------------------------------------------------------------------------------------------------


def failed(partition="m31|2026-01-01", at=0.0, retry=0, error="ServiceError") -> FailedRun:
    return FailedRun(f"run-{partition}-{at}", "process_night", partition, at, retry, error, "what went wrong")


def test_what_may_go_better_is_tried_again_after_a_pause_three_times():
    now = 600.0
    assert judge([failed()], {}, now - 1).later
    assert judge([failed()], {}, now).now == [failed()]
    assert judge([failed(retry=2)], {}, now).later == {failed(retry=2): 2400.0}
    (reason,) = judge([failed(retry=MAX_RETRIES)], {}, 1e9).never.values()
    assert reason == "3 retries did not help"


def test_what_stays_as_it_is_is_not_tried_again():
    for error in ("HeaderError", "ReadError", "KeyError", "MissingProductError", "ConfigError"):
        assert is_permanent(error)
        assert judge([failed(error=error)], {}, 1e9).now == []
    for error in ("ServiceError", "StoreError", "OSError", ""):
        assert not is_permanent(error)
        assert judge([failed(error=error)], {}, 1e9).never == {}


def test_a_failure_that_was_made_good_since_is_forgotten():
    assert judge([failed(at=100.0)], {("process_night", "m31|2026-01-01"): 200.0}, 1e9).now == []
    assert judge([failed(at=300.0)], {("process_night", "m31|2026-01-01"): 200.0}, 1e9).now
    newest = judge([failed(at=100.0, error="KeyError"), failed(at=300.0)], {}, 1e9)
    assert [run.failed_at for run in newest.now] == [300.0]
    assert newest.never == {}


# -- inbox ---------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "received").mkdir()
    return Inbox(tmp_path / "in", tmp_path / "received")


def test_a_file_is_taken_once_it_has_not_changed_between_two_looks(box):
    write(box.source / "sub" / "a.fits")
    found, seen = box.look({})
    assert found.growing == ["sub/a.fits"]
    assert found.taken == []
    found, seen = box.look(seen)
    assert [path.name for path in found.taken] == ["sub_a.fits"]
    assert seen == {}
    found, seen = box.look(seen)
    assert (found.taken, found.growing, seen) == ([], [], {})
    assert (box.source / "sub" / "a.fits").exists()  # the inbox is only read


def test_a_file_that_is_still_written_waits(box):
    whole = write(box.source / "whole.fits").read_bytes()
    (box.source / "whole.fits").unlink()
    path = box.source / "slow.fits"
    seen = {}
    for length in (1000, 2880, 5000):
        path.write_bytes(whole[:length])
        found, seen = box.look(seen)
        assert found.taken == []
    # It stands still, but it is not whole.
    found, seen = box.look(seen)
    assert "slow.fits" in found.refused
    assert found.taken == []
    path.write_bytes(whole)
    found, seen = box.look(seen)
    found, seen = box.look(seen)
    assert len(found.taken) == 1
    assert found.taken[0].read_bytes() == whole


def test_what_is_no_fits_is_told_and_what_is_hidden_or_else_is_left(box):
    (box.source / "page.fits").write_text("<html>")
    (box.source / ".part.fits").write_text("x")
    (box.source / "notes.txt").write_text("x")
    _, seen = box.look({})
    found, _ = box.look(seen)
    assert list(found.refused) == ["page.fits"]
    assert "web page" in str(found)


def test_two_files_of_one_name_are_both_kept_and_one_file_twice_is_one(box):
    write(box.source / "a.fits", np.ones((8, 8), np.uint16))
    _, seen = box.look({})
    box.look(seen)
    path = write(box.source / "a.fits", np.full((8, 8), 2, np.uint16))
    os.utime(path, ns=(1, 1))
    _, seen = box.look({})
    box.look(seen)
    values = sorted(fits.getdata(p)[0, 0] for p in box.received.glob("*.fits"))
    assert values == [1, 2]
    # The index is lost: the same file comes again and is still one.
    (box.received / ".inbox.json").unlink()
    _, seen = box.look({})
    box.look(seen)
    assert len(list(box.received.glob("*.fits"))) == 2


def test_a_bucket_is_mirrored_once(tmp_path, box):
    store = LocalStore(tmp_path / "bucket")
    store.put_bytes("night/a.fits", write(tmp_path / "a.fits").read_bytes())
    store.put_bytes("night/readme.txt", b"x")
    seen = mirror(store, box.source, {})
    assert list(seen) == ["night/a.fits"]
    (box.source / "night" / "a.fits").unlink()
    assert mirror(store, box.source, seen) == seen
    assert not (box.source / "night" / "a.fits").exists()


def test_an_object_overwritten_by_one_of_the_same_length_is_taken_again(tmp_path, box):
    """On a real S3 server, whose listing says so by the ETag alone."""
    from astrid_pipeline_tests.s3_servers import s3_server

    first = write(tmp_path / "a.fits", np.ones((8, 8), np.uint16)).read_bytes()
    second = write(tmp_path / "b.fits", np.full((8, 8), 2, np.uint16)).read_bytes()
    assert len(first) == len(second)
    with s3_server("moto", tmp_path) as server:
        store = server.store("inbox")
        store.put_bytes("a.fits", first)
        seen = mirror(store, box.source, {})
        store.put_bytes("a.fits", second)
        waiting: dict[str, list[int]] = {}
        for _ in range(3):
            seen = mirror(store, box.source, seen)
            _, waiting = box.look(waiting)
        assert fits.getdata(box.source / "a.fits")[0, 0] == 2
        assert [fits.getdata(path)[0, 0] for path in box.received.glob("*.fits")] == [2]
        brought = (box.source / "a.fits").stat().st_mtime_ns
        mirror(store, box.source, seen)
        assert (box.source / "a.fits").stat().st_mtime_ns == brought  # once


def test_an_inbox_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ReadError, match="ASTRID_INBOX"):
        Inbox(tmp_path / "none", tmp_path).look({})
