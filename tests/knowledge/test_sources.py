"""Proves that changed rows of a followed table become messages, and then documents that can be searched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import msgspec
import pytest
from hands import fast_settings
from helpers import eventually_async

from cogo import Database, Role, errors
from cogo.core.bus import Bus
from cogo.core.runtime import Runtime, run
from cogo.core.settings import Secret
from cogo.knowledge import index, search, sources
from cogo.plugins import rag_embed
from cogo.testing import running

TABLE = "CREATE TABLE public.notes (id bigint PRIMARY KEY, body text, owner text)"
SOURCE = sources.Source("public.notes", "id", "body")


@pytest.fixture
async def notes(database: Database) -> Database:
    await database.execute(TABLE)
    return database


async def messages(db: Database) -> list[dict[str, Any]]:
    return await db.fetch(
        "SELECT tenant, payload FROM public.agent_messages WHERE role = 'embed' ORDER BY id"
    )


async def drain(db: Database) -> list[list[str]]:
    """Do what rag/embed would with each message, in order; the ids of each."""
    done = []
    for row in await messages(db):
        await index.index_rows(db, row["tenant"], row["payload"]["table"], row["payload"]["ids"])
        done.append(row["payload"]["ids"])
    await db.execute("DELETE FROM public.agent_messages")
    return done


async def documents(db: Database, tenant: str = "default") -> dict[str, str]:
    rows = await db.fetch(
        "SELECT f.path, c.text FROM cogo.kb_repos r JOIN cogo.kb_files f ON f.repo_id = r.id"
        " JOIN cogo.kb_chunks c ON c.file_id = f.id WHERE r.tenant = %s ORDER BY 1",
        (tenant,),
    )
    return {row["path"]: row["text"] for row in rows}


@pytest.fixture
async def rag(dsn: str, notes: Database) -> AsyncIterator[Bus]:
    role = Role("rag", "embed", handle=rag_embed.embed, events="embed")
    async with running(role, dsn=dsn) as bus:
        yield bus


async def test_ten_rows_in_one_statement_are_one_message_and_searchable(rag: Bus, notes: Database) -> None:
    await sources.follow(notes, [SOURCE])
    await notes.execute(
        "INSERT INTO public.notes SELECT i, '# Note ' || i || E'\\n\\nThe walrus number ' || i || ' sings.'"
        " FROM generate_series(1, 10) i"
    )
    (message,) = await messages(notes)
    assert message["payload"] == {"table": "public.notes", "ids": sorted(map(str, range(1, 11)))}

    async def found() -> list[search.Hit]:
        return (await search.search(notes, "default", ["walrus sings"], 20))[0]

    hits = await eventually_async(lambda: found_all(found), timeout_s=10)
    assert {hit.path for hit in hits} == {f"public.notes/{i}" for i in range(1, 11)}
    assert hits[0].repo == "public.notes"
    assert hits[0].text.startswith("# Note ")


async def found_all(found: Any) -> list[search.Hit] | None:
    hits = await found()
    return hits if len(hits) == 10 else None


async def test_updates_and_deletes_are_followed(notes: Database) -> None:
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'old'), (2, 'two'), (3, NULL)")
    assert await drain(notes) == [["1", "2", "3"]]
    await notes.execute("UPDATE public.notes SET body = 'new' WHERE id = 1")
    await notes.execute("DELETE FROM public.notes WHERE id = 2")
    await notes.execute("UPDATE public.notes SET body = 'x' WHERE id = 77")
    assert await drain(notes) == [["1"], ["2"]]
    assert await documents(notes) == {"public.notes/1": "new"}


async def test_a_row_that_goes_back_and_forth_ends_as_it_is(notes: Database) -> None:
    """Each change gives its own message, however often the content was there before."""
    await sources.follow(notes, [SOURCE])
    for body in ("a", "b", "a", "b"):
        await notes.execute(
            "INSERT INTO public.notes VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET body = %s", (body, body)
        )
        await drain(notes)
    assert await documents(notes) == {"public.notes/1": "b"}


async def test_many_edits_in_one_transaction_are_one_message(notes: Database) -> None:
    await notes.execute("INSERT INTO public.notes VALUES (1, 'a')")
    await sources.follow(notes, [SOURCE])
    await drain(notes)
    async with notes.transaction() as conn:
        for n in range(10):
            await conn.execute("UPDATE public.notes SET body = %s WHERE id = 1", (str(n),))
    assert await drain(notes) == [["1"]]
    assert await documents(notes) == {"public.notes/1": "9"}


async def test_ten_statements_before_anybody_looks_are_one_message(notes: Database) -> None:
    """Also from ten connections; what changes after it was claimed gives another one."""
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'a'), (2, 'b')")
    await drain(notes)
    for n in range(10):
        await notes.execute("UPDATE public.notes SET body = %s WHERE id = 1", (str(n),))
    assert [row["payload"]["ids"] for row in await messages(notes)] == [["1"]]
    await notes.execute("UPDATE public.agent_messages SET status = 'claimed'")
    for n in range(10):
        await notes.execute("UPDATE public.notes SET body = %s WHERE id = 1", (f"later {n}",))
    await notes.execute("UPDATE public.notes SET body = 'c' WHERE id = 2")
    assert [row["payload"]["ids"] for row in await messages(notes)] == [["1"], ["1"], ["2"]]


async def test_a_change_that_is_not_committed_yet_holds_its_message_back(notes: Database) -> None:
    """Who claims the message that it relies on would read the old row, and nobody would be told again."""
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'old')")
    claim = "SELECT id FROM cogo.claim('rag', 'embed', 0, 10, 'hand', 1, 60000, ARRAY[0, 0, 0, 0]) WHERE id IS NOT NULL"
    async with notes.transaction() as conn:
        await conn.execute("UPDATE public.notes SET body = 'new' WHERE id = 1")
        assert await notes.fetch(claim) == []
    assert len(await notes.fetch(claim)) == 1
    assert await drain(notes) == [["1"]]
    assert await documents(notes) == {"public.notes/1": "new"}


async def test_a_row_that_is_at_work_makes_no_writer_wait(notes: Database) -> None:
    """Neither one that is being claimed now, nor another transaction's message for the same row."""
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'one')")
    async with notes.transaction() as claiming:
        await claiming.execute("SELECT FROM public.agent_messages FOR UPDATE")
        with anyio.fail_after(5):
            await notes.execute("UPDATE public.notes SET body = 'two' WHERE id = 1")
    assert len(await messages(notes)) == 2


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_strict_transaction_does_not_fail_for_a_message(notes: Database, level: str) -> None:
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'one')")
    async with notes.transaction() as conn:
        await conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        await conn.execute("SELECT count(*) FROM public.notes")
        await notes.execute("UPDATE public.agent_messages SET status = 'claimed'")
        for n in range(3):
            await conn.execute("UPDATE public.notes SET body = %s WHERE id = 1", (str(n),))
    assert [row["payload"]["ids"] for row in await messages(notes)] == [["1"], ["1"]]


