"""Homes for tests that start services of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings, load_settings


@contextmanager
def home(below: str = "", **values: Any) -> Iterator[Settings]:
    """Give settings with an empty home; its PostgreSQL is stopped and the folder removed afterwards.

    Not pytest's `tmp_path`: run as root, PostgreSQL has a user of its own, and every pytest that starts shuts the
    folder above all `tmp_path`s to other users.
    """
    folder = Path(tempfile.mkdtemp(prefix="astrid-t-"))
    settings = load_settings(home=folder / below, **values)
    try:
        yield settings
    finally:
        postgres.stop(settings)
        shutil.rmtree(folder, ignore_errors=True)
