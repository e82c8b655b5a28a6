"""Installs peers, each into a folder of its own below .peers/, once: pinned, from PyPI and npm."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from drive import Failed, Runner
from roster import NODE, NODE_MIN, Peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = HERE / ".peers"
INSTALL_S = 600


def runner(peer: Peer, *, install: bool = True) -> Runner:
    """How to run a peer's driver; what is missing is installed first. Raises Failed with the reason."""
    if peer.language == "own":
        return Runner(peer.driver, Path(sys.executable), {"PYTHONPATH": str(ROOT)})
    home = PEERS / peer.name
    mark = home / "installed"
    wanted = " ".join(peer.requirements)
    if not mark.exists() or mark.read_text() != wanted:
        if not install:
            raise Failed("not installed")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (_install_python if peer.language == "python" else _install_node)(home, peer)
        mark.write_text(wanted)
    if peer.language == "python":
        return Runner(peer.driver, home / "bin" / "python", {})
    return Runner(peer.driver, node(install=install), {"PEER_HOME": str(home)})


def _run(command: Sequence[str | Path], **options: str | Path) -> str:
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=True, **options
        )
    except subprocess.CalledProcessError as error:
        words = " ".join(error.stderr.split())[-300:]
        raise Failed(f"could not be installed ({Path(command[0]).name}): {words}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"could not be installed: {error}") from error
    return ran.stdout.strip()


# -- Python ------------------------------------------------------------------------------------


def _install_python(home: Path, peer: Peer) -> None:
    python = _python(peer.python)
    if uv := _uv():
        _run([uv, "venv", "--quiet", "--allow-existing", "--python", python, home])
        target = ["--quiet", "--compile-bytecode", "--python", home / "bin" / "python"]
        _run([uv, "pip", "install", *target, *peer.requirements])
    else:
        _run([python, "-m", "venv", home])
        _run([home / "bin" / "python", "-m", "pip", "install", "--quiet", *peer.requirements])


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def _python(minimum: tuple[int, int]) -> str:
    """COGO's own interpreter where it will do, so that nobody gains by a newer one; else the next."""
    for found in _pythons():
        if _version(found) >= minimum:
            return found
    raise Failed(f"needs Python {minimum[0]}.{minimum[1]} or newer, and there is none")


def _pythons() -> Iterator[str]:
    yield sys.executable
    for minor in range(12, 20):
        yield from filter(None, [shutil.which(f"python3.{minor}")])
    yield from map(str, sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python")))
    if uv := _uv():
        yield from filter(None, [_output([uv, "python", "find", "--no-python-downloads", ">=3.12"])])


def _version(python: str) -> tuple[int, int]:
    found = re.match(r"(\d+) (\d+)", _output([python, "-c", "import sys; print(*sys.version_info[:2])"]))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _output(command: Sequence[str]) -> str:
    """What it prints; nothing when it fails (a shim of pyenv may)."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


# -- Node.js -----------------------------------------------------------------------------------


def _install_node(home: Path, peer: Peer) -> None:
    _npm(home, dict(requirement.rsplit("@", 1) for requirement in peer.requirements))


def _npm(home: Path, dependencies: dict[str, str]) -> None:
    if not (npm := shutil.which("npm")):
        raise Failed("needs npm, and there is none")
    (home / "package.json").write_text(json.dumps({"private": True, "dependencies": dependencies}))
    _run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"], cwd=home)


def node(*, install: bool) -> Path:
    """Node.js of the PATH when the peers support it, else the one that npm has as a package."""
    if (found := shutil.which("node")) and _node_version(found) >= NODE_MIN:
        return Path(found)
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    package = f"node-{sys.platform}-{machine}"
    home = PEERS / "node"
    binary = home / "node_modules" / package / "bin" / "node"
    if _node_version(str(binary)) < NODE_MIN:
        if not install:
            raise Failed(f"needs Node.js {NODE_MIN[0]}.{NODE_MIN[1]} or newer")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        _npm(home, {package: NODE})
    return binary


def _node_version(binary: str) -> tuple[int, int]:
    found = re.match(r"v(\d+)\.(\d+)", _output([binary, "--version"]) if os.access(binary, os.X_OK) else "")
    return (int(found[1]), int(found[2])) if found else (0, 0)
