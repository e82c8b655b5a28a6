"""Two processes on one database: what fifty callers get who send every key to both at once, also when one is killed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import driving
import httpx
import lane
import psycopg
import serving
import worlds
from serving import API, Site

CALLERS = 50
MAX_COST_USD = 0.02
RESTARTED = 20
"""Keys that are sent once the killed process is back."""
TOLD_MAX_S = 90

LEDGER = """
SELECT b.limit_usd::float8 AS limit, (b.reserved_usd + b.spent_usd)::float8 AS taken, b.reserved_usd::float8 AS reserved,
  (SELECT coalesce(sum(h.reserved_usd), 0)::float8 FROM cogo.budget_holds h
    WHERE h.tenant = b.tenant AND h.closed_at IS NULL) AS held
FROM cogo.budgets b WHERE b.tenant = %s
"""
LOGGED = "SELECT count(*) FROM cogo.decisions WHERE tenant = %s"
ORPHANS = """
SELECT (SELECT count(*) FROM cogo.budget_holds h LEFT JOIN public.agent_messages m ON m.id = h.root_id
    WHERE h.tenant = %(t)s AND m.id IS NULL)
  + (SELECT count(*) FROM cogo.decisions d LEFT JOIN public.agent_messages m ON m.id = d.message_id
    WHERE d.tenant = %(t)s AND m.id IS NULL)
"""
OPEN = """
SELECT count(*) FROM public.agent_messages WHERE tenant = %s AND status NOT IN ('done', 'failed', 'cancelled')
"""


@dataclass
class Seen:
    """What callers were told, and what the ledger showed meanwhile."""

    taken: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    """Decision and message that each key was answered with."""
    refused: set[str] = field(default_factory=set)
    other: list[str] = field(default_factory=list)
    moved: int = 0
    """Calls whose process was gone, and which the other one answered."""
    looks: int = 0
    most: float = 0.0
    """Of the limit, reserved and spent."""


def open_lane(site: Site) -> None:
    """A live lane that answers the intent."""
    process = site.start([sys.executable, str(Path(lane.__file__).resolve())])
    assert process.stdout is not None
    if process.stdout.readline().strip() != serving.READY:
        raise RuntimeError("the lane did not start")


def shared(site: Site, tenant: str, keys: int, *, kill: bool) -> dict[str, Any]:
    """Send each key to both processes at once; `kill`: end one of them with -9 when half of the answers are there."""
    # The first process on a home owns the database server: it is the other one that is killed.
    roles = "orchestrator,executor,reclaimer"
    _, first = site.serve(roles)
    second_process, second = site.serve(roles)
    open_lane(site)
    with site.client(first) as client:
        budget = {"limit_usd": keys * lane.PRICE_USD * 0.8, "window_s": 3_600}
        client.put(f"{API}/budgets/{tenant}", json=budget).raise_for_status()
    seen = Seen()
    dsn = dsn_of(site)

    async def all_of_it() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, dsn, tenant, seen)
            end = second_process.kill if kill else None
            await _ask(site, tenant, [first, second], [f"k{n}" for n in range(keys)], seen, end)
            if kill:
                _, again = await anyio.to_thread.run_sync(site.serve, roles)
                with site.client(first) as client:
                    more = {"limit_usd": keys * lane.PRICE_USD * 4, "window_s": 3_600}
                    client.put(f"{API}/budgets/{tenant}", json=more).raise_for_status()
                await _ask(site, tenant, [again, again], [f"again{n}" for n in range(RESTARTED)], seen, None)
            await _settled(site, first, seen)
            tasks.cancel_scope.cancel()

    anyio.run(all_of_it)
    return _found(dsn, tenant, seen, keys + kill * RESTARTED)


async def _ask(site: Site, tenant: str, urls: Sequence[str], keys: list[str], seen: Seen, end: Any) -> None:
    """Fifty callers; a key's two calls follow one another in the queue, so both are under way at once."""
    calls = iter([(key, turn) for key in keys for turn in (0, 1)])
    answered = itertools.count(1)
    limits = httpx.Limits(max_connections=CALLERS)

    async def caller() -> None:
        for key, turn in calls:
            answer = await _enqueue(clients, turn, tenant, key, seen)
            _note(seen, key, answer)
            if end is not None and next(answered) == len(keys):
                end()

    async with (
        httpx.AsyncClient(base_url=urls[0], headers=site.headers, timeout=60, limits=limits) as one,
        httpx.AsyncClient(base_url=urls[1], headers=site.headers, timeout=60, limits=limits) as other,
    ):
        clients = [one, other]
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(caller)


