"""Every setting of a process in one frozen Struct: plugins.toml < environment < flags.

A field of `Settings` says all there is to know about a setting: type and range, environment
name, default. Nothing else lists settings; `cogo config` prints `rows()`.
"""

from __future__ import annotations

import difflib
import functools
import os
import socket
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cogo.core.errors import InvalidSetting, UnknownSetting
from cogo.core.model import SHARD_MAX

from .home import (
    ROOT_DATA_HOME,
    LocalKeys,
    default_data_dir,
    local_keys,
    make_data_home,
    open_to_others,
)
from .values import Env, Secret, decode, keys, shards, words

__all__ = [
    "ROOT_DATA_HOME",
    "Loaded",
    "LocalKeys",
    "Origin",
    "Secret",
    "SettingRow",
    "Settings",
    "given",
    "load",
    "local_keys",
    "make_data_home",
    "open_to_others",
    "rows",
    "shards",
]

Origin = Literal["default", "plugins.toml", "environment", "flag"]

DEMO_TENANT: Final = "demo"


Names = tuple[str, ...]
Millis = Annotated[int, Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process was told. Durations end in `_ms` (milliseconds) or `_s` (seconds)."""

    roles: Annotated[Names, Env("COGO_ROLES", parse=words)] = ()
    agent_service: Annotated[str | None, Env("AGENT_SERVICE")] = None
    agent_role: Annotated[str | None, Env("AGENT_ROLE")] = None
    agent_shard: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=SHARD_MAX)], ...], Env("AGENT_SHARD", parse=shards)
    ] = (0,)
    holder: Annotated[str, Meta(min_length=1), Env("HOLDER_ID")] = msgspec.field(
        default_factory=lambda: f"{socket.gethostname() or 'cogo'}:{os.getpid()}"
    )

    database_url: Annotated[Secret | None, Env("DATABASE_URL")] = None
    data_dir: Annotated[Path, Env("COGO_DATA_DIR")] = msgspec.field(default_factory=default_data_dir)
    pg_bin: Annotated[Path | None, Env("COGO_PG_BIN")] = None

    listener: Annotated[Literal["auto", "notify", "poll"], Env("COGO_LISTENER")] = "auto"
    poll_ms: Annotated[Millis, Env("BUS_POLL_MS")] = 15_000
    reclaim_after_ms: Annotated[Millis, Env("RECLAIM_AFTER_MS")] = 900_000
    retention_days: Annotated[int, Meta(ge=1), Env("RETENTION_DAYS")] = 14
    beat_ms: Annotated[Millis, Env("COGO_BEAT_MS")] = 5_000
    lease_ms: Annotated[Millis, Env("COGO_LEASE_MS")] = 20_000
    grace_s: Annotated[float, Meta(ge=0), Env("COGO_GRACE_S")] = 20.0
    pool_max: Annotated[int, Meta(ge=1, le=1000), Env("COGO_POOL_MAX")] = 8

    host: Annotated[str, Meta(min_length=1), Env("COGO_HOST")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535), Env("METRICS_PORT")] = 3100
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Env("COGO_LOG_LEVEL", parse=str.lower)
    ] = "info"

    supabase_url: Annotated[str | None, Env("SUPABASE_URL")] = None
    supabase_service_role_key: Annotated[Secret | None, Env("SUPABASE_SERVICE_ROLE_KEY")] = None
    supabase_anon_key: Annotated[Secret | None, Env("SUPABASE_ANON_KEY")] = None
    supabase_secret_keys: Annotated[
        tuple[Secret, ...], Env("SUPABASE_SECRET_KEYS", older=("SUPABASE_SECRET_KEY",), parse=keys)
    ] = ()
    supabase_publishable_keys: Annotated[
        tuple[Secret, ...], Env("SUPABASE_PUBLISHABLE_KEYS", older=("SUPABASE_PUBLISHABLE_KEY",), parse=keys)
    ] = ()
    supabase_jwt_secret: Annotated[Secret | None, Env("SUPABASE_JWT_SECRET")] = None
    supabase_jwks: Annotated[str | None, Env("SUPABASE_JWKS")] = None
    """JSON text of a JWK set: public keys, so no secret."""
    jwt_secret: Annotated[Secret | None, Env("COGO_JWT_SECRET")] = None
    """Signs our own tokens; without it the data home's (`local_keys`)."""

    ingress_public_tenants: Annotated[Names, Env("INGRESS_PUBLIC_TENANTS", parse=words)] = ()
    ingress_rate_per_s: Annotated[float, Meta(gt=0), Env("INGRESS_RATE_PER_S")] = 50.0
    """Requests per second for each key and tenant; bursts of twice as many pass."""
    ingress_depth_max: Annotated[int, Meta(ge=1), Env("INGRESS_DEPTH_MAX")] = 100_000
    artifacts_base: Annotated[str | None, Env("ARTIFACTS_BASE")] = None

    # Keys of servers that plugins call: here, since a plugin's table knows no secrets. Each is read by its name.
    chat_api_key: Annotated[Secret | None, Env("COGO_CHAT_API_KEY")] = None
    embed_api_key: Annotated[Secret | None, Env("COGO_EMBED_API_KEY")] = None
    openai_api_key: Annotated[Secret | None, Env("OPENAI_API_KEY")] = None

    plugins: dict[str, dict[str, Any]] = {}
    """The `[plugins.<name>]` tables, undecoded: each plugin's own Struct reads its table."""

    @property
    def embedded(self) -> bool:
        """Whether the database is the embedded Postgres of the data home."""
        return self.database_url is None

    @property
    def public_tenants(self) -> frozenset[str]:
        """Tenants that need no user token at the ingress: the named ones, and `demo` when embedded."""
        return frozenset(self.ingress_public_tenants) | ({DEMO_TENANT} if self.embedded else frozenset())


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and where each field's value came from."""

    settings: Settings
    origins: dict[str, Origin]


class SettingRow(msgspec.Struct, frozen=True):
    """One line of `cogo config`: the value as text, secrets as `***`."""

    name: str
    value: str
    origin: Origin
    env: str
    """Empty for the tables of plugins, which have no environment name."""


class _Field(msgspec.Struct, frozen=True):
    name: str
    type: Any
    env: Env
    secret: bool


@functools.cache
def _fields() -> Mapping[str, _Field]:
    """The fields that can be given by name, read from the annotations of `Settings`."""
    hints = typing.get_type_hints(Settings, include_extras=True)
    return MappingProxyType(
        {
            name: _Field(name, hint, env, Secret in _parts(hint))
            for name, hint in hints.items()
            for env in getattr(hint, "__metadata__", ())
            if isinstance(env, Env)
        }
    )


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in typing.get_args(hint):
        yield from _parts(argument)


# -- loading -----------------------------------------------------------------------------------


def given(**flags: object) -> dict[str, object]:
    """The flags that were given: those that are neither None nor UNSET (click's absent is None)."""
    return {name: value for name, value in flags.items() if value is not None and value is not UNSET}


def load(
    *,
    flags: Mapping[str, object | UnsetType] = MappingProxyType({}),
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded:
    """Read plugins.toml, the environment and flags, each over the one before.

    `flags` go by field name; UNSET means "not given" (None is a value: `{"database_url": None}`
    asks for the embedded database whatever the environment says). `environ` is os.environ when
    None; an empty value counts as not given. `file` is $COGO_CONFIG or ./plugins.toml when None.
    Raises UnknownSetting and InvalidSetting, which name the path and the nearest valid key.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = dict.fromkeys((*_fields(), "plugins"), "default")
    tables: tuple[tuple[Origin, dict[str, Any]], ...] = (
        ("plugins.toml", _from_file(_file(file, environ))),
        ("environment", _from_environment(environ)),
        ("flag", _from_flags(flags)),
    )
    for origin, table in tables:
        values |= table
        origins |= dict.fromkeys(table, origin)
    return Loaded(_checked(Settings(**values)), origins)


def _file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file; None when none is named and ./plugins.toml does not exist."""
    named = file or (Path(text) if (text := environ.get("COGO_CONFIG", "").strip()) else None)
    if named is not None:
        if not named.is_file():
            raise InvalidSetting(f"{named}: there is no such file", hint="Correct COGO_CONFIG or --config.")
        return named
    usual = Path("plugins.toml")
    return usual if usual.is_file() else None


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSetting(f"{file}: {error}") from None
    for name in tree.keys() - {"cogo", "plugins"}:
        raise _unknown(f"{file}: [{name}]", name, ("cogo", "plugins", *_fields()))
    own, plugins = tree.get("cogo", {}), tree.get("plugins", {})
    for path, table in (
        ("cogo", own),
        ("plugins", plugins),
        *((f"plugins.{n}", t) for n, t in plugins.items()),
    ):
        if not isinstance(table, dict):
            raise InvalidSetting(f"{file}: [{path}] must be a table, it is {table!r}")
    values = {name: _convert(f"{file}: cogo.{name}", name, value, strict=True) for name, value in own.items()}
    return values | ({"plugins": plugins} if plugins else {})


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    names: set[str] = {"COGO_CONFIG"}
    for field in _fields().values():
        accepted = (field.env.name, *field.env.older)
        names.update(accepted)
        for name in accepted:
            if text := environ.get(name, "").strip():
                values[field.name] = _convert(name, field.name, text, strict=False)
                break
    for name in environ:
        # Other programs may own COGO_ names, so only what looks like a slip of ours is refused.
        if name.startswith("COGO_") and name not in names and difflib.get_close_matches(name, names, 1, 0.85):
            raise _unknown(name, name, names)
    return values


def _from_flags(flags: Mapping[str, object | UnsetType]) -> dict[str, Any]:
    return {
        name: _convert(f"--{name.replace('_', '-')}", name, value, strict=False)
        for name, value in flags.items()
        if value is not UNSET
    }


def _convert(path: str, name: str, value: Any, *, strict: bool) -> Any:
    """The value as the field's type. `path` says where it was given, for the error's text."""
    field = _fields().get(name)
    if field is None:
        raise _unknown(path, name, _fields())
    try:
        if isinstance(value, str) and field.env.parse is not None:
            value = field.env.parse(value)
        return msgspec.convert(value, field.type, strict=strict, dec_hook=decode)
    except (ValueError, TypeError) as error:  # msgspec's ValidationError is a ValueError
        shown = "***" if field.secret else repr(value)
        raise InvalidSetting(f"{path}: {error}, got {shown}", setting=name) from None


def _unknown(path: str, name: str, known: Iterable[str]) -> UnknownSetting:
    """The error for an unknown key, with the nearest one that is known.

    Environment names written as keys (`bus_poll_ms`) lead to their field as well.
    """
    wanted = {key: key for key in known}
    wanted |= {f.env.name.lower(): f.name for f in _fields().values() if f.name in wanted}
    near = difflib.get_close_matches(name, wanted, 1, 0.5)
    ask = (
        f"did you mean `{wanted[near[0]]}`?"
        if near
        else f"the known ones are {', '.join(sorted(set(wanted.values())))}"
    )
    return UnknownSetting(f"{path} is not a setting; {ask}", setting=name)


def _checked(settings: Settings) -> Settings:
    """Refuse what is valid field by field and wrong together."""
    if settings.lease_ms <= 2 * settings.beat_ms:
        raise InvalidSetting(
            f"COGO_LEASE_MS: {settings.lease_ms} ms must be more than two beats of COGO_BEAT_MS = "
            f"{settings.beat_ms} ms, or one late beat loses every claim"
        )
    if not settings.roles and (settings.agent_service is None) != (settings.agent_role is None):
        raise InvalidSetting("AGENT_SERVICE and AGENT_ROLE select a role together: set both or neither")
    return settings


# -- showing -----------------------------------------------------------------------------------


def rows(loaded: Loaded) -> list[SettingRow]:
    """Every setting with its value, origin and environment name, then the tables of plugins."""
    found = [
        SettingRow(name, _shown(getattr(loaded.settings, name)), loaded.origins[name], field.env.name)
        for name, field in _fields().items()
    ]
    for plugin, table in sorted(loaded.settings.plugins.items()):
        found += [
            SettingRow(f"plugins.{plugin}.{key}", _shown_of_plugin(key, value), loaded.origins["plugins"], "")
            for key, value in table.items()
        ]
    return found


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _shown_of_plugin(key: str, value: object) -> str:
    """A plugin's value; hidden when its name sounds like a secret, since its type isn't known here."""
    hidden = any(word in key.lower() for word in ("secret", "key", "token", "password", "dsn", "url"))
    return "***" if hidden and value else str(value)
