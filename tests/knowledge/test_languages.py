"""Proves that code of each language with a grammar is cut into its symbols, and that no text is too hostile."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knowledge_hands import index_all, write

from cogo import Database
from cogo.knowledge import answers, chunking, index, scan, search, signatures

TYPESCRIPT = """\
import { z } from "zod"

/**
 * Opens the lock.
 */

export async function open(key: string): Promise<void>;
export async function open(key: any) {
  function inner() {}
}

@sealed()
export abstract class Lock<T> extends Base {
  size = 1
  // Turns it.
  @log
  turn(): void {}
  abstract break(): void
  onJam = () => 1
}

export namespace Keys {
  export interface Key { id: string }
  export const make = (id: string): Key => ({ id })
}
const ids = keys.map((key) => key.id)
export const Memo = React.memo(forwardRef((props, ref) => 1))
export const pick: { (a: number): string } = dual(2, impl)
const table = { plain: 1 }
const handlers = {
  open() {},
  close: () => 2,
}
export default function () {}
describe("locks", () => {
  it("opens", () => {})
})
"""
JAVASCRIPT = """\
'use strict'
exports.seal = function (box) {}
Box.prototype.lift = function () {}
app.use = function use(fn) {
}
module.exports = { weigh(x) { return x }, unit: 'kg' };
(function (root) {
  function hidden() {}
})(this)
"""
GO = """\
// Package harbour keeps books.
package harbour

import "fmt"

// Boat is moored.
type Boat[T any] struct {
	Name string // its name
}

type (
	// A is one.
	A int
	B = A
)

// Moor ties it.
func (b *Boat[T]) Moor() error {
	return nil
}
func main() {}
"""
RUST = """\
#![allow(dead_code)]
use std::fmt;

/// A boat.
#[derive(Debug)]
pub struct Boat { name: String }

impl<'a> fmt::Display for crate::Boat {
    /// Writes it.
    #[inline]
    fn fmt(&self) -> i32 { 1 }
}
pub trait Float { fn float(&self); }
mod deep {
    pub mod er { pub fn sink() {} }
}
extern "C" { fn quay(); }
macro_rules! rope { () => {} }
"""
JAVA = """\
package a.b;
import java.util.List;

/** A boat. */
@Entity
public class Boat {
    private int size;

    /** Ties it. */
    @Override
    public void moor() {}
    Boat() {}
    static class Crew { void row() {} }
    enum Flag { RED { }; int code() { return 1; } }
}
record Berth(int metres) {}
interface Port { void open(); }
"""
SQL = """\
-- Books.
CREATE TABLE harbour.boats (
  id int
);
CREATE INDEX ON harbour.boats (id);

-- Ties it.
CREATE OR REPLACE FUNCTION harbour.moor(a int) RETURNS void LANGUAGE plpgsql AS $body$
BEGIN
  IF a THEN RETURN; END IF;
