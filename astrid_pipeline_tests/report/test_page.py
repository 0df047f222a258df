"""The report is one file that needs nothing, says what is in it, and works in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import Angle
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.report.page import ReportInput, _sexagesimal, _significant, render, write_report
from astrid_pipeline_tests.report.example import make_difference, make_rows

SOURCES = ((60.0, 80.0, 40.0), (100.0, 30.0, 25.0), (130.0, 90.0, -20.0), (20.0, 20.0, 15.0))


def make_input(n: int = 4, **changes: Any) -> ReportInput:
    difference = make_difference(sources=SOURCES)
    rows = make_rows(difference, [(x, y) for x, y, _ in SOURCES[:n]])
    meta = {"exposure_id": "new", "filter": "r", "seeing_arcsec": 0.9, "zero_point": 27.5, "n_stars": 50}
    values = {
        "difference": difference,
        "rows": rows,
        "science": meta,
        "reference": {**meta, "exposure_id": "old"},
        "settings": {"threshold": 5.0, "method": "zogy"},
        "files": {"candidates.csv": "the same as text"},
        **changes,
    }
    return ReportInput(**values)


@given(ra=st.floats(0, 360, exclude_max=True), dec=st.floats(-90, 90))
def test_sexagesimal_is_astropy_s(ra: float, dec: float) -> None:
    text = _sexagesimal(ra, dec).replace("−", "-")
    left, right = text.split()
    assert (
        Angle(left, unit=units.hourangle).deg % 360 == pytest.approx(ra, abs=0.0051 * 15 / 3600)
        or ra > 359.9999
    )
    assert Angle(right, unit=units.deg).deg == pytest.approx(dec, abs=0.051 / 3600)
    assert "60." not in text
    assert ":60" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.56, "1,235"), (-0.012345, "−0.01235"), (3.2e9, "3.200e+09"), (np.nan, "—")],
)
def test_numbers_are_short_and_readable(value: float, text: str) -> None:
    assert _significant(value) == text


def test_page_fetches_nothing_and_says_the_numbers() -> None:
    html = render(make_input())
    assert not re.search(r"""(?:src|href)=["']?(?!data:|candidates\.csv|")""", html)
    assert not re.search(r"@import|url\(", html)
    for text in (
        "2</b> detections,",
        "<b>4</b> candidates",
        "0.90″",
        "27.50 mag",
        "1.003",
        "0.050 px",
        "10:00:",
    ):
        assert text in html
    assert html.count('class="stamps"') == 4


def test_names_from_headers_cannot_inject_markup() -> None:
    difference = make_difference(sources=SOURCES, exposure_id="<script>alert(1)</script>")
    rows = make_rows(difference, [(60, 80)], flag_names=['"><img src=x onerror=alert(1)>'])
    html = render(make_input(difference=difference, rows=rows))
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html


def test_no_candidates_is_said() -> None:
    source = make_input(rows=make_rows(make_difference(), []))
    html = render(source)
    assert "No detections," in html
    assert "Nothing passes the threshold" in html


def test_long_tables_are_cut_and_it_is_said() -> None:
    difference = make_difference()
    rng = np.random.default_rng(0)
    rows = make_rows(difference, [tuple(p) for p in rng.uniform(5, 110, (1500, 2))])
    html = render(make_input(difference=difference, rows=rows))
    assert "The strongest 1000 of 1500 are shown" in html
    assert html.count("<tr data-number") == 1000
    assert html.count('class="stamps"') == 120


@pytest.mark.browser
def test_report_works_in_a_browser(browser: Any, tmp_path: Path) -> None:
    path = write_report(make_input(), tmp_path / "report.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        # Detections are shown first; the choice brings the rest; the S/N bound removes the faint.
        visible = "#table tbody tr:not([hidden])"
        assert page.locator(visible).count() == 2
        page.select_option("#which", "all")
        assert page.locator(visible).count() == 4
        page.fill("#snr", "40")
        assert page.locator(visible).count() == 1
        page.fill("#snr", "0")
        snr = "els => els.map(e => Number(e.dataset.snr))"
        page.click("th[data-sort=snr]")
        falling = page.locator(visible).evaluate_all(snr)
        assert falling == sorted(falling, reverse=True)
        page.click("th[data-sort=snr]")
        rising = page.locator(visible).evaluate_all(snr)
        assert rising == sorted(rising)
        # Every picture has been decoded, and the page is not wider than the window.
        assert page.evaluate("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        shot = page.screenshot()
        assert len(shot) > 20_000
        page.close()
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