async def _enqueue(
    clients: list[httpx.AsyncClient], turn: int, tenant: str, key: str, seen: Seen
) -> httpx.Response:
    """The answer of the process whose turn it is, or of the other one when that is gone."""
    body = {
        "tenant": tenant, "intent": lane.INTENT, "idempotency_key": key, "budget": {"maxCostUsd": MAX_COST_USD},
    }  # fmt: skip
    try:
        return await clients[turn].post(f"{API}/decide-enqueue", json=body)
    except httpx.TransportError:
        seen.moved += 1
        return await clients[0].post(f"{API}/decide-enqueue", json=body)


def _note(seen: Seen, key: str, answer: httpx.Response) -> None:
    if answer.status_code == httpx.codes.ACCEPTED:
        found = answer.json()
        seen.taken.setdefault(key, set()).add((found["decision_id"], found["message_id"]))
    elif answer.status_code == serving.REFUSED:
        seen.refused.add(key)
    else:
        seen.other.append(f"{answer.status_code} {answer.text[:200]}")


async def _watch(dsn: str, tenant: str, seen: Seen) -> None:
    """The ledger, again and again."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while True:
            row = await (await conn.execute(LEDGER, (tenant,))).fetchone()
            if row is not None:
                seen.looks, seen.most = seen.looks + 1, max(seen.most, row[1] / row[0])
            await anyio.sleep(0.01)


async def _settled(site: Site, url: str, seen: Seen) -> None:
    """Until all that callers were told of has ended, or it takes too long, which `_found` then says."""
    messages = [message for pairs in seen.taken.values() for _, message in pairs]
    async with httpx.AsyncClient(base_url=url, headers=site.headers, timeout=60) as client:
        with anyio.move_on_after(TOLD_MAX_S):
            for message in messages:
                await client.get(f"/api/messages/{message}/result", params={"wait_ms": 30_000})


def _found(dsn: str, tenant: str, seen: Seen, keys: int) -> dict[str, Any]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        logged = _one(conn, LOGGED, (tenant,))
        orphans = _one(conn, ORPHANS, {"t": tenant})
        unfinished = _one(conn, OPEN, (tenant,))
        ledger = conn.execute(LEDGER, (tenant,)).fetchone()
    assert ledger is not None
    decisions = {pair[0] for pairs in seen.taken.values() for pair in pairs}
    doubled = sum(len(pairs) > 1 for pairs in seen.taken.values()) + logged - len(decisions)
    return {
        "keys": keys, "decided": len(seen.taken), "moved": seen.moved, "refused": len(seen.refused - seen.taken.keys()),
        "other answers": len(seen.other), "doubled": doubled, "most of the limit": seen.most, "looks": seen.looks,
        "orphans": orphans, "unfinished": unfinished, "reserved": ledger[2], "held": ledger[3],
    }  # fmt: skip


def _one(conn: psycopg.Connection[Any], sql: str, params: Any) -> int:
    row = conn.execute(sql, params).fetchone()
    assert row is not None
    return int(row[0])


def dsn_of(site: Site) -> str:
    """Of the database that the site's processes share."""
    from cogo.core.embedded import running_dsn
    from cogo.core.settings import load

    return running_dsn(load(environ=site.env).settings)


# -- what both believe ----------------------------------------------------------------------------


class Alternating(serving.Cogo):
    """Decides at one process and tells the other, in turns."""

    def __init__(self, clients: list[httpx.Client], tenant: str, world: worlds.World) -> None:
        super().__init__(clients[0], tenant, world)
        self.clients = clients
        self.calls = itertools.count()

    def choose(self, task: worlds.Task) -> int:
        self.client = self.clients[next(self.calls) % 2]
        return super().choose(task)

    def learn(self, task: worlds.Task, index: int, outcome: worlds.Outcome, now_ms: int) -> None:
        self.client = self.clients[next(self.calls) // 2 % 2]
        super().learn(task, index, outcome, now_ms)


def beliefs(site: Site, tasks: int) -> tuple[int, float]:
    """How many arms both processes know of, and by how much they differ at the most in what they believe of one."""
    tenant, world = "both", worlds.Delayed(302, tasks=tasks)
    urls = [site.serve()[1], site.serve()[1]]
    with site.client(urls[0]) as one, site.client(urls[1]) as other:
        driving.drive(world, Alternating([one, other], tenant, world))
        found = [_arms(client, tenant) for client in (one, other)]
    if found[0].keys() != found[1].keys():
        return 0, float("inf")
    pairs = zip(found[0].values(), found[1].values(), strict=True)
    return len(found[0]), max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))


def _arms(client: httpx.Client, tenant: str) -> dict[str, list[float]]:
    answer = client.get(f"{API}/state", params={"tenant": tenant})
    answer.raise_for_status()
    return {
        arm["agent_id"]: [float(arm[name] or 0) for name in ("success", "reward", "n_eff")]
        for arm in answer.json()["arms"] if arm["lane"] is None
    }  # fmt: skip
