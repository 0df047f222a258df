"""What is written beside the report can be read again, and is whole or not there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.errors import StoreError
from astrid_pipeline.report.tables import write_csv, write_parquet, write_regions, write_whole
from astrid_pipeline_tests.report.example import make_difference, make_rows


def test_parquet_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = make_rows(make_difference(), [(10.123456789, 20), (30, 40.5), (50, 60)])
    rows.loc[1, "mag"] = np.nan
    write_parquet(rows, tmp_path / "c.parquet")
    write_csv(rows, tmp_path / "c.csv")
    parquet, csv = pd.read_parquet(tmp_path / "c.parquet"), pd.read_csv(tmp_path / "c.csv")
    pd.testing.assert_frame_equal(parquet, rows, check_dtype=False)
    np.testing.assert_allclose(csv["ra"], rows["ra"], rtol=0, atol=2e-8)
    np.testing.assert_allclose(csv["x"], rows["x"], rtol=1e-6)
    assert np.isnan(csv["mag"][1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.csv", "c.parquet"]


def test_regions_on_the_sky_where_there_is_one_else_in_ds9_s_pixels(tmp_path: Path) -> None:
    rows = make_rows(make_difference(), [(10, 20), (30, 40)])
    rows.loc[1, ["ra", "dec"]] = np.nan
    text = write_regions(rows, tmp_path / "d.reg").read_text()
    sky, image = [line for line in text.splitlines() if "circle" in line]
    ra, dec = (float(v) for v in re.search(r"icrs; circle\(([^,]+),([^,]+),", sky).groups())
    assert (ra, dec) == pytest.approx((rows.ra[0], rows.dec[0]), abs=1e-7)
    assert "color=green" in sky
    assert "transient" in sky
    assert image.startswith("image; circle(31.00,41.00,")
    assert "color=yellow" in image


def test_no_rows_no_regions(tmp_path: Path) -> None:
    text = write_regions(make_rows(make_difference(), []), tmp_path / "d.reg").read_text()
    assert text.startswith("# Region file format: DS9")
    assert "circle" not in text


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(name: Path) -> None:
        name.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
