"""The vetting page in Chromium, by keyboard only, on a wide screen and on a phone, and with a server that dies."""

from __future__ import annotations

from typing import Any

import pytest

from astrid_pipeline.catalog import labels
from astrid_pipeline_tests.review.conftest import NIGHT, Scene, Server

pytestmark = [pytest.mark.postgres, pytest.mark.browser]


def opened(browser: Any, server: Server, **context: Any) -> Any:
    page = browser.new_context(**context).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.goto(f"{server.url}/review")
    page.wait_for_selector("#panel article")
    return page


def press(page: Any, key: str) -> None:
    """Press a key that leads to another source, and wait until it is there."""
    before = page.get_attribute("#panel", "data-shown")
    page.keyboard.press(key)
    page.wait_for_function("was => document.querySelector('#panel').dataset.shown !== was", arg=before)


def standing(scene: Scene) -> dict[str, str]:
    """Verdicts that stand, by source."""
    given = labels.events(scene.catalog)
    undone = {event["undoes"] for event in given}
    return {e["source_key"]: e["verdict"] for e in given if e["verdict"] and e["id"] not in undone}


def saved(page: Any) -> None:
    page.wait_for_function("() => JSON.parse(localStorage.getItem('astrid-outbox') || '[]').length === 0")


def test_a_night_by_keyboard_only(browser, server):
    page = opened(browser, server, viewport={"width": 1280, "height": 800})
    order = page.eval_on_selector_all("#rows tr[data-id]", "rows => rows.map(row => row.dataset.id)")
    assert len(order) == 60
    milliseconds = []
    keys = ["r", "b", "u", "1", "7"]
    for i in range(50):
        press(page, keys[i % 5])
        milliseconds.append(float(page.get_attribute("#panel", "data-milliseconds")))
    saved(page)
    given = standing(server.scene)
    assert len(given) == 50
    assert sorted(given.values()) == sorted(["real", "bogus", "unsure", "real", "bogus"] * 10)
    press(page, "z")
    saved(page)
    page.wait_for_function("() => document.querySelector('#done').textContent === '49'")
    assert len(standing(server.scene)) == 49
    assert page.get_attribute("#panel", "data-shown") == order[49], "the one taken back is shown again"
    classes = {e["class"] for e in labels.events(server.scene.catalog) if e["verdict"]}
    assert classes == {None, "supernova", "artefact"}
    # Back and forth, and the ways to look.
    press(page, "k")
    press(page, "j")
    quad = page.locator(".quad")
    for key, name in (("i", "invert"), (" ", "blinking"), ("+", "zoom2"), ("+", "zoom3")):
        page.keyboard.press(key)
        assert name in quad.get_attribute("class")
    page.keyboard.press("s")
    page.wait_for_function("() => document.querySelector('.tile img').src.endsWith('stretch=linear')")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile img')].every(i => i.naturalWidth === 252)"
    )
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    # A note goes with the verdict, and its letters are no commands.
    page.keyboard.press("n")
    page.keyboard.type("brub: a real one")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    saved(page)
    assert labels.events(server.scene.catalog)[-1]["note"] == "brub: a real one"
    # What is left is what the queue shows when it is opened again.
    page.goto(f"{server.url}/review")
    page.wait_for_selector("#panel article")
    assert page.locator("#rows tr[data-id]").count() == 10
    page.goto(f"{server.url}/review/report?night={NIGHT}")
    assert "50 of 60" in page.text_content("main")
    assert page.faults == []
    print(f"next panel: median {sorted(milliseconds)[25]:.1f} ms, longest {max(milliseconds):.1f} ms")


def test_no_verdict_is_lost_when_the_server_dies(browser, server):
    server.scene.make_night("2026-01-04", n=12, passed=0, seed=4)
    page = opened(browser, server)
    before = len(labels.events(server.scene.catalog))
    press(page, "r")
    saved(page)
    server.stop()
    page.keyboard.press("b")
    page.keyboard.press("b")
    page.wait_for_selector("#toast .bad")
    assert len(labels.events(server.scene.catalog)) == before + 1
    server.start()
    saved(page)
    verdicts = [e["verdict"] for e in labels.events(server.scene.catalog)[before:]]
    assert verdicts[0] == "real"
    assert set(verdicts[1:]) == {"bogus"}
    assert len({e["token"] for e in labels.events(server.scene.catalog)}) == before + len(verdicts)


def test_on_a_phone(browser, server):
    server.scene.make_night("2026-01-05", n=12, passed=0, seed=5)
    page = opened(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "nothing sticks out to the side"
    )
    for name in ("real", "bogus", "unsure"):
        box = page.locator(f'button[data-verdict="{name}"]').bounding_box()
        assert box["height"] >= 40
        assert box["y"] + box["height"] <= 844, "the thumb reaches it without scrolling"
    before = page.get_attribute("#panel", "data-shown")
    page.tap('button[data-verdict="bogus"]')
    page.wait_for_function("was => document.querySelector('#panel').dataset.shown !== was", arg=before)
    saved(page)
    assert labels.events(server.scene.catalog)[-1]["verdict"] == "bogus"
    assert page.faults == []


def test_what_others_do_shows_as_it_happens(browser, server):
    server.scene.make_night("2026-01-06", n=5, passed=0, seed=6)
    page = opened(browser, server)
    page.wait_for_timeout(1500)  # the stream says hello
    last = page.locator("#rows tr[data-id]").last.get_attribute("data-id")
    labels.record(server.scene.catalog, int(last), who="bob", verdict="bogus", token="of-bob-1234")
    page.wait_for_selector(f'#rows tr[data-id="{last}"][data-state="bogus"]')