async def test_ten_edits_are_embedded_once(rag: Bus, notes: Database) -> None:
    """Counted at the writing end, while the role is paused and after it goes on."""
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'first')")
    await eventually_async(lambda: holds(notes, "first"))
    await notes.execute("SELECT cogo.pause('rag', 'embed', NULL, 'test')")
    for n in range(10):
        await notes.execute("UPDATE public.notes SET body = %s WHERE id = 1", (f"edit {n}",))
    await notes.execute("SELECT cogo.resume('rag', 'embed', NULL, 'test')")
    await eventually_async(lambda: holds(notes, "edit 9"))
    open_ones = "SELECT count(*) FROM public.agent_messages WHERE status <> 'done'"
    await eventually_async(lambda: _is_zero(notes, open_ones))
    ended = "SELECT result_snippet FROM public.agent_messages WHERE status = 'done'"
    reports = [msgspec.json.decode(row["result_snippet"]) for row in await notes.fetch(ended)]
    assert [report["files"] for report in reports] == [1, 1], "the insert, and ten edits at once"


async def _is_zero(db: Database, count: str) -> bool:
    return await db.fetch_value(count) == 0


async def holds(db: Database, text: str) -> bool:
    return text in (await documents(db)).values()


async def test_a_truncated_tables_documents_leave_the_index(notes: Database) -> None:
    await sources.follow(notes, [sources.parse("public.notes:id:body:owner")])
    await notes.execute("INSERT INTO public.notes SELECT i, 'text', 'acme' FROM generate_series(1, 3) i")
    await notes.execute("INSERT INTO public.notes VALUES (4, 'text', 'other')")
    await drain(notes)
    await notes.execute("TRUNCATE public.notes")
    assert sorted(await drain(notes)) == [["1", "2", "3"], ["4"]]
    assert await documents(notes, "acme") == {}
    assert await documents(notes, "other") == {}
    await notes.execute("TRUNCATE public.notes")
    assert await messages(notes) == []


