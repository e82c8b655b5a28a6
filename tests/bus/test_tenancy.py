"""Proves who may do what, with real roles and JWT claims set as PostgREST sets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from hands import Hand, counts, insert, kinds, row
from psycopg.conninfo import make_conninfo

from cogo.core.bus import Bus
from cogo.core.db import Connection, Database

ACME = {"sub": "user-7", "role": "authenticated", "app_metadata": {"tenants": ["acme", "beta"]}}
INGRESS = {"service": "orchestrator", "role": "decide", "tenant": "acme", "payload": '{"intent": "ask"}'}


@asynccontextmanager
async def as_role(bus: Bus, role: str, claims: Any = None) -> AsyncIterator[Connection]:
    """A transaction as PostgREST opens it for a request."""
    async with bus.db.transaction() as conn:
        text = claims if isinstance(claims, str) else msgspec.json.encode(claims or {}).decode()
        await conn.execute("SELECT set_config('request.jwt.claims', %s, true)", (text,))
        await conn.execute(f"SET LOCAL ROLE {role}")
        yield conn


async def refused(bus: Bus, role: str, claims: Any, sql: str, params: Any = ()) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        async with as_role(bus, role, claims) as conn:
            await conn.execute(sql.encode(), params)


async def put(conn: Connection, **columns: Any) -> None:
    values = INGRESS | columns
    marks = ", ".join(f"%({name})s" for name in values)
    await conn.execute(f"INSERT INTO public.agent_messages ({', '.join(values)}) VALUES ({marks})", values)


async def visible(conn: Connection, what: str = "agent_messages") -> list[str]:
    rows = await (await conn.execute(f"SELECT tenant FROM public.{what} ORDER BY id")).fetchall()
    return [found["tenant"] for found in rows]


# -- reading -----------------------------------------------------------------------------------


async def test_a_client_sees_its_own_tenants(bus: Bus) -> None:
    for tenant in ("acme", "beta", "evil"):
        await insert(bus, f"orchestrator/decide/0@{tenant}")
    async with as_role(bus, "authenticated", ACME) as conn:
        assert await visible(conn) == ["acme", "beta"]
        assert await visible(conn, "bus_events") == ["acme", "beta"]


ODD_CLAIMS: list[Any] = [
    None, "", {"user_metadata": {"tenants": ["acme"]}}, {"tenants": ["acme"]}, {"app_metadata": {}},
        {"app_metadata": {"tenants": "acme"}}, {"app_metadata": {"tenants": None}}, {"app_metadata": {"tenants": []}},
        {"app_metadata": {"tenants": {"acme": True}}}, {"app_metadata": [["acme"]]}, {"app_metadata": {"tenants": [["acme"]]}},
]  # fmt: skip


async def test_claims_of_any_other_shape_show_nothing(bus: Bus) -> None:
    """user_metadata in particular: users write that themselves."""
    await insert(bus, "orchestrator/decide/0@acme")
    for claims in ODD_CLAIMS:
        async with as_role(bus, "authenticated", claims) as conn:
            assert await visible(conn) == [], claims
            assert await visible(conn, "bus_events") == [], claims
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with as_role(bus, "authenticated", claims) as conn:
                await put(conn)


async def test_anon_gets_nothing(bus: Bus) -> None:
    await insert(bus, "orchestrator/decide/0@acme")
    for sql in (
        "SELECT 1 FROM public.agent_messages", "SELECT 1 FROM public.bus_events",
        "INSERT INTO public.agent_messages (service, role) VALUES ('orchestrator', 'decide')",
    "UPDATE public.agent_messages SET status = 'cancelled'", "DELETE FROM public.agent_messages",
    "SELECT cogo.claimed_tenants()", "SELECT 1 FROM cogo.bus_lanes",
    ):  # fmt: skip
        await refused(bus, "anon", ACME, sql)


# -- writing -----------------------------------------------------------------------------------


async def test_a_client_inserts_into_the_ingress_lane(bus: Bus) -> None:
    async with as_role(bus, "authenticated", ACME) as conn:
        await put(conn, status="queued", shard=0, idempotency_key="k")
    (event,) = await bus.db.fetch("SELECT kind, actor, tenant FROM public.bus_events")
    assert event == {"kind": "orchestrate_enqueued", "actor": "user-7", "tenant": "acme"}
    hand = await Hand(bus).register()
    (message,) = await hand.claim("orchestrator/decide")
    assert await hand.finish(message) == "done"


BAD_INSERTS: list[dict[str, Any]] = [
    {"tenant": "evil"}, {"service": "gateway", "role": "chat"}, {"role": "execute"}, {"shard": 1},
    {"status": "claimed"}, {"status": "done"},
    {"payload": '{"__assignment": {"budget": {"maxCostUsd": 1e9}}}'},
    {"payload": '{"payload": {"deep": [{"__assignment": {}}]}}'},
]  # fmt: skip


async def test_what_a_client_cannot_insert(bus: Bus) -> None:
    for columns in BAD_INSERTS:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            async with as_role(bus, "authenticated", ACME) as conn:
                await put(conn, **columns)
    for column in (
        "priority",
        "expires_at",
        "reply_to",
        "traceparent",
        "fence",
        "attempts",
        "root_id",
        "seq",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            async with as_role(bus, "authenticated", ACME) as conn:
                await put(conn, **{column: None})


async def test_a_client_cancels_its_own_and_nothing_else(bus: Bus) -> None:
    hand = await Hand(bus).register()
    own = await insert(bus, "orchestrator/decide/0@acme")
    other = await insert(bus, "orchestrator/decide/0@evil")
    ended = await insert(bus, "gateway/chat/0@acme")
    (message,) = await hand.claim("gateway/chat")
    await hand.finish(message, snippet="1")
    async with as_role(bus, "authenticated", ACME) as conn:
        await conn.execute("UPDATE public.agent_messages SET status = 'cancelled'")
    found = {id: await row(bus, id) for id in (own, other, ended)}
    assert [one["status"] for one in found.values()] == ["cancelled", "queued", "done"]
    assert found[own]["error"] == "cancelled: by user-7"
    assert (await kinds(bus, own))[-1] == "cancelled"
    assert (await counts(bus))["cancelled"] == 1
    (actor,) = await bus.db.fetch("SELECT actor FROM public.bus_events WHERE kind = 'cancelled'")
    assert actor == {"actor": "user-7"}


async def test_a_client_cancels_a_running_message(bus: Bus) -> None:
    hand = await Hand(bus).register()
    await insert(bus, "gateway/chat/0@acme")
    (message,) = await hand.claim("gateway/chat")
    async with as_role(bus, "authenticated", ACME) as conn:
        await conn.execute(
            "UPDATE public.agent_messages SET status = 'cancelled' WHERE id = %s", (message.id,)
        )
    assert await hand.finish(message) is None


FORBIDDEN = [
    "UPDATE public.agent_messages SET status = 'queued'", "UPDATE public.agent_messages SET status = 'done'",
    "UPDATE public.agent_messages SET tenant = 'acme'", "UPDATE public.agent_messages SET result_snippet = 'x'",
    "UPDATE public.agent_messages SET status = 'cancelled', fence = 0", "DELETE FROM public.agent_messages",
    "TRUNCATE public.agent_messages", "DELETE FROM public.bus_events",
    "INSERT INTO public.bus_events (kind, tenant) VALUES ('forged', 'acme')",
    "SELECT cogo.now()", "SELECT cogo.cancel(1, 'me', '')", "SELECT * FROM cogo.claim('orchestrator', 'decide', 0, 1, 'me', 1, 1)",
    "SELECT cogo.record_ends(ARRAY[1], 'me')", "SELECT cogo.renew(1, 'failed', '')", "SELECT cogo.wake('a', 'b', 0)",
    "SELECT 1 FROM cogo.bus_holders", "SELECT 1 FROM cogo.budget_holds", "SELECT 1 FROM cogo.message_chunks",
    "SELECT 1 FROM cogo.artifacts", "SELECT 1 FROM cogo.decisions", "SELECT 1 FROM cogo.bus_counts",
    "SELECT 1 FROM cogo.migrations", "SELECT nextval('cogo.bus_fence')",
]  # fmt: skip


async def test_what_a_client_cannot_do(bus: Bus) -> None:
    await insert(bus, "orchestrator/decide/0@acme")
    for sql in FORBIDDEN:
        await refused(bus, "authenticated", ACME, sql)


async def test_the_service_role_does_all(bus: Bus) -> None:
    """Also where service_role was made by us and does not bypass row level security."""
    await insert(bus, "t/echo/0@evil")
    async with as_role(bus, "service_role") as conn:
        assert await visible(conn) == ["evil"]
        await put(conn, tenant="acme", payload='{"__assignment": {}}')
        (claimed,) = await (
            await conn.execute("SELECT * FROM cogo.claim('t', 'echo', 0, 1, 'edge', 1, 60000)")
        ).fetchall()
        follow = {"parent": claimed["id"], "fence": claimed["fence"], "service": "t", "role": "leaf", "shard": 0,
                  "tenant": "evil", "payload": {}, "priority": 2, "delegate": True}  # fmt: skip
        done = await conn.execute(
            "SELECT status FROM cogo.finish(ARRAY[%s]::bigint[], ARRAY[%s]::bigint[], '{delegated}', '{null}', '{null}',"
            " '{null}', '{null}', '{null}', %s, '[]')",
            (claimed["id"], claimed["fence"], msgspec.json.encode([follow]).decode()),
        )
        assert await done.fetchall() == [{"status": "waiting"}]
        for call in (
            "cogo.cancel(%(id)s, 'edge', 'x')", "cogo.cascade_cancels()", "cogo.requeue(%(id)s, 'edge', 'x')",
            "cogo.reclaim(10, 0, 1)", "cogo.expire(10)", "cogo.retain(14, 0, 10)", "cogo.retain_rest(14, 10)",
            "cogo.roll_up()", "cogo.enqueue('t', 'echo', 0, 'acme', '{}')", "cogo.hold(1, 'acme', 1, 1)",
            "cogo.draw(1, 1, 1)", "cogo.add_chunks(1, 1, '{}', '{}')", "cogo.give_back('x', 1, '{}', 0)",
            "cogo.beat(1, 1)", "cogo.leave(1)", "cogo.register_holder('x', '{}', '{}', '{}', 1)",
        ):  # fmt: skip
            await conn.execute(f"SELECT {call}".encode(), {"id": claimed["id"]})
        await conn.execute("DELETE FROM public.agent_messages")


# -- what the catalog says ---------------------------------------------------------------------


async def test_no_function_of_ours_is_open(bus: Bus) -> None:
    """Row level security needs claimed_tenants(), and only for users who are signed in."""
    rows = await bus.db.fetch(
        """
        SELECT p.oid::regprocedure::text AS function, who.role
        FROM pg_proc p CROSS JOIN (VALUES ('anon'), ('authenticated')) AS who(role)
        WHERE p.pronamespace = 'cogo'::regnamespace AND has_function_privilege(who.role, p.oid, 'EXECUTE')
        """
    )
    assert rows == [{"function": "cogo.claimed_tenants()", "role": "authenticated"}]
    closed = await bus.db.fetch(
        """
        SELECT p.oid::regprocedure::text AS function FROM pg_proc p
        WHERE p.pronamespace = 'cogo'::regnamespace AND NOT has_function_privilege('service_role', p.oid, 'EXECUTE')
        """
    )
    assert closed == []


async def test_every_public_table_has_row_level_security(bus: Bus) -> None:
    rows = await bus.db.fetch(
        "SELECT relname, relrowsecurity FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    assert {found["relname"] for found in rows} >= {"agent_messages", "bus_events"}
    assert [found["relname"] for found in rows if not found["relrowsecurity"]] == []


async def test_no_table_of_ours_is_open(bus: Bus) -> None:
    rows = await bus.db.fetch(
        """
        SELECT c.relname, who.role, privilege.name
        FROM pg_class c CROSS JOIN (VALUES ('anon'), ('authenticated')) AS who(role)
        CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE'), ('REFERENCES'), ('TRIGGER'))
          AS privilege(name)
        WHERE (c.relnamespace = 'cogo'::regnamespace OR c.relnamespace = 'public'::regnamespace)
          AND c.relkind IN ('r', 'v', 'm') AND has_table_privilege(who.role, c.oid, privilege.name)
        ORDER BY 1
        """
    )
    assert [tuple(found.values()) for found in rows] == [
        ("agent_messages", "authenticated", "SELECT"),
        ("bus_events", "authenticated", "SELECT"),
    ]


async def test_functions_with_the_owners_rights_have_a_fixed_search_path(bus: Bus) -> None:
    rows = await bus.db.fetch(
        """
        SELECT p.oid::regprocedure::text AS function FROM pg_proc p
        WHERE p.pronamespace = 'cogo'::regnamespace AND p.prosecdef
          AND NOT 'search_path=""' = ANY (coalesce(p.proconfig, '{}'))
        """
    )
    assert rows == []


async def test_bulk_where_row_security_holds(dsn: str) -> None:
    """Postgres refuses COPY FROM there, so it is an INSERT: the same ids, the same payloads."""
    payloads: list[Any] = [{"n": n, "text": 'a\\b"c\n{,}'} for n in range(3)]
    db = Database(make_conninfo(dsn, options="-c role=service_role"))
    await db.open()
    try:
        assert await db.fetch_value("SELECT row_security_active('public.agent_messages')")
        ids = await Bus(db).enqueue_many("t/echo@acme", payloads)
        rows = await db.fetch("SELECT id, tenant, payload FROM public.agent_messages ORDER BY id")
    finally:
        await db.close()
    assert [(row["id"], row["tenant"], row["payload"]) for row in rows] == [
        (id, "acme", payload) for id, payload in zip(ids, payloads, strict=True)
    ]
