"""The data home: which folder it is, who may use it, and the keys that are made in it."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cogo.core.errors import DataHomeForeign, InvalidSetting

from .values import Secret, decode

if TYPE_CHECKING:
    from . import Settings

ROOT_DATA_HOME: Final = Path("/var/lib/cogo")
"""Root's data home when its home folder is closed to others, as /root is on most systems."""


def open_to_others(folder: Path) -> bool:
    """Whether any account may enter this folder: it and each of its parents that exists has o+x."""
    for part in (folder, *folder.parents):
        try:
            if not part.stat().st_mode & stat.S_IXOTH:
                return False
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def default_data_dir() -> Path:
    """The user's own data folder; for root /var/lib/cogo when others can't enter root's home.

    The embedded Postgres refuses to run as root, so its programs must lie where another account gets;
    where they don't, the data home is the place for a copy.
    """
    import platformdirs  # 5 ms that most commands don't need

    usual = platformdirs.user_data_path("cogo")
    if os.geteuid() == 0 and not open_to_others(usual.parent):
        return ROOT_DATA_HOME
    return usual


class LocalKeys(msgspec.Struct, frozen=True):
    """The keys of a data home: made once, by whoever needs them first."""

    jwt_secret: Secret
    publishable_key: str
    secret_key: Secret


def make_data_home(settings: Settings) -> Path:
    """The data home, made if it isn't there: 0700, for root 0711 (its parts are 0700 or 0600).

    The server of root runs under another account, which must be able to pass through. A folder
    that already exists keeps its mode. Raises DataHomeForeign, InvalidSetting.
    """
    home, uid = settings.data_dir, os.geteuid()
    try:
        if not home.is_dir():
            home.parent.mkdir(parents=True, exist_ok=True)
            home.mkdir(mode=0o711 if uid == 0 else 0o700, exist_ok=True)
        owner = home.stat().st_uid
    except OSError as error:
        raise InvalidSetting(
            f"COGO_DATA_DIR: {home} can't be the data home: {error.strerror}",
            hint="Choose a folder that this user may write to.",
        ) from None
    if owner != uid:
        raise DataHomeForeign(f"{home} belongs to uid {owner}, this process runs as uid {uid}")
    return home


def local_keys(settings: Settings) -> LocalKeys:
    """The keys of the data home, made at the first call. COGO_JWT_SECRET stands above its jwt_secret.

    Raises DataHomeForeign, InvalidSetting.
    """
    file = make_data_home(settings) / "secret.json"
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        text = _make_keys(file)
    try:
        found = msgspec.json.decode(text, type=LocalKeys, dec_hook=decode)
    except msgspec.MsgspecError as error:
        raise InvalidSetting(f"{file}: {error}", hint="Remove the file; tokens that it signed end.") from None
    return (
        found
        if settings.jwt_secret is None
        else msgspec.structs.replace(found, jwt_secret=settings.jwt_secret)
    )


def _make_keys(file: Path) -> bytes:
    """Write the file once: of several processes at the same time one wins, all return its content."""
    text = msgspec.json.encode(
        {
            "jwt_secret": secrets.token_urlsafe(48),
            "publishable_key": f"sb_publishable_{secrets.token_urlsafe(24)}",
            "secret_key": f"sb_secret_{secrets.token_urlsafe(24)}",
        }
    )
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600, exist_ok=False)
    try:
        draft.write_bytes(text)
        os.link(draft, file)  # fails when the file exists: no process ever reads half of one
    except FileExistsError:
        return file.read_bytes()
    finally:
        draft.unlink()
    return text