async def test_ten_thousand_rows_in_one_statement_are_messages_of_bounded_size(notes: Database) -> None:
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes SELECT i, 'text' FROM generate_series(1, 10000) i")
    found = await messages(notes)
    assert [len(row["payload"]["ids"]) for row in found] == [500] * 20
    assert len({id for row in found for id in row["payload"]["ids"]}) == 10_000


async def test_a_table_that_changed_under_us_says_so(notes: Database) -> None:
    """Its writers are never refused; what can't be read fails with what to do; the table is listed as broken."""
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'one')")
    await drain(notes)
    assert await sources.followed(notes) == {"public.notes": None}
    await notes.execute("ALTER TABLE public.notes RENAME body TO words")
    await notes.execute("UPDATE public.notes SET words = 'two'")
    with pytest.raises(errors.TaskInvalid, match="no column body"):
        await drain(notes)
    assert await sources.followed(notes) == {"public.notes": "column body"}
    await notes.execute("DELETE FROM public.agent_messages")
    await notes.execute("ALTER TABLE public.notes RENAME id TO number")
    await notes.execute("UPDATE public.notes SET words = 'three'")  # with a WARNING
    assert await messages(notes) == []
    await notes.execute("DROP TABLE public.notes")
    with pytest.raises(errors.TaskInvalid, match="no such table") as raised:
        await index.index_rows(notes, "default", "public.notes", ["1"])
    assert "rag-dispatcher" in raised.value.next_step
    await sources.follow(notes, [])
    assert await sources.followed(notes) == {}


async def test_what_a_table_holds_already_is_told_once(notes: Database) -> None:
    await notes.execute("INSERT INTO public.notes SELECT i, 'text' FROM generate_series(1, 600) i")
    assert await sources.follow(notes, [SOURCE]) == 2
    assert await sources.follow(notes, [SOURCE]) == 0
    assert sum(map(len, await drain(notes))) == 600


async def test_rows_belong_to_the_tenant_that_their_column_names(notes: Database) -> None:
    await sources.follow(notes, [sources.parse("public.notes:id:body:owner")])
    await notes.execute(
        "INSERT INTO public.notes VALUES (1, 'one', 'acme'), (2, 'two', 'other'), (3, 'three', NULL)"
    )
    assert {row["tenant"]: row["payload"]["ids"] for row in await messages(notes)} == {
        "acme": ["1"], "other": ["2"], "default": ["3"],
    }  # fmt: skip
    await drain(notes)
    await notes.execute("UPDATE public.notes SET owner = 'other' WHERE id = 1")
    await drain(notes)
    assert await documents(notes, "acme") == {}
    assert await documents(notes, "other") == {"public.notes/1": "one", "public.notes/2": "two"}
    await index.index_rows(notes, "acme", "public.notes", ["2"])
    assert await documents(notes, "acme") == {}, "another tenant's row is not there"


async def test_no_other_table_can_be_read(database: Database) -> None:
    for table in ("public.agent_messages", "pg_catalog.pg_authid", "x'; DROP TABLE cogo.kb_repos --"):
        with pytest.raises(errors.TaskInvalid, match="no rag-dispatcher follows"):
            await index.index_rows(database, "acme", table, ["1"])


async def test_an_id_that_is_none_of_that_table_stops_no_other_row(notes: Database) -> None:
    await sources.follow(notes, [SOURCE])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'one')")
    with pytest.raises(errors.HandlerFailed, match=r"1 of 3 files failed: public\.notes/x"):
        await index.index_rows(notes, "default", "public.notes", ["x", "77", "1"])
    assert await documents(notes) == {"public.notes/1": "one"}


async def test_a_table_that_is_no_longer_named_is_no_longer_followed(notes: Database) -> None:
    await sources.follow(notes, [SOURCE])
    await sources.follow(notes, [])
    await notes.execute("INSERT INTO public.notes VALUES (1, 'text')")
    assert await messages(notes) == []
    with pytest.raises(errors.TaskInvalid):
        await index.index_rows(notes, "default", "public.notes", ["1"])


