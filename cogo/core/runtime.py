"""The life of a process: one task group, supervised roles, signals, drain. Knows no plugin by name.

settings -> plugins -> schema gate -> pool -> listener -> lease -> lifespans -> consumers, loops and
services -> stop: no more claims, finish within the grace while the lease is kept, give back the rest.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from .._version import __version__
from . import listener as listeners
from . import migrate, operate, telemetry, upkeep
from .bus import Bus
from .consumer import Consumer, Desk
from .db import Database, connect
from .embedded import own_or_share
from .errors import BusUnavailable, CogoError, RoleCrashed
from .finisher import Finisher
from .lease import Lease
from .listener import Listener
from .model import Lane, Role
from .registry import Plugin, Registry, lane_rows, lanes_of
from .settings import Settings, make_data_home
from .watchdog import Watchdog

HOT_CONNECTIONS = 3
LISTENING_S = 5.0
RESTARTS = 20
RESTART_WINDOW_S = 60.0
FORCED_END_S = 5.0

Service = Callable[["Runtime", TaskGroup], Awaitable[Mapping[str, Any]]]
"""Started after the lifespans in the runtime's task group; it ends by itself when `stop` is set.

What it returns (for HTTP: host, port) goes into servers/<pid>.json."""


class Health(msgspec.Struct, frozen=True):
    """What /readyz asks: `ready` is database and listener both fresh."""

    ready: bool
    database: bool
    listener: bool
    listener_mode: str
    loop_lag_ms: float


class Runtime:
    """One process. Made by `running`; plugins get it in cogo_lifespan and in loops."""

    def __init__(self, settings: Settings, registry: Registry, dsn: str) -> None:
        self.settings = settings
        self.registry = registry
        self.dsn = dsn
        self.roles: list[str] = list(registry.plugins)
        self.application = f"cogo:{','.join(self.roles)}@{settings.holder}"
        self.started_at = datetime.now(UTC)
        self.stop = anyio.Event()
        self.lanes: list[Lane] = []
        self.abandoned_threads = 0
        """After the drain: threads that would keep the interpreter from ending."""
        self.watchdog = _watchdog(registry.plugins.values())
        self.db = Database(dsn, application=self.application, pool_max=settings.pool_max)
        self.hot = Database(
            dsn, application=self.application, pool_min=HOT_CONNECTIONS, pool_max=HOT_CONNECTIONS
        )
        self.listener: Listener
        self.lease: Lease
        self.bus: Bus

    @property
    def holder(self) -> str:
        return self.settings.holder

    @property
    def epoch(self) -> int:
        """Issued by the database at the start of this process."""
        return self.lease.epoch

    def health(self) -> Health:
        """From memory, no query: the lease beats every 5 s, the listener tests itself every 10 s."""
        database = self.lease.stands
        live = self.listener.live
        return Health(
            ready=database and live, database=database, listener=live,
            listener_mode=self.listener.transport.name, loop_lag_ms=round(self.watchdog.lag_ms, 1),
        )  # fmt: skip


async def run(
    settings: Settings,
    *,
    inline: Sequence[Role] = (),
    upgrade: bool = False,
    services: Sequence[Service] = (),
    stop: anyio.Event | None = None,
    signals: bool = True,
    ready: Callable[[Runtime], None] = lambda _: None,
) -> None:
    """Run a process until `stop`, SIGTERM or SIGINT; returns when everything has drained.

    `upgrade` applies missing migrations first (the embedded database always does). Raises
    ConfigError and its kin before anything has started.
    """
    registry = Registry.load(settings, inline)
    with _bare_errors():
        await _run(settings, registry, upgrade, services, stop, signals, ready)
    telemetry.log.info(telemetry.line("process.stopped", holder=settings.holder))


@contextmanager
def _bare_errors() -> Iterator[None]:
    """Task groups wrap what ends them; a CogoError that stands alone in there is what the caller sees."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, CogoError):
            raise error from None
        raise


async def _run(
    settings: Settings, registry: Registry, upgrade: bool, services: Sequence[Service],
    stop: anyio.Event | None, signals: bool, ready: Callable[[Runtime], None],
) -> None:  # fmt: skip
    async with AsyncExitStack() as stack:
        dsn, watch = await _database(settings, stack)
        await _schema(dsn, registry, upgrade=upgrade or settings.embedded)
        runtime = Runtime(settings, registry, dsn)
        if stop is not None:
            runtime.stop = stop
        for database in (runtime.db, runtime.hot):
            stack.push_async_callback(database.close)
            await database.open()
        async with anyio.create_task_group() as infra:
            if watch is not None:
                infra.start_soon(watch)
            if signals:
                await infra.start(_stop_on_signals, runtime.stop)
                _spare_the_collector()
            await _connect(runtime, infra)
            try:
                await _work(runtime, services, ready)
            finally:  # after a crash too: others need not wait for the end of the lease
                await runtime.lease.leave()
            infra.cancel_scope.cancel()


