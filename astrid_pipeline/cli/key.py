"""`astrid key`: who may use the API and the page."""

from __future__ import annotations

from typing import Annotated

import typer

from astrid_pipeline.cli.console import out

app = typer.Typer(no_args_is_help=True, help="Make and revoke API keys, and let people sign in.")

_Scopes = Annotated[
    list[str],
    typer.Option("--scope", "-s", help="read, label, ingest or admin; may be given several times."),
]


def register(parent: typer.Typer) -> None:
    """Add the commands to `parent`."""
    parent.add_typer(app, name="key")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: _Scopes = ["read"],  # noqa: B006
) -> None:
    """Make a key and print it: only its hash is kept, so that it cannot be shown again.

    The first key or person ends single-user mode.

    Examples:

    - `astrid key create robot --scope read --scope label`
    """
    from astrid_pipeline.catalog import access
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog = open_catalogue()
    key = access.create_key(catalog, name, scope)
    access.audit(catalog, "command line", "create key", {"name": name, "scopes": list(scope)})
    out.print(key, soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List the keys, without their secrets."""
    from astrid_pipeline.catalog import access
    from astrid_pipeline.resources.catalogue import open_catalogue

    for key in access.keys(open_catalogue()):
        state = "revoked" if key["revoked_at"] else f"last used {key['last_used_at'] or 'never'}"
        out.print(
            f"astrid_{key['prefix']}_…  {key['name']}  {','.join(key['scopes'])}  {state}", soft_wrap=True
        )


@app.command("revoke")
def revoke(prefix: Annotated[str, typer.Argument(help="The eight characters after `astrid_`.")]) -> None:
    """Revoke a key for good."""
    from astrid_pipeline.catalog import access
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog = open_catalogue()
    access.revoke_key(catalog, prefix)
    access.audit(catalog, "command line", "revoke key", {"prefix": prefix})
    out.print("revoked")


@app.command("person")
def person(
    name: Annotated[str, typer.Argument(help="Who may sign in to the page.")],
    scope: _Scopes = ["read", "label"],  # noqa: B006
) -> None:
    """Let somebody sign in to the page, or give them a new password; it is asked for.

    Examples:

    - `astrid key person ada`
    """
    from astrid_pipeline.catalog import access
    from astrid_pipeline.resources.catalogue import open_catalogue

    password = typer.prompt("password", hide_input=True, confirmation_prompt=True)
    catalog = open_catalogue()
    access.set_person(catalog, name, password, scope)
    access.audit(catalog, "command line", "set person", {"name": name, "scopes": list(scope)})
    out.print(f"{name} can sign in")


@app.command("disable")
def disable(name: Annotated[str, typer.Argument(help="Who may sign in no more.")]) -> None:
    """Let somebody sign in no more; what they labelled stays."""
    from astrid_pipeline.catalog import access
    from astrid_pipeline.resources.catalogue import open_catalogue

    catalog = open_catalogue()
    access.disable_person(catalog, name)
    access.audit(catalog, "command line", "disable person", {"name": name})
    out.print(f"{name} cannot sign in any more")
