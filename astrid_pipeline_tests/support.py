"""What several rooms' tests share: how to ask for something the machine may lack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import pytest

_Result = TypeVar("_Result")

#: Markers of tests that need a program or a server. In CI these must run: a skip counts as a failure.
NEEDED_IN_CI = ("postgres", "s3", "mlflow", "browser")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Headless Chromium as root in a container, without its background traffic.
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def apart(function: Callable[[], _Result]) -> _Result:
    """Return what a function returns in a thread of its own, where it may run an event loop.

    The browser's sync interface keeps one running in the main thread for the rest of the session.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def in_ci() -> bool:
    """Return whether this run is CI's."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def missing(what: str, remedy: str) -> NoReturn:
    """End the test because `what` is absent: a skip on a person's machine, a failure in CI."""
    message = f"{what} is not here ({remedy})"
    if in_ci():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def find_chromium() -> str | None:
    """Return the path of Chromium: $ASTRID_CHROMIUM, else the first of `CHROMIUM_NAMES` on the PATH."""
    named = os.environ.get("ASTRID_CHROMIUM")
    return named or next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