async def _database(
    settings: Settings, stack: AsyncExitStack
) -> tuple[str, Callable[[], Coroutine[Any, Any, None]] | None]:
    if settings.database_url is not None:
        return settings.database_url.reveal(), None
    embedded = await stack.enter_async_context(own_or_share(settings))
    return embedded.dsn, embedded.watch


async def _schema(dsn: str, registry: Registry, *, upgrade: bool) -> None:
    """Behind: apply when asked, else SchemaBehind. Ahead: run, unless its min-code is above ours."""
    plugins = registry.migrations()
    if upgrade:
        for name in await migrate.apply(dsn, plugins):
            telemetry.log.info(telemetry.line("schema.applied", step=name))
    async with await connect(dsn, "cogo:migrate") as conn:
        await migrate.check(conn, plugins)


def _spare_the_collector() -> None:
    """The process is ours: what was made at boot stays, and messages make no cycles worth looking for.

    Saves about a twelfth of the client's time a message.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _stop_on_signals(stop: anyio.Event, *, task_status: Any) -> None:
    # The receiver stays open through the drain: without it a second SIGTERM would kill the process.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            telemetry.log.info(telemetry.line("process.stopping", signal=signal.Signals(number).name))
            stop.set()


async def _connect(runtime: Runtime, infra: TaskGroup) -> None:
    """Listener and lease: from here on the process is a holder."""
    settings, registry = runtime.settings, runtime.registry
    roles = [plugin.role for plugin in registry.plugins.values() if plugin.role is not None]
    runtime.lanes = sorted({lane for role in roles for lane in lanes_of(role, settings)})
    transport = await listeners.choose(settings.listener, runtime.dsn, runtime.application)
    runtime.listener = Listener(transport)
    runtime.bus = Bus(runtime.db, runtime.listener, hot=runtime.hot)
    runtime.lease = Lease(
        runtime.dsn, runtime.application, holder=settings.holder, roles=runtime.roles,
        lanes=[str(lane) for lane in runtime.lanes], beat_ms=settings.beat_ms, lease_ms=settings.lease_ms,
        detail={"pid": os.getpid(), "host": platform.node(), "version": __version__},
    )  # fmt: skip
    await _publish_lanes(runtime.db, roles, infra)
    await runtime.lease.register()
    if runtime.lanes:
        await runtime.bus.warm_up(HOT_CONNECTIONS)
    listening = anyio.Event()
    runtime.listener.on_connect(listening.set)
    infra.start_soon(runtime.listener.run)
    infra.start_soon(runtime.lease.run)
    infra.start_soon(runtime.watchdog.beat)
    with anyio.move_on_after(LISTENING_S):  # who reads servers/<pid>.json may ask /readyz at once
        await listening.wait()


async def _publish_lanes(db: Database, roles: Sequence[Role], infra: TaskGroup) -> None:
    sql = """
    INSERT INTO cogo.bus_lanes
      (service, role, max_attempts, backoff_base_ms, backoff_cap_ms, timeout_ms, events, intents, fair, limits)
    VALUES (%(service)s, %(role)s, %(max_attempts)s, %(backoff_base_ms)s, %(backoff_cap_ms)s, %(timeout_ms)s,
            %(events)s, %(intents)s::text[], %(fair)s, %(limits)s::jsonb)
    ON CONFLICT (service, role) DO UPDATE SET
      max_attempts = excluded.max_attempts, backoff_base_ms = excluded.backoff_base_ms,
      backoff_cap_ms = excluded.backoff_cap_ms, timeout_ms = excluded.timeout_ms,
      events = excluded.events, intents = excluded.intents, fair = excluded.fair, limits = excluded.limits,
      updated_at = now()
    """  # paused_at and paused_tenants stay: a restart doesn't resume what an operator has paused
    rows = sorted(lane_rows(roles), key=lambda row: (row["service"], row["role"]))
    for row in rows:
        await db.execute(sql, row)
    # In the background: on a large table it takes a while, and it may have to wait for old transactions.
    infra.start_soon(operate.keep_lane_indexes, db, [(row["service"], row["role"]) for row in rows])


def _watchdog(plugins: Iterable[Plugin]) -> Watchdog:
    handlers = {plugin.name: plugin.role.handle for plugin in plugins if plugin.role and plugin.role.handle}
    return Watchdog({getattr(handle, "__module__", ""): name for name, handle in handlers.items()})


async def _work(runtime: Runtime, services: Sequence[Service], ready: Callable[[Runtime], None]) -> None:
    """Lifespans, consumers, loops and services, until stop; then the drain."""
    settings = runtime.settings
    finisher = Finisher(runtime.bus)
    desk = Desk(
        runtime.bus, runtime.listener, runtime.lease, finisher,
        poll_s=settings.poll_ms / 1000, timeout_ms=settings.reclaim_after_ms,
    )  # fmt: skip
    consumers = [
        _consumer(plugin, desk, settings) for plugin in runtime.registry.plugins.values() if _consumes(plugin)
    ]
    async with AsyncExitStack() as stack:
        for plugin in runtime.registry.plugins.values():
            if lifespan := runtime.registry.call(
                "cogo_lifespan", plugin, runtime=runtime, settings=plugin.settings
            ):
                await stack.enter_async_context(lifespan)
        async with anyio.create_task_group() as work, anyio.create_task_group() as loops:
            work.start_soon(finisher.run)
            loops.start_soon(desk.watch_transactions)
            for name, loop in _loops(runtime, bool(consumers)).items():
                loops.start_soon(supervise, name, loop, runtime)
            async with anyio.create_task_group() as busy:
                about = {k: v for service in services for k, v in (await service(runtime, work)).items()}
                for consumer in consumers:
                    busy.start_soon(supervise, consumer.name, consumer.run)
                async with _announced(runtime, about):
                    with runtime.watchdog.watching():  # not earlier: imports at boot block nobody's handler
                        ready(runtime)
                        await runtime.stop.wait()
                for consumer in consumers:
                    consumer.stop_claiming()  # each ends when its handlers have
                loops.start_soon(_end_grace, desk, busy, settings.grace_s)
            runtime.abandoned_threads = sum(consumer.abandoned for consumer in consumers)
            loops.cancel_scope.cancel()
            finisher.close(within_s=FORCED_END_S)


async def _end_grace(desk: Desk, busy: TaskGroup, grace_s: float) -> None:
    """The drain's clock: after the grace handlers are stopped and their messages given back."""
    await anyio.sleep(grace_s)
    desk.stop_all("drain")
    await anyio.sleep(FORCED_END_S)
    busy.cancel_scope.cancel()  # what still runs now ignores cancellation: the end of the lease frees it


