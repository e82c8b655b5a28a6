"""Those who use the bus from outside: producers by every door, an outsider that works by plain UPDATEs, operators.

Each writes down what it asks before it asks (`invoke`), and what it was told: `ok` with an id, `fail` when the
message is surely not there, `info` when nobody knows. Who got `info` for a message with an idempotency key asks
again; without a key it leaves it at that.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import anyio
import msgspec
import psycopg
from chaos.machines import World
from chaos.recorder import Lines
from chaos.roles import FOREIGN, passes
from psycopg.conninfo import make_conninfo

import cogo
from cogo.core.errors import BusUnavailable, ResultPending

TENANTS = ("acme", "beta", "default")
ASK_S = 6.0
"""A producer that has no answer after this long gives that try up."""
TRIES = 4
CALLERS = 3
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, BusUnavailable, TimeoutError, OSError)

Ask = tuple[str, str, dict[str, Any]]
"""Lane, tenant, payload."""


WEIGHTS = {"noop": 5, "evented": 4, "slow": 4, "thread": 2, "effect": 5, "follow": 4, "delegate": 5, "spend": 2,
           "flaky": 2, "limited": 3, FOREIGN: 2}  # fmt: skip


class Mix:
    """Draws messages: lanes by weight, with payloads that say what the handler is to do."""

    def __init__(self, rng: random.Random, who: str) -> None:
        self._rng = rng
        self._who = who
        self._n = 0

    def draw(self, *lanes: str) -> Ask:
        names = list(lanes or WEIGHTS)
        name = self._rng.choices(names, [WEIGHTS[name] for name in names])[0]
        self._n += 1
        payload = {"uid": f"{self._who}:{self._n}", **getattr(self, f"_{name}", dict)()}
        return f"chaos/{name}", self._rng.choice(TENANTS), payload

    def _slow(self) -> dict[str, Any]:
        return {"wait_s": round(self._rng.uniform(0.2, 1.5), 2), "talks": self._rng.random() < 0.4}

    def _limited(self) -> dict[str, Any]:
        return {"wait_s": round(self._rng.uniform(0.05, 0.3), 2)}

    def _thread(self) -> dict[str, Any]:
        return {"wait_s": round(self._rng.uniform(0.05, 0.4), 2)}

    def _effect(self) -> dict[str, Any]:
        return {"wait_s": self._rng.choice([0.0, 0.0, 0.1, 0.6])}

    def _follow(self) -> dict[str, Any]:
        return {"follow": self._rng.randint(1, 2), "wait_s": self._rng.choice([0.0, 0.3])}

    def _delegate(self) -> dict[str, Any]:
        return {"hops": self._rng.randint(1, 3), "then": self._rng.choice(["done", "done", "done", "retry", "reject"]),
                "wait_s": self._rng.choice([0.0, 0.2]), "transaction": self._rng.random() < 0.3}  # fmt: skip

    def _spend(self) -> dict[str, Any]:
        return {"calls": self._rng.randint(2, 6), "__assignment": {"budget": {"maxCostUsd": 1.0}}}

    def _flaky(self) -> dict[str, Any]:
        return {"fails": self._rng.randint(1, 3)}


class Producer:
    """Records one kind of asking."""

    def __init__(self, world: World, who: str, seed: str) -> None:
        self.world = world
        self.who = who
        self.rng = random.Random(f"{seed}:{who}")
        self.mix = Mix(self.rng, who)
        self.log = Lines(world.folder / "events" / f"{who}.jsonl", who)
        self.ids: list[int] = []
        """What was acknowledged, in order."""

    def _note(self, stage: str, ask: Ask, **more: Any) -> None:
        lane, tenant, payload = ask
        self.log.write(
            "op",
            f="enqueue",
            stage=stage,
            uid=payload["uid"],
            lane=lane,
            tenant=tenant,
            payload=payload,
            **more,
        )

    async def tell(
        self, asks: list[Ask], put: Callable[[], Awaitable[list[int]]], key: str | None = None
    ) -> bool:
        """Ask once for these messages, and record the answer; False when it is unknown."""
        for ask in asks:
            self._note("invoke", ask, key=key)
        stage, ids = "info", []
        try:
            with anyio.fail_after(ASK_S):
                ids = await put()
            stage = "ok"
        except RolledBackError:
            stage = "fail"
        except AWAY:
            pass
        finally:  # an ask that is cancelled has an unknown answer too
            for number, ask in enumerate(asks):
                self._note(stage, ask, key=key, **({"id": ids[number]} if ids else {}))
        self.ids += ids
        return stage != "info"

    async def pause(self) -> None:
        await passes(self.rng.uniform(0.02, 0.12))


class RolledBackError(Exception):
    """The producer took it back itself: the message is not there."""


# -- by the doors of the bus ---------------------------------------------------------------------


@asynccontextmanager
async def _bus(dsn: str, who: str) -> AsyncIterator[cogo.Bus]:
    settings = cogo.Settings(listener="poll")
    async with cogo.connect(make_conninfo(dsn, application_name=f"chaos:{who}"), settings=settings) as bus:
        yield bus


async def by_bus(producer: Producer, dsn: str) -> None:
    """`bus.enqueue` by several callers of one bus at a time."""
    async with _bus(dsn, producer.who) as bus, anyio.create_task_group() as callers:
        for _ in range(CALLERS):
            callers.start_soon(_call, producer, bus)


async def _call(producer: Producer, bus: cogo.Bus) -> None:
    """Any priority, now and then a time to live, an ordering key, or an idempotency key: with that it asks again
    while the answer is unknown.
    """
    rng = producer.rng
    while True:
        ask = lane, tenant, payload = producer.mix.draw()
        key = payload["uid"] if rng.random() < 0.4 else None
        options: dict[str, Any] = {"idempotency_key": key, "priority": rng.randint(0, 3)}
        if rng.random() < 0.1:
            options["ttl_ms"] = rng.randint(200, 4000)
        if rng.random() < 0.2:
            options["ordering_key"] = f"key{rng.randint(1, 3)}"

        async def put() -> list[int]:
            return [await bus.enqueue(f"{lane}@{tenant}", payload, **options)]  # noqa: B023

        for _ in range(TRIES if key else 1):
            if await producer.tell([ask], put, key):
                break
        await passes(rng.uniform(0.05, 0.3))


async def by_batches(producer: Producer, dsn: str) -> None:
    """`bus.enqueue_many`: all or none of them."""
    async with _bus(dsn, producer.who) as bus:
        while True:
            lane, tenant, first = producer.mix.draw("noop", "evented", "effect", "follow")
            name = lane.partition("/")[2]
            more = [producer.mix.draw(name)[2] for _ in range(producer.rng.randint(2, 12))]
            asks: list[Ask] = [(lane, tenant, payload) for payload in [first, *more]]

            async def put() -> list[int]:
                return await bus.enqueue_many(f"{lane}@{tenant}", [ask[2] for ask in asks])  # noqa: B023

            await producer.tell(asks, put)
            await passes(producer.rng.uniform(0.3, 0.9))


INSERT = (
    "INSERT INTO public.agent_messages (service, role, tenant, payload) VALUES (%s, %s, %s, %s) RETURNING id"
)


async def by_sql(producer: Producer) -> None:
    """A plain INSERT, as any client of Postgres makes it."""
    async with Session(producer) as session:
        while True:
            ask = lane, tenant, payload = producer.mix.draw()

            async def put() -> list[int]:
                conn = await session.get()
                values = (*lane.split("/"), tenant, msgspec.json.encode(payload).decode())  # noqa: B023
                return [(await (await conn.execute(INSERT, values)).fetchone())[0]]

            await producer.tell([ask], put)
            await producer.pause()


async def in_transactions(producer: Producer) -> None:
    """`cogo.enqueue` beside a row of the producer's own, in its transaction, which it sometimes takes back."""
    async with Session(producer) as session:
        while True:
            ask = lane, tenant, payload = producer.mix.draw()
            taken_back = producer.rng.random() < 0.3
            options = {"ordering_key": "key1"} if producer.rng.random() < 0.2 else {}

            async def put() -> list[int]:
                conn = await session.get()
                async with conn.transaction():
                    await conn.execute("INSERT INTO chaos.orders VALUES (%s)", (payload["uid"],))  # noqa: B023
                    id = await cogo.enqueue(conn, f"{lane}@{tenant}", payload, **options)  # noqa: B023
                    if taken_back:  # noqa: B023
                        raise RolledBackError
                return [id]

            await producer.tell([ask], put)
            await producer.pause()


