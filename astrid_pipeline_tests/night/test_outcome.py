"""One bad exposure does not take the others with it."""

from __future__ import annotations

import errno
import os

import pytest

from astrid_pipeline.errors import DamagedError, PixelError, ServiceError, StoreError
from astrid_pipeline.night.outcome import PROBLEMS, for_each


def test_the_others_are_made_and_the_bad_ones_named():
    def treat(value: int) -> int:
        if value == 2:
            raise PixelError("no pixel has a finite value", where="b.fits", remedy="check how it was written")
        if value == 3:
            raise MemoryError("no room for a frame")
        if value == 4:
            raise ZeroDivisionError("a defect")
        return 10 * value

    lines: list[str] = []
    outcome = for_each({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, treat, stage="test", progress=lines.append)
    assert outcome.products == {"a": 10, "e": 50}
    told = {p.exposure_id: p for p in outcome.problems}
    assert told["b"].what == "b.fits: no pixel has a finite value (check how it was written)"
    assert told["b"].permanent
    assert not told["c"].permanent
    assert "no room" in told["c"].what
    assert told["d"].error == "ZeroDivisionError"
    assert "report it" in told["d"].what
    assert len(lines) == 5
    assert set(outcome.seconds) == set("abcde")
    assert list(outcome.problem_table().columns) == PROBLEMS.names


def test_products_go_where_they_are_told_to():
    class Watched(dict):
        """Counts how many products are held at once by the loop itself."""

    into: Watched = Watched()
    outcome = for_each([("a", 1), ("b", 2)], lambda v: v + 1, stage="test", into=into)
    assert outcome.products is into
    assert into == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    "trouble",
    [
        StoreError("cannot read", where="s3://sky"),
        ServiceError("did not answer", where="database"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/frame.fits"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_passing_trouble_is_no_exposures_fault_and_ends_the_stage(trouble):
    """Kept as made, the night would lack what the trouble met, for ever."""
    seen = []

    def treat(value: int) -> int:
        seen.append(value)
        if value == 2:
            raise trouble
        return value

    with pytest.raises((StoreError, ServiceError)) as told:
        for_each({"a": 1, "b": 2, "c": 3}, treat, stage="test")
    assert not told.value.permanent
    assert told.value.where
    assert seen == [1, 2]


def test_trouble_of_one_archive_file_costs_that_alone_and_permanent_trouble_too():
    def treat(value: int) -> int:
        if value == 2:
            raise ServiceError("did not come", where="archive")
        if value == 3:
            raise DamagedError("not what was written", where="c.fits")
        return value

    outcome = for_each({"a": 1, "b": 2, "c": 3, "d": 4}, treat, stage="test", tolerate=(ServiceError,))
    assert outcome.products == {"a": 1, "d": 4}
    assert [p.permanent for p in outcome.problems] == [False, True]