def _consumes(plugin: Plugin) -> bool:
    return plugin.role is not None and plugin.role.handle is not None


def _consumer(plugin: Plugin, desk: Desk, settings: Settings) -> Consumer:
    if plugin.role is None:
        raise AssertionError(plugin.name)
    return Consumer(plugin.name, plugin.role, lanes_of(plugin.role, settings), desk, plugin.settings)


def _loops(runtime: Runtime, consumes: bool) -> dict[str, Callable[[Runtime], Awaitable[None]]]:
    """The loops of enabled roles, and upkeep wherever messages are consumed."""
    loops: dict[str, Callable[[Runtime], Awaitable[None]]] = {
        name: plugin.role.loop
        for name, plugin in runtime.registry.plugins.items()
        if plugin.role is not None and plugin.role.loop is not None
    }
    if consumes:
        for name, loop in (("reclaimer", upkeep.reclaim), ("retention", upkeep.retain)):
            if loop not in loops.values():
                loops[name] = loop
    return loops


async def supervise(name: str, run: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Start a role again when it crashes, RESTARTS times in RESTART_WINDOW_S; then RoleCrashed.

    So one role's crash does not cancel its siblings.
    """
    crashes: list[float] = []
    while True:
        try:
            await run(*args)
            return
        except Exception as error:
            if isinstance(error, BusUnavailable):
                telemetry.log.warning(telemetry.line("role.waits", role=name, why=error))
            else:
                telemetry.log.exception(telemetry.line("role.crashed", role=name, error=type(error).__name__))
            now = time.monotonic()
            crashes = [at for at in crashes if now - at < RESTART_WINDOW_S] + [now]
            if len(crashes) > RESTARTS:
                raise RoleCrashed(
                    f"role {name} crashed {len(crashes)} times in {RESTART_WINDOW_S:g} s"
                ) from error
            await anyio.sleep(min(5.0, 0.1 * 2 ** len(crashes)))


@asynccontextmanager
async def _announced(runtime: Runtime, about: Mapping[str, Any]) -> AsyncIterator[None]:
    """servers/<pid>.json in the data home, by which commands find this process."""
    file: Path | None = None
    try:
        folder = make_data_home(runtime.settings) / "servers"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{os.getpid()}.json"
        text = {
            "pid": os.getpid(), "roles": runtime.roles, "holder": runtime.holder,
            "started_at": runtime.started_at, **about,
        }  # fmt: skip
        draft = file.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode(text))
        draft.replace(file)
    except (OSError, CogoError) as error:  # a read-only home: only discovery on this machine is lost
        telemetry.log.warning(telemetry.line("process.unannounced", why=error))
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)
