"""Signing in and out in Chromium: what is wrong is said, a session holds, its cookie is the page's own."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from astrid_pipeline.catalog import access, labels
from astrid_pipeline.review.access import COOKIE
from astrid_pipeline_tests.review.conftest import Server

pytestmark = [pytest.mark.postgres, pytest.mark.browser]
PASSWORD = "correct horse battery"


@pytest.fixture
def ada(server: Server) -> Any:
    """Somebody who may look and label, and afterwards nobody again."""
    access.set_person(server.scene.catalog, "ada", PASSWORD, ["read", "label"])
    yield "ada"
    with server.scene.catalog.transaction("tidy up") as connection:
        connection.execute(text("DELETE FROM people"))


def sign_in(page: Any, name: str, password: str) -> None:
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", password)
    page.keyboard.press("Enter")


def test_signing_in_and_out(browser: Any, server: Server, ada: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{server.url}/review")
    assert page.url == f"{server.url}/sign-in", "nobody sees the queue"
    # Chromium sets the focus with the first picture that it draws, which may be after the page was loaded.
    page.wait_for_function("() => document.activeElement.name === 'name'")
    assert page.get_attribute("input[name=password]", "type") == "password"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sign_in(page, ada, "a wrong password")
    page.wait_for_selector(".warn")
    assert page.text_content(".warn") == "name or password is wrong"
    assert page.input_value("input[name=password]") == ""
    assert context.cookies() == []
    sign_in(page, ada, PASSWORD)
    page.wait_for_selector("#panel article")
    assert page.url == f"{server.url}/review"
    assert "ada" in page.text_content(".who")
    assert "single-user" not in page.text_content(".who")
    (cookie,) = context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
    assert COOKIE not in page.evaluate("document.cookie"), "no script can read it"
    before = page.get_attribute("#panel", "data-shown")
    page.keyboard.press("r")
    page.wait_for_function("was => document.querySelector('#panel').dataset.shown !== was", arg=before)
    page.wait_for_function("() => JSON.parse(localStorage.getItem('astrid-outbox') || '[]').length === 0")
    assert labels.events(server.scene.catalog)[-1]["who"] == "ada"
    # Another tab is signed in too, another browser is not.
    other = context.new_page()
    other.goto(f"{server.url}/review/report")
    assert "Scan report" in other.text_content("main")
    stranger = browser.new_context().new_page()
    stranger.goto(f"{server.url}/review")
    assert stranger.url == f"{server.url}/sign-in"
    page.click(".who button")
    page.wait_for_selector("input[name=name]")
    assert page.url == f"{server.url}/sign-in"
    assert context.cookies() == []
    page.goto(f"{server.url}/review")
    assert page.url == f"{server.url}/sign-in"
    assert faults == []


def test_a_page_left_open_leads_to_signing_in_again(browser: Any, server: Server, ada: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/sign-in")
    sign_in(page, ada, PASSWORD)
    page.wait_for_selector("#panel article")
    context.clear_cookies()
    # Some panels are there already; the first that has to be asked for leads away.
    for _ in range(8):
        page.keyboard.press("j")
        page.wait_for_timeout(100)
    page.wait_for_url(f"{server.url}/sign-in")
