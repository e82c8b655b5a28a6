"""Proves that a scan finds what belongs to a folder and that no path leads out of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from knowledge_hands import write

from cogo import errors
from cogo.knowledge import scan


def git(root: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *identity, *args], check=True, capture_output=True)


def test_a_checkout_gives_what_git_tracks_or_would(tmp_path: Path) -> None:
    write(
        tmp_path,
        {".gitignore": "out/\n", "a.py": "", "out/b.py": "", "new.md": "", "gone.py": "", ".ci/run": ""},
    )
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.py", "gone.py", ".gitignore", ".ci")
    (tmp_path / "gone.py").unlink()
    found = scan.list_files(tmp_path)
    assert found == [".ci/run", ".gitignore", "a.py", "gone.py", "new.md"]
    with pytest.raises(scan.Gone):
        scan.read_file(tmp_path, "gone.py")


def test_an_ignored_folder_of_a_checkout_is_walked(tmp_path: Path) -> None:
    """An installed package: .venv/…/site-packages/pkg lies beneath a folder that git ignores."""
    package = tmp_path / ".venv/lib/site-packages/pkg"
    write(tmp_path, {".gitignore": ".venv\n", ".venv/lib/site-packages/pkg/__init__.py": "x = 1\n"})
    git(tmp_path, "init", "-q")
    assert scan.list_files(package) == ["__init__.py"]


def test_a_checkout_runs_no_program_of_the_repository(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": ""})
    git(tmp_path, "init", "-q")
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(hook))
    scan.list_files(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_walk_leaves_out_what_is_made_by_tools(tmp_path: Path) -> None:
    names = ["a.py", "pkg/build/__init__.py", "docs/x.md"]
    made = [
        "build/b.py", "node_modules/c.js", "__pycache__/d.py", ".hidden/e.py", "env/pyvenv.cfg", "env/f.py",
        "x.egg-info/g.txt", ".dot",
    ]  # fmt: skip
    write(tmp_path, dict.fromkeys([*names, *made], "x"))
    assert scan.list_files(tmp_path) == sorted(names)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "link", "folder/secret", "x\0y", "."]
)
def test_no_path_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    root = write(tmp_path / "root", {"a.py": ""})
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(scan.Skip):
        scan.read_file(scan.open_root(str(root)), path)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.bin", b"\x00\x01", "binary"),
        ("a.txt", b"x" * (scan.SIZE_MAX + 1), "too large"),
        ("a.js", b"x" * 5_000, "minified"),
        ("uv.lock", b"x", "generated"),
        ("folder", None, "not a file"),
        ("pipe", None, "not a file"),
    ],
)
def test_what_is_no_readable_text_is_left_out_with_its_reason(
    tmp_path: Path, name: str, data: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif name == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(scan.Skip, match=reason):
        scan.read_file(tmp_path, name)


def test_invalid_utf8_is_read_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait\n")
    read = scan.read_file(tmp_path, "a.txt")
    assert read.text == "caf\ufffd au lait\n"
    assert read.note is not None
    assert "byte 3" in read.note


@pytest.mark.parametrize("root", ["/does/not/exist", "relative", "/etc/passwd", "/\0", ""])
def test_a_root_that_is_no_folder_is_refused(root: str) -> None:
    with pytest.raises(errors.TaskInvalid, match=r"\$\.root"):
        scan.open_root(root)


def test_requests_from_outside_stay_within_the_operators_roots(tmp_path: Path) -> None:
    inside = write(tmp_path / "allowed/repo", {"a.py": ""})
    (tmp_path / "allowed/escape").symlink_to("/etc")
    allowed = [str(tmp_path / "allowed")]
    assert scan.open_root(str(inside), within=allowed) == inside.resolve()
    for root in ("/etc", str(tmp_path / "allowed/escape"), str(tmp_path / "allowed/../.."), "/\0"):
        with pytest.raises(errors.Forbidden):
            scan.open_root(root, within=allowed)
    with pytest.raises(errors.Forbidden):
        scan.open_root(str(inside), within=())
