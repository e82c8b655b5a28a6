"""The files of a folder that are worth knowing, and their bytes, safely.

In a git checkout that is what git tracks or would track; elsewhere a walk that leaves out caches,
environments and build output. A path never leads out of the folder: not by `..`, not by a link.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from cogo import errors

from . import tokens

SIZE_MAX = 1_000_000
"""Bytes of the largest file that is read as text."""
CODE_SIZE_MAX = 10_000_000
"""Bytes of the largest Python file that is read for the graph: a table of data has imports too."""
LINE_AVERAGE_MAX = 400
GIT_TIMEOUT_S = 60

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "site-packages", "bower_components"})
# Build output, unless it is a Python package that happens to have the name.
_BUILD_FOLDERS = frozenset({"build", "dist", "target", "out", "htmlcov"})
_GENERATED = (".lock", ".map", ".min.js", ".min.css", ".svg", ".csv", ".tsv", ".po", ".ipynb")
# What usually holds keys and passwords: an answer could quote it to whoever asks. Examples of such files
# are meant to be read.
_SECRET = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "id_rsa*",
    "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".htpasswd",
    ".git-credentials", "credentials", "credentials.json", "secrets.json", "secrets.y*ml", "secrets.toml",
    "*.tfstate", "*.tfvars", "service-account*.json",
)  # fmt: skip
# Swap files, backups and locks, which come and go while a file is edited.
_EDITORS_OWN = re.compile(r"(~|\.sw[a-p]|___jb_(old|tmp)___|#)$|(^|/)\.#[^/]*$")
_EXAMPLES = ("*.example", "*.sample", "*.template", "*.dist", "*.pub")
_GENERATED_NAMES = frozenset({"package-lock.json", "pnpm-lock.yaml", "npm-shrinkwrap.json", "go.sum"})


class Skip(Exception):  # noqa: N818 (control flow: the file is left out, for this reason)
    """This file is not indexed. The reason is one word or two, for the report."""


class Gone(Skip):
    """There is no such file (any more)."""


class Read(msgspec.Struct, frozen=True):
    """A file's content. `note` says what was lost in decoding it, `lang` what it is where no name tells."""

    digest: bytes
    text: str
    note: str | None = None
    lang: str | None = None


def open_root(root: str, *, within: Sequence[str] | None = None) -> Path:
    """The folder as a real path; with `within`, only one at or below these folders.

    Raises TaskInvalid when it isn't one that can be read, Forbidden when it lies elsewhere.
    """
    if within is not None and not _is_within(root, within):
        raise errors.Forbidden(
            f"{root!r} lies in no folder that requests may name",
            hint="The operator lists such folders as `roots` in [plugins.rag-embed] and [plugins.kg-builder].",
        )
    try:
        path = Path(root).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise errors.TaskInvalid(f"{root!r} does not exist here - at `$.root`") from None
    if not Path(root).is_absolute() or not path.is_dir():
        raise errors.TaskInvalid(f"{root!r} is not the absolute path of a folder - at `$.root`")
    if not os.access(path, os.R_OK | os.X_OK):
        raise errors.TaskInvalid(f"the folder {root!r} can't be read by this process - at `$.root`")
    return path


def _is_within(root: str, folders: Sequence[str]) -> bool:
    try:
        real = Path(root).resolve()
        return any(real.is_relative_to(Path(folder).resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError):
        return False


def list_files(root: Path) -> list[str]:
    """Paths below the root, with `/`, sorted. Files that are no text are still among them."""
    found = _git_files(root)
    if not found:
        found = list(_walk(root))
    found = [path for path in found if _is_text_name(path) and not _EDITORS_OWN.search(path)]
    return sorted(set(found))  # a conflict lists a path thrice


def _is_text_name(path: str) -> bool:
    """Names that Postgres and JSON can hold (no stray bytes)."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in path and len(path) < 1_000


def _git_files(root: Path) -> list[str]:
    """What git tracks here, and what it would if it were added; nothing when this is no checkout."""
    names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [os.fsdecode(name) for name in (names or b"").split(b"\0") if name]


def git(root: Path, *arguments: str) -> bytes | None:
    """What git answers in this folder; None when there is no git, or no checkout.

    The folder's own git configuration may name programs to run (fsmonitor): it is overruled.
    """
    command = ["git", "-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-C", str(root), *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        ran = subprocess.run(command, capture_output=True, check=True, timeout=GIT_TIMEOUT_S, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _wanted_folder(Path(folder, name)))
        place = os.path.relpath(folder, root).replace(os.sep, "/")
        before = "" if place == "." else f"{place}/"
        yield from (before + name for name in files if not name.startswith("."))


def _wanted_folder(path: Path) -> bool:
    if (
        path.name.startswith(".")
        or path.name in _SKIPPED_FOLDERS
        or path.name.endswith((".egg-info", ".dist-info"))
    ):
        return False
    if path.name in _BUILD_FOLDERS and not (path / "__init__.py").exists():
        return False
    return not (path / "pyvenv.cfg").exists()


def read_file(root: Path, path: str, *, as_code: bool = False) -> Read:
    """Read one file below the root; `as_code` takes any that may parse. Raises Gone, or Skip with the reason."""
    data = _bytes(root, path, CODE_SIZE_MAX if as_code else SIZE_MAX)
    if b"\0" in data:
        raise Skip("binary")
    if not as_code and len(data) > 2_000 and len(data) / (data.count(b"\n") + 1) > LINE_AVERAGE_MAX:
        raise Skip("minified")
    return read_text(data)


def read_text(data: bytes) -> Read:
    """Decode, with a digest that changes when the content or the way of indexing changes."""
    digest = hashlib.blake2b(data, digest_size=16, person=f"cogo-kb-{tokens.VERSION}".encode()).digest()
    try:
        return Read(digest, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        text = data.decode("utf-8-sig", "replace")
        return Read(digest, text, f"not UTF-8 at byte {error.start}: replaced by U+FFFD")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _bytes(root: Path, path: str, size_max: int) -> bytes:
    name = PurePosixPath(path).name
    if _matches(name, _SECRET) and not _matches(name, _EXAMPLES):
        raise Skip("may hold secrets")
    if name in _GENERATED_NAMES or name.endswith(_GENERATED):
        raise Skip("generated")
    full = _below(root, path)
    try:
        # Without blocking: the path may be a pipe that nobody writes to.
        with os.fdopen(os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Skip("not a file")
            if found.st_size > size_max:
                raise Skip("too large")
            return file.read(size_max)
    except (FileNotFoundError, NotADirectoryError):
        raise Gone("gone") from None
    except OSError as error:
        raise Skip("not a file" if isinstance(error, IsADirectoryError) else "unreadable") from None


def _below(root: Path, path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path or not parts.name:
        raise Skip("outside")
    try:
        full = os.path.realpath(f"{root}/{path}")
    except (OSError, ValueError):
        raise Skip("unreadable") from None
    if not full.startswith(f"{root}/"):
        raise Skip("outside")
    return full
