"""Proves that the tree keeps the house's style where a linter can't look.

A rule that must be bent for one place names that place and says why, in the table beside it; the tables
are a ratchet: an entry that is no longer needed fails as well.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cogo
from cogo.core import errors

ROOT = Path(__file__).parents[1]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# path::function -> why it reads better whole.
LONG_FUNCTIONS: dict[str, str] = {}

# call -> what to use instead, and the paths where the call is right.
BANNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "time.sleep": ("anyio.sleep, or wait for the event itself", ()),
    "asyncio.create_task": ("an anyio task group: a lost task swallows its exception", ()),
    "asyncio.ensure_future": ("an anyio task group", ()),
    "asyncio.gather": ("an anyio task group: gather leaves the siblings running", ()),
    "asyncio.sleep": ("anyio.sleep", ()),
    "asyncio.wait_for": ("anyio.fail_after or move_on_after", ()),
    "asyncio.run": ("anyio.run: one place chooses the loop", ()),
    "asyncio.get_event_loop": ("anyio; the loop is an implementation detail", ()),
    "print": ("ctx.log or the module's logger; only commands print", ("cogo/cli.py", "cogo/commands/")),
    "json.loads": ("msgspec.json.decode: several times faster, and typed", ()),
    "json.dumps": ("msgspec.json.encode", ()),
    "logging.basicConfig": ("cogo.core.telemetry sets logging up once", ()),
    "os.system": ("anyio.run_process or subprocess with a list", ()),
    "requests.get": ("httpx", ()),
    "requests.post": ("httpx", ()),
}

SLEEPS = {"time.sleep", "anyio.sleep", "asyncio.sleep"}
# The one helper that polls with a deadline; everything else waits for a signal.
POLLING = {"tests/helpers.py"}

# Marks of unfinished work. Spelled apart, since this file is searched for them by others.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "not imple" + "mented",
                                           "place" + "holder", "st" + "ub"]) + r")\b", re.IGNORECASE)  # fmt: skip


def test_who_switches_scans_off_switches_the_compiler_off() -> None:
    """Before Postgres 18 a switched-off node, where it is the only way, costs so much that JIT would start."""
    found = 0
    for path in sorted((ROOT / "sql" / "functions").glob("*.sql")):
        for head in re.findall(r"CREATE OR REPLACE FUNCTION .*?AS \$\$", path.read_text(), re.DOTALL):
            if "SET enable_seqscan = off" in head:
                found += 1
                assert "SET jit = off" in head, f"{path.name}: {head.splitlines()[0]}"
    assert found > 5


def tracked(*folders: str, suffix: str = ".py") -> list[Path]:
    """The files of these folders that belong to the project, without caches."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob(f"*{suffix}")
        if path.is_file()
        and not path.name.endswith(".pyc")
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def calls(tree: ast.Module) -> Iterator[tuple[int, str, ast.Call]]:
    """Each call as (line, full dotted name, node), with imports and their aliases resolved."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            dotted = ast.unparse(node.func)
            head, _, rest = dotted.partition(".")
            full = names.get(head, head)
            yield node.lineno, f"{full}.{rest}" if rest else full, node


def test_files_are_short_enough_to_know():
    """No file of code, SQL or tests is over 500 lines."""
    files = tracked("cogo", "tests", "docs", "benchmarks", "examples") + tracked("sql", suffix=".sql")
    assert files
    long = {
        name(path): count for path in files if (count := len(path.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long, f"over {FILE_LINES_MAX} lines, give a part of its own file to: {long}"


def test_functions_are_short_enough_to_read():
    """No function is over 70 lines, but for the listed ones; the list holds nothing that is short again."""
    found = {
        f"{name(path)}::{node.name}": length
        for path in tracked("cogo", "tests", "docs", "benchmarks", "examples")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not found.keys() - LONG_FUNCTIONS.keys(), f"over {FUNCTION_LINES_MAX} lines: {found}"
    assert not LONG_FUNCTIONS.keys() - found.keys(), "these are short again: take them off LONG_FUNCTIONS"


def test_banned_calls_name_their_replacement():
    """Calls that hurt an async process don't appear in the product."""
    wrong = [
        f"{name(path)}:{line}: {call} -> {BANNED[call][0]}"
        for path in tracked("cogo")
        for line, call, _ in calls(parsed(path))
        if call in BANNED and not name(path).startswith(BANNED[call][1] or ("\0",))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_search_for_banned_calls_finds_them():
    """The rule above sees through aliases (so that its silence means something)."""
    code = "import time as t\nfrom asyncio import create_task as go\nt.sleep(1)\ngo(x())\nprint(1)\n"
    assert [call for _, call, _ in calls(ast.parse(code))] == [
        "time.sleep",
        "asyncio.create_task",
        "print",
        "x",
    ]


def test_tests_wait_for_signals_not_for_time():
    """No test sleeps for a number of seconds."""
    wrong = [
        f"{name(path)}:{line}"
        for path in tracked("tests", "examples")
        if name(path) not in POLLING
        for line, call, node in calls(parsed(path))
        if call in SLEEPS and not (node.args and ast.unparse(node.args[0]) == "0")
    ]
    assert not wrong, f"wait for a signal, or poll with tests/helpers.py eventually(): {wrong}"


def test_nothing_is_marked_unfinished():
    """The product holds no note of work left undone, in code, SQL or templates."""
    wrong = []
    for path in tracked("cogo", "sql", "supabase", suffix=""):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if UNFINISHED.search(line):
                wrong.append(f"{name(path)}:{number}: {line.strip()[:90]}")
    assert not wrong, "\n".join(wrong)


def test_no_path_of_this_checkout_is_written_down():
    """No committed file names the folder in which somebody happened to write it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    wrong = [
        path
        for path in filter(None, listed)
        if (ROOT / path).is_file()
        and f"{ROOT}/" in (ROOT / path).read_text(encoding="utf-8", errors="replace")
    ]
    assert not wrong, wrong


def public_members(owner: Any) -> Iterator[tuple[str, Any]]:
    """What a class of the door offers of its own: methods and properties without an underscore."""
    for key, value in vars(owner).items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not key.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
            yield key, inner


@pytest.mark.parametrize("door", ["cogo", "cogo.web"])
def test_the_door_is_documented(door: str):
    """Everything that a plugin author imports says what it is."""
    module = __import__(door, fromlist=["__all__"])
    assert module.__doc__
    bare = [
        key
        for key in module.__all__
        if (inspect.isclass(thing := getattr(module, key)) or inspect.isroutine(thing))
        and not inspect.getdoc(thing)
    ]
    assert not bare, f"no docstring on {door}: {bare}"


def test_methods_of_the_door_are_documented():
    """Each public method of a class of the door longer than three lines has a docstring."""
    bare = []
    for key in cogo.__all__:
        thing = getattr(cogo, key)
        if not inspect.isclass(thing):
            continue
        for member, function in public_members(thing):
            body = function.fget if isinstance(function, property) else function
            lines = len(inspect.getsource(body).splitlines())
            if lines > 3 and not inspect.getdoc(function):
                bare.append(f"{key}.{member}")
    assert not bare, bare


@pytest.mark.parametrize("code", sorted(errors.CODES))
def test_each_error_says_what_it_is_and_what_to_do(code: str):
    """An error class has a sentence of its own, a hint, a stable code and a known fate."""
    kind = errors.CODES[code]
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", code)
    assert kind.__dict__.get("__doc__"), f"{kind.__name__} has no docstring of its own"
    assert kind.summary().endswith("."), kind.summary()
    assert kind.hint.endswith((".", "`")), f"{code}: the hint is a sentence"
    assert kind.fate in {"failed", "retry", "none"}
    assert kind.exit_code in {1, 2, 78}


def test_every_error_class_stands_in_the_one_table():
    """Error classes are defined in cogo/core/errors.py alone, so that `cogo explain` knows them all."""
    known = {kind.__name__ for kind in errors.CODES.values()}
    wrong = [
        f"{name(path)}: {node.name}"
        for path in tracked("cogo")
        if name(path) != "cogo/core/errors.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[-1] in known for base in node.bases)
    ]
    assert not wrong, wrong


def test_generated_pages_are_up_to_date():
    """docs/reference is what docs/generate.py writes now."""
    ran = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_test_file_says_what_it_proves():
    """The first line of a test file is a sentence about what holds when it passes."""
    bare = [name(path) for path in tracked("tests") if not ast.get_docstring(parsed(path))]
    assert not bare, bare


def test_every_migration_says_why():
    """The first line of a migration is a comment."""
    files = tracked("sql/migrations", suffix=".sql")
    assert files
    assert not [name(path) for path in files if not path.read_text().startswith("-- ")]