END $body$;
CREATE VIEW "all" AS SELECT 1;
SELECT 1;
"""
EXPECTED = {
    ("a.ts", TYPESCRIPT): [
        "module  1-1", "function open 3-10", "class Lock 12-14", "method Lock.turn 15-17", "method Lock.break 18-18",
        "method Lock.onJam 19-19", "class Lock 20-20", "module Keys 22-22", "class Keys.Key 23-23",
        "function Keys.make 24-24", "module Keys 25-25", "module  26-26", "function Memo 27-27", "function pick 28-28",
        "module  29-29", "class handlers 30-30", "method handlers.open 31-31", "method handlers.close 32-32",
        "class handlers 33-33", "function default 34-34", "module  35-37",
    ],
    ("a.js", JAVASCRIPT): [
        "module  1-1", "function seal 2-2", "method Box.lift 3-3", "method app.use 4-5", "function weigh 6-6",
        "module  7-7", "function hidden 8-8", "module  9-9",
    ],
    ("a.go", GO): [
        "module  1-4", "class Boat 6-9", "module  11-11", "class A 12-13", "class B 14-14", "module  15-15",
        "method Boat.Moor 17-20", "function main 21-21",
    ],
    ("a.rs", RUST): [
        "module  1-2", "class Boat 4-6", "class Boat 8-8", "method Boat.fmt 9-11", "class Boat 12-12",
        "method Float.float 13-13", "module deep 14-14", "function deep.er.sink 15-15", "module deep 16-16",
        "function quay 17-17", "function rope 18-18",
    ],
    ("a.java", JAVA): [
        "module  1-2", "class Boat 4-7", "method Boat.moor 9-11", "method Boat.Boat 12-12", "method Boat.Crew.row 13-13",
        "method Boat.Flag.code 14-14", "class Boat 15-15", "class Berth 16-16", "method Port.open 17-17",
    ],
    ("a.sql", SQL): [
        "class harbour.boats 1-4", "module  5-5", "function harbour.moor 7-11", "class all 12-12", "module  13-13",
    ],
}  # fmt: skip
PATHS = ["a.js", "a.jsx", "a.ts", "a.tsx", "a.go", "a.rs", "a.java", "a.sql", "a.md"]


@pytest.mark.parametrize(("path", "text"), EXPECTED, ids=[path for path, _ in EXPECTED])
def test_each_language_is_cut_into_its_symbols(path: str, text: str) -> None:
    cut = chunking.chunk_file(path, text)
    assert cut.note is None
    assert [f"{c.kind} {c.qualname} {c.start}-{c.end}" for c in cut.chunks] == EXPECTED[path, text]
    # As Windows writes it, with a form feed: the same lines.
    other = chunking.chunk_file(path, text.replace("\n", "\r\n").replace("\n\r\n", "\n\f\r\n", 1))
    assert [(c.qualname, c.start, c.end) for c in other.chunks] == [
        (c.qualname, c.start, c.end) for c in cut.chunks
    ]


def test_what_parses_beside_an_error_is_still_a_symbol() -> None:
    cut = chunking.chunk_file(
        "a.ts", "function good() {}\nclass Half {\n  m() { ) }\n  n() {}\n}\nfunction too() {}\n"
    )
    assert {"good", "too"} <= {c.qualname for c in cut.chunks}
    assert cut.note == "parts are not parsable as typescript: symbols only of the rest"


def test_a_function_without_end_is_cut_and_keeps_its_name() -> None:
    body = "\n".join(f"  call({i})" for i in range(5_000))
    for path, text in {"a.go": f"func f() {{\n{body}\n}}\n", "a.py": f"def f():\n{body}\n"}.items():
        cut = chunking.chunk_file(path, text).chunks
        assert {c.qualname for c in cut} == {"f"}
        assert max(c.end - c.start + 1 for c in cut) == 500


HOSTILE = {
    "parentheses": "(" * 10_000 + ")" * 10_000,
    "open blocks": "{" * 10_000,
    "classes": "class A { " * 10_000,
    "modules": "mod a { " * 10_000 + "}" * 10_000,
    "namespaces": "namespace a { " * 5_000 + "}" * 5_000,
    "objects": "x = " + "{ a() {}, b: " * 5_000,
    "generics": "a<" * 10_000,
    "types": "a<b,\n" * 25_000,
    "html": "<!--\n" * 25_000,
    "one long line": "function f(){return 1};" * 20_000,
    "NUL": "func f() {\0}\nclass A { \0 m() {} }\n",
    "long name": f"function {'f' * 100_000}() {{}}",
    "quotes": "> " * 10_000 + "$$ ' \" ` " * 999,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_little_time_and_leaves_no_line_out(name: str) -> None:
    for path in PATHS:
        check(path, HOSTILE[name])


PIECES = [
    "", " ", "\t", "\f", "\r", "}", "{", "});", "/**", " * doc", "*/", "// note", "/// doc", "#[test]", "@Override",
    "function f() {", "export default {", "const g = () => {", "class A {", "  m() {}", "interface I {", "namespace N {",
    "func (t *T) M() {", "type ( A int", "impl T for U {", "mod m {", "fn f();", "public class B {", "void m();",
    "CREATE TABLE t (", "CREATE FUNCTION f() AS $$", "$$;", "가나다() {}", "a\u2028b", "`${", "'", '"', "# H", "---", "```",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=30).map("\n".join) | st.text(max_size=200),
    st.sampled_from([*PATHS, "a.kt"]),
)
def test_chunks_are_exact_disjoint_and_leave_nothing_out(text: str, path: str) -> None:
    check(path, text)


def check(path: str, text: str) -> None:
    lines = chunking.split_lines(text)
    covered: list[int] = []
    for chunk in chunking.chunk_file(path, text).chunks:
        assert chunk.text == "\n".join(lines[chunk.start - 1 : chunk.end])
        assert len(chunk.qualname) < 3_000
        covered += range(chunk.start, chunk.end + 1)
    assert covered == sorted(set(covered))
    assert {i for i, line in enumerate(lines, 1) if line.strip()} <= set(covered)


def test_comments_and_front_matter_hold_no_headings() -> None:
    text = "---\n# yaml\n---\n# One\n<!--\n# two\n-->\n<!-- # three -->\n<pre>\n# four\n</pre>\n~~~\n```\n# five\n~~~\n# Six\n"
    assert [c.qualname for c in chunking.chunk_file("a.md", text).chunks] == ["", "One", "Six"]


SIGNATURES = [
    ("typescript", "open", "/**\n * Doc { of it.\n */\n@dec({\n  a: 1,\n})\nexport function open(\n  a: { b: 1 },\n): void {\n  x\n}", (6, 9)),
    ("java", "Boat.moor", "/** Doc. */\n@Override\npublic void moor(int a) throws B {\n}", (2, 3)),
    ("java", "Port.open", "void open();", (0, 1)),
    ("rust", "Boat.fmt", "/// Doc\n#[inline]\npub fn fmt<T>(&self)\nwhere\n    T: X,\n{\n}", (2, 5)),
    ("go", "Boat.Moor", "// Moor ties.\nfunc (b *Boat) Moor() error {\n}", (1, 2)),
    ("sql", "h.moor", "-- Doc\nCREATE FUNCTION h.moor(\n  a int\n) RETURNS void\nLANGUAGE sql AS $$\n$$;", (1, 4)),
    ("typescript", "Lock", "  size = 1\n}", None),
    ("python", "f", "@d\ndef f(\n  a,\n):\n  pass", (1, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("lang", "name", "text", "head"), SIGNATURES)
def test_the_signature_is_what_stands_before_the_body(
    lang: str, name: str, text: str, head: tuple[int, int] | None
) -> None:
    lines = text.split("\n")
    found = signatures.signature(lines, lang, name)
    assert found == head
    said = signatures.doc(lines, found)
    assert (said is not None and lines[said].lower().count("doc") + lines[said].count("Moor") == 1) == (
        text.startswith(("/", "--"))
    )


async def test_code_of_other_languages_is_found_by_its_symbols(database: Database, tmp_path: Path) -> None:
    files = {"boat.java": JAVA, "Main.kt": "fun main() {}\n", "a.json": "{}\n"}
    files["src/lock.ts"] = TYPESCRIPT.replace(
        " * Opens the lock.", " * Raises the padlock\n * after the tide."
    )
    files["src/boat.go"] = GO.replace("Moor ties it", "Moor fastens the vessel to the quay with two ropes")
    root = scan.open_root(str(write(tmp_path / "locks", files)))
    repo = await index.open_repo(database, "acme", "locks", str(root))
    assert (await index.plan(database, repo, root)).unparsed == {"kotlin": 1}
    await index_all(database, root)
    (hits,) = await search.search(
        database, "acme", ["fasten vessel quay ropes"], 3, search.Scope(repo="locks")
    )
    assert (hits[0].kind, hits[0].qualname, hits[0].start, hits[0].end) == ("method", "Boat.Moor", 17, 20)
    found = await answers.answer(database, "acme", "How is a vessel fastened to the quay?", repo="locks")
    assert found.answer == textwrap.dedent(
        """\
        method `Boat.Moor` [src/boat.go:17-20]: func (b *Boat[T]) Moor() error
          says [src/boat.go:17-17]: Moor fastens the vessel to the quay with two ropes."""
    )
    found = await answers.answer(database, "acme", "What raises a padlock after the tide?", repo="locks")
    assert "says [src/lock.ts:4-5]: Raises the padlock after the tide." in found.answer
    # The brackets that close a class are there, and can't be found.
    silent = await database.fetch("SELECT text FROM cogo.kb_chunks WHERE digest IS NULL")
    assert silent
    assert {row["text"].strip("{}();\n ") for row in silent} == {""}
