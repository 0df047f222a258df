"""Who may do what: people with passwords, API keys of which only hashes are kept, and the audit trail."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from astrid_pipeline.catalog.review_models import ApiKey, AuditEntry, Person, SavedFilter
from astrid_pipeline.catalog.rows import plain
from astrid_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from astrid_pipeline.catalog.catalog import Catalog

#: Each scope holds what it says and no more; `admin` holds all.
SCOPES = ("read", "label", "ingest", "admin")
#: scrypt's cost: 16 MiB and some 50 ms a guess (RFC 7914's parameters for sign-in).
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_PASSWORD_LENGTH = 10


def check_scopes(scopes: Sequence[str]) -> list[str]:
    """Return the scopes, each once. Raises `ConfigError` if one is unknown or there is none."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ConfigError(
            f"not scopes: {', '.join(unknown) or 'none given'}", remedy=f"use some of {', '.join(SCOPES)}"
        )
    return [scope for scope in SCOPES if scope in scopes]


def create_key(catalog: Catalog, name: str, scopes: Sequence[str]) -> str:
    """Make an API key and return it: it cannot be shown again. 256 random bits need no slow hash."""
    prefix, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    with catalog.transaction("make a key") as connection:
        connection.execute(
            insert(ApiKey).values(
                prefix=prefix,
                hash=hashlib.sha256(secret.encode()).hexdigest(),
                name=name,
                scopes=check_scopes(scopes),
            )
        )
    return f"astrid_{prefix}_{secret}"


def keys(catalog: Catalog) -> list[dict[str, Any]]:
    """Return all keys without their hashes."""
    table = ApiKey.__table__
    with catalog.reading("list the keys") as connection:
        rows = connection.execute(select(*table.c).order_by(table.c.id)).mappings()
        return [{name: value for name, value in row.items() if name != "hash"} for row in rows]


def revoke_key(catalog: Catalog, prefix: str) -> None:
    """Revoke a key for good. Raises `ConfigError` if there is none of that prefix."""
    prefix = prefix.removeprefix("astrid_")[:8]
    with catalog.transaction("revoke a key") as connection:
        done = connection.execute(
            update(ApiKey).where(ApiKey.prefix == prefix).values(revoked_at=func.now())
        ).rowcount
    if not done:
        raise ConfigError("there is no such key", where=prefix, remedy="see `astrid key list`")


def check_key(catalog: Catalog, key: str) -> tuple[str, list[str]] | None:
    """Return the name and scopes of a key that is good, else None."""
    parts = key.split("_", 2)
    if len(parts) != 3 or parts[0] != "astrid" or "\x00" in key:
        return None
    with catalog.reading("check a key") as connection:
        row = connection.execute(
            select(ApiKey.id, ApiKey.hash, ApiKey.name, ApiKey.scopes, ApiKey.last_used_at).where(
                ApiKey.prefix == parts[1], ApiKey.revoked_at.is_(None)
            )
        ).one_or_none()
    given = hashlib.sha256(parts[2].encode("utf-8", "replace")).hexdigest()
    if row is None or not hmac.compare_digest(row.hash, given):
        return None
    now = dt.datetime.now(dt.UTC)
    # Once a minute is enough to see whether a key is in use.
    if row.last_used_at is None or now - row.last_used_at > dt.timedelta(minutes=1):
        with catalog.transaction("note a key's use") as connection:
            connection.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now))
    return str(row.name), list(row.scopes)


def set_person(catalog: Catalog, name: str, password: str, scopes: Sequence[str]) -> None:
    """Add somebody who may sign in, or set their password and scopes anew."""
    if len(password) < _PASSWORD_LENGTH:
        raise ConfigError(
            f"a password has {_PASSWORD_LENGTH} characters or more", where=name, remedy="choose a longer one"
        )
    salt = os.urandom(16)
    hashed = f"{salt.hex()}:{hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"
    values = {"password_hash": hashed, "scopes": check_scopes(scopes), "disabled_at": None}
    with catalog.transaction(f"add {name}") as connection:
        connection.execute(
            upsert(Person)
            .values(name=name, **values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )


def disable_person(catalog: Catalog, name: str) -> None:
    """Let somebody sign in no more; their sessions end in 5 s. Raises `ConfigError` if there is none of that name."""
    with catalog.transaction(f"disable {name}") as connection:
        done = connection.execute(
            update(Person).where(Person.name == name).values(disabled_at=func.now())
        ).rowcount
    if not done:
        raise ConfigError("there is no such person", where=name, remedy="check how the name is written")


def check_password(catalog: Catalog, name: str, password: str) -> list[str] | None:
    """Return a person's scopes if the password is right, else None; in the same time for unknown names."""
    with catalog.reading("check a password") as connection:
        row = connection.execute(
            select(Person.password_hash, Person.scopes).where(
                Person.name == name.replace("\x00", ""), Person.disabled_at.is_(None)
            )
        ).one_or_none()
    salt, _, wanted = (row.password_hash if row else f"{'00' * 16}:{'00' * 64}").partition(":")
    given = hashlib.scrypt(password.encode("utf-8", "replace"), salt=bytes.fromhex(salt), **_SCRYPT).hex()
    return list(row.scopes) if hmac.compare_digest(given, wanted) and row else None


def person_scopes(catalog: Catalog, name: str) -> list[str] | None:
    """Return the scopes of a person who may sign in, else None."""
    with catalog.reading("look up a person") as connection:
        found = connection.scalar(
            select(Person.scopes).where(Person.name == name, Person.disabled_at.is_(None))
        )
    return None if found is None else list(found)


def anybody(catalog: Catalog) -> bool:
    """Tell whether there is a person or a key in force: without any, a lone user on this machine needs neither."""
    with catalog.reading("count people and keys") as connection:
        return bool(
            connection.scalar(
                select(
                    select(Person.id).where(Person.disabled_at.is_(None)).exists()
                    | select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).exists()
                )
            )
        )


def audit(catalog: Catalog, who: str, action: str, what: Mapping[str, Any]) -> None:
    """Note who did what."""
    with catalog.transaction("keep the audit trail") as connection:
        connection.execute(insert(AuditEntry).values(who=who, action=action, what=plain(what)))


def save_filter(catalog: Catalog, who: str, name: str, query: Mapping[str, Any]) -> None:
    """Keep a person's filter under a name, in place of an older one."""
    with catalog.transaction("save a filter") as connection:
        connection.execute(
            upsert(SavedFilter)
            .values(who=who, name=name, query=plain(query))
            .on_conflict_do_update(index_elements=["who", "name"], set_={"query": plain(query)})
        )


def forget_filter(catalog: Catalog, who: str, name: str) -> bool:
    """Remove a person's filter; tell whether there was one."""
    with catalog.transaction("forget a filter") as connection:
        gone = delete(SavedFilter).where(SavedFilter.who == who, SavedFilter.name == name)
        return bool(connection.execute(gone).rowcount)


def saved_filters(catalog: Catalog, who: str) -> dict[str, dict[str, Any]]:
    """Return a person's filters by name."""
    with catalog.reading("list saved filters") as connection:
        rows = connection.execute(
            select(SavedFilter.name, SavedFilter.query)
            .where(SavedFilter.who == who)
            .order_by(SavedFilter.name)
        )
        return {str(row.name): dict(row.query) for row in rows}
