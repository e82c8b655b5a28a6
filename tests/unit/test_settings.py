"""Proves that settings come from file, environment and flags in that order, and that wrong ones are named."""

from __future__ import annotations

import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given as each
from hypothesis import strategies as some
from msgspec import UNSET

from cogo.core import settings as module
from cogo.core.errors import ConfigError, DataHomeForeign, InvalidSetting, UnknownSetting
from cogo.core.settings import Loaded, Secret, Settings, given, load, local_keys, make_data_home, rows, shards

# The specification's names and defaults: whoever deploys by it must find them unchanged.
SPECIFIED = {
    "SUPABASE_URL": None,
    "SUPABASE_SERVICE_ROLE_KEY": None,
    "SUPABASE_ANON_KEY": None,
    "AGENT_SERVICE": None,
    "AGENT_ROLE": None,
    "AGENT_SHARD": (0,),
    "BUS_POLL_MS": 15_000,
    "RECLAIM_AFTER_MS": 900_000,
    "RETENTION_DAYS": 14,
    "METRICS_PORT": 3100,
    "ARTIFACTS_BASE": None,
    "DATABASE_URL": None,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: no plugins.toml but the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_env(**environ: str) -> Settings:
    return load(environ=environ).settings


def write(text: str) -> Path:
    file = Path("plugins.toml")
    file.write_text(text)
    return file


# -- where values come from --------------------------------------------------------------------


def test_defaults_are_the_specification_s():
    fields = module._fields().values()
    by_env = {field.env.name: getattr(load(environ={}).settings, field.name) for field in fields}
    assert {name: by_env[name] for name in SPECIFIED} == SPECIFIED


def test_each_setting_has_an_environment_name_of_its_own():
    names = [name for field in module._fields().values() for name in (field.env.name, *field.env.older)]
    assert len(names) == len(set(names))
    assert {*module._fields(), "plugins"} == set(Settings.__struct_fields__)


def test_flags_stand_above_the_environment_and_that_above_the_file():
    write("[cogo]\nport = 1\npoll_ms = 2\nhost = '::1'\n")
    loaded = load(environ={"METRICS_PORT": "11", "BUS_POLL_MS": "12"}, flags={"port": 21})
    found = loaded.settings
    assert (found.port, found.poll_ms, found.host, found.lease_ms) == (21, 12, "::1", 20_000)
    origins = [loaded.origins[name] for name in ("port", "poll_ms", "host", "lease_ms")]
    assert origins == ["flag", "environment", "plugins.toml", "default"]


def test_what_is_not_given_leaves_the_value_below():
    environ = {"METRICS_PORT": "11", "HOLDER_ID": " ", "COGO_PG_BIN": ""}
    loaded = load(environ=environ, flags={"port": UNSET})
    assert loaded.settings.port == 11
    assert loaded.settings.pg_bin is None
    assert loaded.origins["holder"] == "default"
    assert given(port=None, host=UNSET, beat_ms=0) == {"beat_ms": 0}


def test_none_is_a_value_where_a_setting_may_be_none():
    found = load(environ={"DATABASE_URL": "postgresql://elsewhere"}, flags={"database_url": None}).settings
    assert found.embedded


def test_the_file_is_named_by_cogo_config(folder: Path):
    file = folder / "other.toml"
    file.write_text("[cogo]\nport = 5\n[plugins.rag-embed]\nmodel = 'm'\nsizes = [1, 2]\n")
    found = load(environ={"COGO_CONFIG": str(file)})
    assert found.settings.port == 5
    assert found.settings.plugins == {"rag-embed": {"model": "m", "sizes": [1, 2]}}
    assert found.origins["plugins"] == "plugins.toml"
    assert load(environ={}, file=file) == found


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        ({"COGO_ROLES": "a, b,,c"}, "roles", ("a", "b", "c")),
        ({"AGENT_SHARD": "0,2-4,3"}, "agent_shard", (0, 2, 3, 4)),
        ({"COGO_GRACE_S": "1.5"}, "grace_s", 1.5),
        ({"COGO_LOG_LEVEL": "DEBUG"}, "log_level", "debug"),
        ({"COGO_DATA_DIR": "~/x"}, "data_dir", Path("~/x").expanduser()),
        ({"INGRESS_PUBLIC_TENANTS": "acme"}, "ingress_public_tenants", ("acme",)),
        ({"SUPABASE_SECRET_KEY": "sb_secret_1"}, "supabase_secret_keys", (Secret("sb_secret_1"),)),
        (
            {"SUPABASE_SECRET_KEYS": '{"default":"a","ci":"b"}'},
            "supabase_secret_keys",
            (Secret("a"), Secret("b")),
        ),
        ({"SUPABASE_PUBLISHABLE_KEYS": '["a"]'}, "supabase_publishable_keys", (Secret("a"),)),
        (
            {"SUPABASE_SECRET_KEYS": "new", "SUPABASE_SECRET_KEY": "old"},
            "supabase_secret_keys",
            (Secret("new"),),
        ),
    ],
)
def test_how_text_is_read(environ: dict[str, str], name: str, value: object):
    assert getattr(from_env(**environ), name) == value


