"""Operations without a running server: migrate, config, plugins, explain, token."""

from __future__ import annotations

import textwrap
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cogo.commands.base import command, emit, run_async, say, table

if TYPE_CHECKING:
    from cogo.core.settings import Loaded, Settings

ROLES = ("viewer", "operator", "admin")


@command(example="cogo explain budget_exceeded\ncogo explain 12")
@click.argument("code", required=False)
def explain(code: str | None, *, as_json: bool) -> None:
    """Explain an error code, or a decision by its number.

    Without CODE it lists all codes.
    """
    from cogo.core.errors import CODES

    if code is not None and code.isascii() and code.isdigit() and len(code) < 16:
        from cogo.commands import decisions

        found = run_async(lambda: decisions.explanation(int(code)))
        emit(found) if as_json else decisions.show(found)
        return
    if code is None:
        rows = [(name, kind.summary()) for name, kind in sorted(CODES.items())]
        if as_json:
            emit(dict(rows))
        else:
            table(rows, head=("code", "meaning"))
        return
    # A whole `error` column or log line may be pasted: the code is what stands before the colon.
    name = code.split(":")[0].strip().lower()
    if name not in CODES:
        near = get_close_matches(name, CODES, n=1)
        raise click.BadParameter(
            f"{code!r} is not an error code." + (f" Did you mean {near[0]!r}?" if near else ""),
            param_hint="CODE",
        )
    row = explained(name)
    if as_json:
        emit(row)
        return
    say(name, bold=True)
    say(textwrap.fill(row["meaning"], 90, initial_indent="  ", subsequent_indent="  "))
    say(textwrap.fill(f"What to do: {row['hint']}", 90, initial_indent="  ", subsequent_indent="  "))
    say(f"  message: {row['message']}   HTTP status: {row['status']}   exit code: {row['exit_code']}")


def explained(code: str) -> dict[str, Any]:
    """What the error table says about one code."""
    from cogo.core.errors import CODES

    kind = CODES[code]
    fates = {"failed": "failed at once", "retry": "tried again, then failed", "none": "left alone"}
    return {
        "code": code,
        "meaning": " ".join((kind.__doc__ or "").split()),
        "hint": kind.hint,
        "message": fates[kind.fate],
        "status": kind.status,
        "exit_code": kind.exit_code,
    }


def loaded(config: Path | None = None) -> Loaded:
    """The settings as a server started here would read them."""
    from cogo.core.settings import load

    return load(file=config)


@command(example="cogo config --json")
@click.option("--config", "file", type=click.Path(path_type=Path), help="A plugins.toml to read instead.")
def config(file: Path | None, *, as_json: bool) -> None:
    """Print every setting, its origin and its name.

    A flag overrides an environment variable, which overrides plugins.toml. Secrets print as ***.
    """
    from cogo.core.settings import rows

    found = rows(loaded(file))
    if as_json:
        emit({row.name: {"value": row.value, "origin": row.origin, "env": row.env} for row in found})
    else:
        table(
            [(row.name, row.value, row.origin, row.env) for row in found],
            head=("setting", "value", "from", "environment"),
        )


@command(example="cogo plugins")
def plugins(*, as_json: bool) -> None:
    """List the installed roles and commands.

    Nothing of a plugin is imported for it: names and versions come from the packages' metadata.
    """
    from importlib.metadata import entry_points

    found = [
        {
            "name": point.name,
            "kind": kind,
            "module": point.value,
            "package": point.dist.name if point.dist else "",
            "version": point.dist.version if point.dist else "",
        }
        for kind, group in (("role", "cogo"), ("command", "cogo.commands"))
        for point in sorted(entry_points(group=group), key=lambda point: point.name)
    ]
    if as_json:
        emit(found)
    else:
        table([list(row.values()) for row in found], head=("name", "kind", "module", "package", "version"))


@command(
    example='cogo token --tenant acme --role operator\ncurl -H "Authorization: Bearer $(cogo token --tenant acme)" …'
)
@click.option("--tenant", "tenants", multiple=True, help="A tenant that it may see; repeat for several.")
@click.option(
    "--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What it may do there."
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0.01, max=24 * 366),
    default=12.0,
    show_default=True,
    help="How long it is valid.",
)
@click.option(
    "--login", is_flag=True, help="Print the address that logs a browser in to the local dashboard."
)
@click.option("--subject", default="cli", show_default=True, help="Who it is for, as the audit names them.")
def token(
    *, tenants: tuple[str, ...], role: str, hours: float, login: bool, subject: str, as_json: bool
) -> None:
    """Mint an access token for the HTTP API.

    A viewer reads its tenants, an operator also acts on them, an admin may do all to every tenant.
    It is signed with COGO_JWT_SECRET, or with the secret of the data home.
    """
    from cogo.http.tokens import mint_token

    if not tenants and role != "admin":
        raise click.UsageError("Name at least one --tenant (only an admin is for all of them).")
    access: Literal["viewer", "operator", "admin"] = role  # type: ignore[assignment]  # click checked it
    settings = loaded().settings
    minted = mint_token(settings, tenants, access, hours * 3600, subject=subject)
    url = login_url(settings, minted) if login else None
    if as_json:
        row = {"token": minted, "role": role, "tenants": tenants, "expires_in_s": int(hours * 3600)}
        emit(row | ({"url": url} if url else {}))
    else:
        say(url or minted)


def login_url(settings: Settings, token: str) -> str:
    """Where a browser takes this token. Raises NoServer without a local server that has the dashboard."""
    from cogo.commands.local import with_route
    from cogo.core.errors import NoServer

    server = with_route(settings, "metrics")
    if server is None:
        raise NoServer("no server of this data home has the role metrics", hint="Start one: `cogo serve`.")
    return f"{server.url}/dashboard/login?token={token}"


@command(example="DATABASE_URL=postgresql://… cogo migrate")
async def migrate(*, as_json: bool) -> None:
    """Bring the database schema up to date.

    Applies what is missing, of COGO and of the enabled plugins, under one lock; nothing is ever undone.
    An embedded database is migrated by the `cogo serve` that starts it; this then finds nothing to do.
    """
    from cogo.commands.local import database_dsn
    from cogo.core.migrate import apply
    from cogo.core.registry import Registry

    settings = loaded().settings
    done = await apply(database_dsn(settings), Registry.load(settings).migrations())
    if as_json:
        emit({"applied": done})
    else:
        say("\n".join(f"applied {name}" for name in done) or "The schema is up to date.")
