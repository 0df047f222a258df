"""Connections to PostgreSQL that outlive a restart of the server."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, DisconnectionError

#: A connection that was used so many seconds ago is asked whether it still lives. To ask each time, as SQLAlchemy's own
#: `pool_pre_ping` does, costs a busy page a quarter of its time; a server takes longer than this to come back.
ASK_AFTER = 2.0


def replace_lost_connections(engine: Engine) -> None:
    """Let an engine's pool replace connections that the server has closed while nobody used them."""

    @event.listens_for(engine, "checkin")
    def used(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def alive(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("used", time.monotonic()) < ASK_AFTER:
            return
        try:
            engine.dialect.do_ping(connection)
        except DBAPIError as error:
            raise DisconnectionError("the server closed this connection") from error
        except engine.dialect.dbapi.Error as error:  # type: ignore[union-attr]
            raise DisconnectionError("the server closed this connection") from error