def test_a_file_takes_lists_and_texts_alike():
    write("[cogo]\nroles = ['a', 'b']\nagent_shard = '1-2'\ngrace_s = 3\n")
    found = load(environ={}).settings
    assert (found.roles, found.agent_shard, found.grace_s) == (("a", "b"), (1, 2), 3.0)


@each(some.sets(some.integers(0, 40), min_size=1))
def test_shards_survive_being_written_down(wanted: set[int]):
    assert shards(",".join(map(str, wanted))) == sorted(wanted)
    low, high = min(wanted), max(wanted)
    assert shards(f"{low}-{high}") == list(range(low, high + 1))


def test_relative_folders_become_absolute_at_once(folder: Path):
    found = load(environ={}, flags={"data_dir": "here"}).settings
    assert found.data_dir == folder / "here"


def test_public_tenants():
    assert from_env(INGRESS_PUBLIC_TENANTS="acme").public_tenants == {"acme", "demo"}
    assert from_env(INGRESS_PUBLIC_TENANTS="acme", DATABASE_URL="x").public_tenants == {"acme"}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("[cogo]\nprot = 1", UnknownSetting, r"plugins.toml: cogo.prot .* `port`"),
        ("[cogo]\nbus_poll_ms = 1", UnknownSetting, r"cogo.bus_poll_ms .* `poll_ms`"),
        ("[cog]\nport = 1", UnknownSetting, r"\[cog\] .* `cogo`"),
        ("[cogo]\nzzzzzzzz = 1", UnknownSetting, r"the known ones are .*poll_ms"),
        ("[cogo]\nport = '3100'", InvalidSetting, r"cogo.port: Expected `int`, got `str`"),
        ("[cogo]\nport = 70000", InvalidSetting, r"cogo.port: .*<= 65535, got 70000"),
        ("[cogo]\nlistener = 'smoke'", InvalidSetting, r"cogo.listener: .*'smoke'"),
        ("[cogo]\ndata_dir = 5", InvalidSetting, r"cogo.data_dir: Expected `str`"),
        ("cogo = 1", InvalidSetting, r"\[cogo\] must be a table"),
        ("[plugins]\nrag = 1", InvalidSetting, r"\[plugins.rag\] must be a table"),
        ("port = \n", InvalidSetting, r"plugins.toml: .*line 1"),
    ],
)
def test_a_wrong_file_is_named(text: str, kind: type[ConfigError], says: str):
    write(text)
    with pytest.raises(kind, match=says) as raised:
        load(environ={})
    assert raised.value.exit_code == 78


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"METRICS_PORT": "http"}, r"METRICS_PORT: Expected `int`.*'http'"),
        ({"BUS_POLL_MS": "0"}, r"BUS_POLL_MS: .*>= 1"),
        ({"AGENT_SHARD": "3-1"}, r"AGENT_SHARD: '3-1' is not a range"),
        ({"AGENT_SHARD": "99999"}, r"AGENT_SHARD: '99999' is not a range"),
        ({"AGENT_SHARD": ","}, r"AGENT_SHARD: no shard"),
        ({"COGO_BEAT_MS": "10000"}, r"COGO_LEASE_MS: .*two beats"),
        ({"AGENT_SERVICE": "rag"}, r"AGENT_SERVICE and AGENT_ROLE"),
        ({"COGO_CONFIG": "/none.toml"}, r"/none.toml: there is no such file"),
        ({"COGO_DATA_DIR": "a\0b"}, r"COGO_DATA_DIR: .*NUL"),
    ],
)
def test_a_wrong_environment_is_named(environ: dict[str, str], says: str):
    with pytest.raises(InvalidSetting, match=says):
        load(environ=environ)


def test_a_slip_in_an_environment_name_is_refused_and_a_stranger_s_name_is_not():
    with pytest.raises(UnknownSetting, match="COGO_ROLE is not a setting; did you mean `COGO_ROLES`"):
        from_env(COGO_ROLE="x")
    assert from_env(COGO_WORDS_OF_ANOTHER_PROGRAM="x") == from_env()


def test_an_unknown_flag_is_named():
    with pytest.raises(UnknownSetting, match=r"--metrics-port .* `port`"):
        load(environ={}, flags={"metrics_port": 1})


# -- secrets -----------------------------------------------------------------------------------

LEAK = "s3cr3t-value"