async def test_the_specifications_tables_are_followed_where_they_exist(database: Database) -> None:
    await database.execute(
        'CREATE TABLE public.vector_documents (id uuid PRIMARY KEY, "content" text, tenant text)'
    )
    await database.execute("CREATE TABLE public.code_vectors (id bigint, embedding real[])")
    await sources.follow(database, [])
    id = "6b1f7f0e-8a0e-4d6e-9d0a-0a3a4d8f7a11"
    await database.execute("INSERT INTO public.vector_documents VALUES (%s, 'text', 'acme')", (id,))
    assert await drain(database) == [[id]]
    assert await documents(database, "acme") == {f"public.vector_documents/{id}": "text"}


async def test_rows_of_code_are_cut_as_code(database: Database) -> None:
    """By the language that a column names, else by the path's ending; a row of another language is cut anew."""
    await database.execute(
        "CREATE TABLE public.code_vectors (id int, content text, path text, language text)"
    )
    await sources.follow(database, [])
    code = "# a note\n\ndef moor():\n    pass\n\n\nclass Berth:\n    pass\n"
    await database.execute(
        "INSERT INTO public.code_vectors VALUES (1, %(c)s, 'a.py', NULL), (2, %(c)s, NULL, 'Python'),"
        " (3, %(c)s, 'a.py', 'py'), (4, %(c)s, NULL, NULL), (5, %(c)s, 'a.md', 'cobol')",
        {"c": code},
    )
    await drain(database)
    names = (
        "SELECT f.path, f.lang, array_agg(c.qualname ORDER BY c.ord) AS names FROM cogo.kb_files f"
        " JOIN cogo.kb_chunks c ON c.file_id = f.id GROUP BY 1, 2 ORDER BY 1"
    )
    python = ("python", ["", "moor", "Berth"])
    assert [(row["lang"], row["names"]) for row in await database.fetch(names)] == [
        python, python, python, ("text", [""]), ("cobol", [""]),
    ]  # fmt: skip
    await database.execute("UPDATE public.code_vectors SET language = 'python' WHERE id = 4")
    await drain(database)
    assert (await database.fetch(names))[3]["lang"] == "python"


async def test_odd_names_are_quoted(database: Database) -> None:
    await database.execute('CREATE TABLE public."Odd ""name" ("Id $1" text PRIMARY KEY, "the text" text)')
    source = sources.Source('public."Odd ""name"', "Id $1", "the text")
    await sources.follow(database, [source])
    await database.execute('INSERT INTO public."Odd ""name" VALUES (%s, %s)', ("o'ne", "text"))
    assert await drain(database) == [["o'ne"]]
    assert await documents(database) == {f"{source.table}/o'ne": "text"}


@pytest.mark.parametrize("text", ["notes", "public.notes:id", "a:b:c:d:e", "public.notes::body"])
def test_a_setting_that_does_not_read_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidSetting):
        sources.parse(text)


@pytest.mark.parametrize("source", [("public.none", "id", "body"), ("public.notes", "id", "nothing"), ("public.notes", "id", "body", "x")])  # fmt: skip
async def test_a_table_or_column_that_is_not_there_is_refused(
    notes: Database, source: tuple[str, ...]
) -> None:
    with pytest.raises(errors.InvalidSetting, match="there is no"):
        await sources.follow(notes, [sources.Source(*source)])


async def follow_by_role(dsn: str, table: str, work: Callable[[Runtime], None]) -> None:
    """A process with the role and this setting; `work` ends it."""
    settings = msgspec.structs.replace(
        fast_settings().settings,
        database_url=Secret(dsn),
        roles=("rag-dispatcher",),
        plugins={"rag-dispatcher": {"tables": [table]}},
    )
    stop = anyio.Event()

    def ready(runtime: Runtime) -> None:
        work(runtime)
        stop.set()

    await run(settings, stop=stop, signals=False, ready=ready)


async def test_the_role_follows_the_tables_of_its_settings(dsn: str, notes: Database) -> None:
    """The triggers work on when the role has gone."""
    started: list[Runtime] = []
    await follow_by_role(dsn, "public.notes:id:body", started.append)
    assert started[0].roles == ["rag-dispatcher"]
    await notes.execute("INSERT INTO public.notes VALUES (1, 'one')")
    assert await drain(notes) == [["1"]]


async def test_a_setting_that_names_no_table_stops_the_process(dsn: str) -> None:
    with pytest.raises(errors.InvalidSetting, match="there is no such table"):
        await follow_by_role(dsn, "public.none:id:body", lambda _: pytest.fail("it started"))