class Session:
    """One plain connection, made anew when it is lost; its application is `chaos:<who>`."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.drop()

    async def get(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is not None and (self._conn.closed or self._conn.broken):
            await self.drop()
        if self._conn is None:
            self._conn = await self._producer.world.aconnect(f"chaos:{self._producer.who}")
        return self._conn

    async def drop(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):
                await conn.close()


# -- those who work and watch --------------------------------------------------------------------

TAKE = """
UPDATE public.agent_messages SET status = 'claimed', claimed_by = %s WHERE id = (
  SELECT id FROM public.agent_messages WHERE service = 'chaos' AND role = %s AND status = 'queued'
    AND (retry_at IS NULL OR retry_at <= now()) ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id
"""
END = """
UPDATE public.agent_messages SET status = %s, result_snippet = %s, error = %s
WHERE id = %s AND status = 'claimed' AND claimed_by = %s
"""


async def outsider(producer: Producer) -> None:
    """Claims and finishes by plain UPDATEs; now and then it gives a message back, or forgets it."""
    number = 0
    async with Session(producer) as session:
        while True:
            number += 1
            with suppress(*AWAY), anyio.fail_after(ASK_S):
                await _work_once(producer, await session.get(), f"outsider:{number}")
            await producer.pause()


async def _work_once(producer: Producer, conn: psycopg.AsyncConnection[Any], by: str) -> None:
    row = await (await conn.execute(TAKE, (by, FOREIGN))).fetchone()
    if row is None:
        return
    sql = "SELECT fence FROM public.agent_messages WHERE id = %s AND claimed_by = %s"
    claim = await (await conn.execute(sql, (row[0], by))).fetchone()
    await passes(producer.rng.uniform(0, 0.2))
    whims = [80, 10, 0, 0] if producer.world.healed else [80, 10, 5, 5]
    end = producer.rng.choices(["done", "failed", "queued", "forgotten"], whims)[0]
    if end == "forgotten" or claim is None:
        return
    result = msgspec.json.encode({"fence": claim[0]}).decode() if end == "done" else None
    error = f"outsider_failed: fence={claim[0]}" if end == "failed" else None
    await conn.execute(END, (end, result, error, row[0], by))


async def operator(producer: Producer, known: Callable[[], list[int]]) -> None:
    """Cancels messages, its own way and a tenant's, and requeues what has failed or was cancelled."""
    async with Session(producer) as session:
        while True:
            await passes(producer.rng.uniform(0.2, 0.6))
            with suppress(*AWAY, psycopg.errors.RaiseException), anyio.fail_after(ASK_S):
                conn = await session.get()
                whim = producer.rng.random()
                if whim < 0.5:
                    await _requeue(producer, conn)
                elif whim < 0.8:
                    await _cancel(
                        producer, conn, *[row[0] for row in await (await conn.execute(AT_WORK)).fetchall()]
                    )
                elif ids := known():
                    await _cancel(producer, conn, producer.rng.choice(ids))


AT_WORK = (
    "SELECT id FROM public.agent_messages WHERE status IN ('claimed', 'waiting') ORDER BY random() LIMIT 2"
)


async def _cancel(producer: Producer, conn: psycopg.AsyncConnection[Any], *ids: int) -> None:
    for id in ids:
        producer.log.write("op", f="cancel", stage="invoke", id=id)
        if producer.rng.random() < 0.5:
            await conn.execute("SELECT cogo.cancel(%s, 'operator', 'chaos')", (id,))
            continue
        async with (
            conn.transaction()
        ):  # as PostgREST does it for a client: the policy decides whether it is his
            claims = msgspec.json.encode(
                {"sub": "u", "app_metadata": {"tenants": list(TENANTS[:2])}}
            ).decode()
            await conn.execute("SELECT set_config('request.jwt.claims', %s, true)", (claims,))
            await conn.execute("SET LOCAL application_name = 'chaos:tenant'")
            await conn.execute("SET LOCAL ROLE authenticated")
            await conn.execute("UPDATE public.agent_messages SET status = 'cancelled' WHERE id = %s", (id,))
    await conn.execute("SELECT cogo.cascade_cancels()")


async def _requeue(producer: Producer, conn: psycopg.AsyncConnection[Any]) -> None:
    sql = """SELECT id FROM public.agent_messages WHERE status IN ('failed', 'cancelled') AND reply_to IS NULL
             AND role NOT IN ('poison', 'exit') ORDER BY id DESC LIMIT 20"""
    rows = await (await conn.execute(sql)).fetchall()
    if rows:
        id = producer.rng.choice(rows)[0]
        producer.log.write("op", f="requeue", stage="invoke", id=id)
        await conn.execute("SELECT cogo.requeue(%s, 'operator', 'chaos')", (id,))


async def waiter(producer: Producer, dsn: str, known: Callable[[], list[int]]) -> None:
    """Asks for results as clients do, and writes down what it was told."""
    async with _bus(dsn, producer.who) as bus:
        while True:
            await producer.pause()
            ids = known()[-40:]
            if not ids:
                continue
            id = producer.rng.choice(ids)
            with suppress(*AWAY, ResultPending), anyio.fail_after(ASK_S):
                result = await bus.result(id, timeout_s=1.0)
                producer.log.write("op", f="result", stage="ok", id=id, status=result.status)