@pytest.fixture
def secretive() -> Loaded:
    """Every secret setting holds the same text; so does a plugin's."""
    write(f"[plugins.x]\napi_key = '{LEAK}'\nmodel = 'm'\n")
    names = [field.env.name for field in module._fields().values() if field.secret]
    assert len(names) == 10
    return load(environ=dict.fromkeys(names, LEAK))


def test_secrets_are_never_shown(secretive: Loaded):
    bare = msgspec.structs.replace(secretive.settings, plugins={})
    shown = [repr(bare), str(bare), f"{bare.database_url} {bare.database_url!r}", repr(rows(secretive))]
    assert not [text for text in shown if LEAK in text]
    assert bare.database_url.reveal() == LEAK
    with pytest.raises(TypeError):
        msgspec.json.encode(bare.database_url)


@pytest.mark.parametrize("name", ["SUPABASE_SECRET_KEYS", "SUPABASE_PUBLISHABLE_KEYS"])
def test_a_secret_that_is_wrong_is_not_quoted(name: str):
    for text in (f'{{"a": {LEAK}}}', f'["{LEAK}", 1]', f'{{"a": ["{LEAK}"]}}'):
        with pytest.raises(InvalidSetting, match=name) as raised:
            from_env(**{name: text})
        assert LEAK not in f"{raised.value} {raised.value.extra}"


def test_rows_say_value_origin_and_environment_name(secretive: Loaded):
    by_name = {row.name: (row.value, row.origin, row.env) for row in rows(secretive)}
    assert by_name["port"] == ("3100", "default", "METRICS_PORT")
    assert by_name["database_url"] == ("***", "environment", "DATABASE_URL")
    assert by_name["agent_role"] == ("", "default", "AGENT_ROLE")
    assert by_name["plugins.x.api_key"] == ("***", "plugins.toml", "")
    assert by_name["plugins.x.model"] == ("m", "plugins.toml", "")


# -- the data home -----------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def home_of(folder: Path, **flags: object) -> Settings:
    return load(environ={}, flags={"data_dir": folder / "deep" / "home", **flags}).settings


def test_the_data_home_is_private_and_an_existing_one_keeps_its_mode(folder: Path):
    private = 0o711 if os.geteuid() == 0 else 0o700
    home = make_data_home(home_of(folder))
    assert mode(home) == private
    home.chmod(0o750)
    assert mode(make_data_home(home_of(folder))) == 0o750


def test_a_data_home_that_can_t_be(folder: Path):
    (folder / "deep").write_text("a file")
    with pytest.raises(InvalidSetting, match=r"COGO_DATA_DIR: .*deep/home can't be the data home"):
        make_data_home(home_of(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_s_data_home_is_refused(folder: Path):
    home = make_data_home(home_of(folder))
    os.chown(home, 12_345, -1)
    for use in (make_data_home, local_keys):
        with pytest.raises(DataHomeForeign, match="belongs to uid 12345"):
            use(home_of(folder))


def test_local_keys_are_made_once(folder: Path):
    """Also by many at the same time: all get the same ones, in a file that others can't read."""
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: local_keys(home_of(folder)), range(64)))
    assert len({(k.jwt_secret, k.publishable_key, k.secret_key) for k in found}) == 1
    keys, home = found[0], folder / "deep" / "home"
    assert keys.publishable_key.startswith("sb_publishable_")
    assert keys.secret_key.reveal().startswith("sb_secret_")
    assert len(keys.jwt_secret.reveal()) >= 32  # bytes that HS256 asks for
    assert [p.name for p in home.iterdir()] == ["secret.json"]
    assert mode(home / "secret.json") == 0o600


def test_cogo_jwt_secret_stands_above_the_local_one(folder: Path):
    local = local_keys(home_of(folder))
    given_one = local_keys(home_of(folder, jwt_secret="from outside"))
    assert given_one.jwt_secret == Secret("from outside")
    assert given_one.secret_key == local.secret_key


def test_a_damaged_file_of_keys_is_named(folder: Path):
    (make_data_home(home_of(folder)) / "secret.json").write_text("{")
    with pytest.raises(InvalidSetting, match=r"secret\.json"):
        local_keys(home_of(folder))


@pytest.mark.parametrize(
    ("uid", "home_mode", "closed"), [(0, 0o700, True), (0, 0o755, False), (1, 0o700, False)]
)
def test_root_s_default_is_where_another_account_gets(
    monkeypatch: pytest.MonkeyPatch, uid: int, home_mode: int, closed: bool
):
    """Root's own data folder if others may pass through to it, else /var/lib/cogo; a user's own always."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(home_mode)
        monkeypatch.setenv("HOME", home)
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        usual = Path(home, ".local/share/cogo")
        assert load(environ={}).settings.data_dir == (Path("/var/lib/cogo") if closed else usual)
