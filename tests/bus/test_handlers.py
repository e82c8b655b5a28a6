"""Proves what becomes of a message, however its handler ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hands import counts, insert, kinds, process, row
from helpers import eventually_async

import cogo
from cogo import errors
from cogo.core.bus import Bus
from cogo.core.context import SNIPPET_BYTES, SNIPPET_CUT

Handler = Callable[..., Awaitable[Any]]


class Part(msgspec.Struct):
    name: str
    pages: list[int]


class Order(msgspec.Struct):
    parts: list[Part]
    note: str = ""


async def ended(dsn: str, bus: Bus, handle: Any, payload: str = "{}", **options: Any) -> dict[str, Any]:
    """Run one message through a role with this handler; the row afterwards."""
    role = cogo.Role("t", "work", handle=handle, events="work", backoff_base_s=0.001, **options)
    async with process(dsn, [role]):
        id = await insert(bus, "t/work/0@acme", payload=payload)
        await bus.result(id, timeout_s=15)
        return await row(bus, id)


# -- tasks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ('{"parts": [{"name": "a", "pages": [1, "two"]}]}', "Expected `int`, got `str` - at `$.parts[0].pages[1]`"),
        ('{"note": "no parts"}', "Object missing required field `parts`"),
        ("[1]", "Expected `object`, got `array`"),
        ("null", "Expected `object`, got `null`"),
        ('{"parts": [], "__assignment": {"ttl_ms": "soon"}}', "Expected `int | null`, got `str` - at `$.__assignment.ttl_ms`"),
        ('{"parts": [], "__assignment": {"budget": {"maxDollars": 1}}}', "unknown field `maxDollars`"),
        ('{"parts": [], "__assignment": 7}', "Expected `object | null`, got `int`"),
    ],
)  # fmt: skip
async def test_a_task_that_does_not_fit_fails_at_once(dsn: str, bus: Bus, payload: str, says: str) -> None:
    async def never(task: Order, ctx: cogo.Context) -> None:
        raise AssertionError("the handler must not see it")

    found = await ended(dsn, bus, never, payload)
    assert (found["status"], found["attempts"]) == ("failed", 1)
    code = "assignment_invalid" if "__assignment" in payload else "task_invalid"
    assert found["error"].startswith(f"{code}: ")
    assert says in found["error"]
    assert await kinds(bus) == ["work_failed"]
    assert await counts(bus) == {"failed": 1}


@pytest.mark.parametrize(
    "value",
    ["9" * 5_000, "1.5e999", "-1e5000", "[" * 3_000 + "1" + "]" * 3_000],
    ids=["5,000 digits", "1.5e999", "-1e5000", "3,000 levels"],
)
async def test_json_that_jsonb_stores_and_python_does_not_read(dsn: str, bus: Bus, value: str) -> None:
    """Plain INSERTs can hold it; it must neither stop the consumer nor be tried again."""

    async def work(task: dict[str, Any], ctx: cogo.Context) -> str:
        return str(len(str(task["n"])))

    role = cogo.Role("t", "work", handle=work)
    async with process(dsn, [role]):
        id = await insert(bus, "t/work", payload=f'{{"n": {value}}}')
        after = await insert(bus, "t/work", payload='{"n": 1}')
        assert (await bus.result(after, timeout_s=10)).value == "1"
        result = await bus.result(id, timeout_s=10)
    if value == "1.5e999":  # comes out of jsonb as an integer of 1,000 digits, which Python does read
        assert result.value == "1000"
        return
    assert (result.status, result.attempts) == ("failed", 1)
    assert (result.error or "").startswith("task_invalid: ")


async def test_unknown_fields_and_the_assignment_ride_along(dsn: str, bus: Bus) -> None:
    async def work(task: Order, ctx: cogo.Context) -> Any:
        assert ctx.assignment is not None
        return [task.note, ctx.assignment.model, ctx.assignment.budget.maxTokens, str(ctx.key), ctx.attempt]

    payload = '{"parts": [], "note": "x", "extra": 1, "__assignment": {"model": "m", "budget": {"maxTokens": 5}, "new": 1}}'
    found = await ended(dsn, bus, work, payload)
    assert found["result_snippet"] == '["x","m",5,"t/work/0@acme",1]'


# -- exceptions --------------------------------------------------------------------------------


async def raises_retry(task: Any, ctx: cogo.Context) -> Any:
    if ctx.attempt < 3:
        raise cogo.Retry("not yet", after=0.001)
    return ctx.attempt


async def raises_error(task: Any, ctx: cogo.Context) -> Any:
    raise ValueError("broken")


async def raises_assertion(task: Any, ctx: cogo.Context) -> Any:
    raise AssertionError


async def raises_group(task: Any, ctx: cogo.Context) -> Any:
    async with anyio.create_task_group():
        raise cogo.Reject("from a task group", code="mine")


async def raises_exit(task: Any, ctx: cogo.Context) -> Any:
    raise SystemExit(3)


async def raises_cancelled(task: Any, ctx: cogo.Context) -> Any:
    """What a library does whose own background task was cancelled."""
    other = asyncio.ensure_future(anyio.sleep_forever())
    await anyio.lowlevel.checkpoint()
    other.cancel()
    await other


def raises_in_thread(task: Any, ctx: cogo.Context) -> Any:
    raise KeyError("x")


async def rejects_oddly(task: Any, ctx: cogo.Context) -> Any:
    raise cogo.Reject("nul \x00, surrogate \ud800, and long " + "x" * 100_000)


async def raises_oddly(task: Any, ctx: cogo.Context) -> Any:
    raise RuntimeError("nul \x00 surrogate \udfff")


def coded(error: type[errors.CogoError]) -> Handler:
    async def handle(task: Any, ctx: cogo.Context) -> Any:
        raise error("why")

    return handle


@pytest.mark.parametrize(
    ("handle", "status", "attempts", "error"),
    [
        (raises_retry, "done", 3, None),
        (raises_error, "failed", 2, "handler_error: ValueError: broken"),
        (raises_assertion, "failed", 2, "handler_error: AssertionError"),
        (raises_group, "failed", 1, "mine: from a task group"),
        (raises_exit, "failed", 2, "handler_error: SystemExit: 3"),
        (raises_cancelled, "failed", 2, "handler_error: the handler was cancelled by something that it awaited"),
        (raises_in_thread, "failed", 2, "handler_error: KeyError: 'x'"),
        (rejects_oddly, "failed", 1, "rejected: nul \\0, surrogate \\ud800, and long xxx"),
        (raises_oddly, "failed", 2, "handler_error: RuntimeError: nul \\0 surrogate \\udfff"),
        (coded(errors.BudgetExceeded), "failed", 1, "budget_exceeded: why"),
        (coded(errors.ModelDenied), "failed", 1, "model_denied: why"),
        (coded(errors.TtlExpired), "failed", 1, "ttl_expired: why"),
        (coded(errors.NoFeasibleArm), "failed", 2, "no_feasible_arm: why"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
async def test_how_a_handler_ends(
    dsn: str, bus: Bus, handle: Handler, status: str, attempts: int, error: str | None
) -> None:
    found = await ended(dsn, bus, handle, max_attempts=3 if handle is raises_retry else 2)
    assert (found["status"], found["attempts"]) == (status, attempts)
    if error is None:
        assert found["error"] is None
    else:
        assert found["error"].startswith(error)
        assert len(found["error"]) <= 2_000
    assert await kinds(bus) == ["work_retry"] * (attempts - 1) + [f"work_{status}"]
    assert await counts(bus) == {status: 1} | ({"retry": attempts - 1} if attempts > 1 else {})


@pytest.mark.parametrize("after", [float("inf"), float("nan"), -5.0, 1e300])
async def test_absurd_retry_times_do_no_harm(dsn: str, bus: Bus, after: float) -> None:
    async def work(task: Any, ctx: cogo.Context) -> int:
        if ctx.attempt == 1:
            raise cogo.Retry("x", after=after)
        return 2

    role = cogo.Role("t", "work", handle=work, backoff_base_s=0.001)
    async with process(dsn, [role]):
        id = await insert(bus, "t/work")
        if after < 0 or math.isnan(after):  # at once; the lane's backoff
            assert (await bus.result(id)).value == 2
        else:
            wait = "SELECT status = 'queued' AND retry_at BETWEEN now() + interval '300 days' AND now() + interval '400 days' FROM public.agent_messages"
            await eventually_async(lambda: bus.db.fetch_value(wait))


async def test_a_retry_that_is_nobodys_fault_is_not_counted(dsn: str, bus: Bus) -> None:
    """A server that says "later" more often than there are attempts."""
    tries: list[int] = []

    async def work(task: Any, ctx: cogo.Context) -> int:
        tries.append(ctx.attempt)
        if len(tries) < 4:
            raise cogo.Retry("the server is busy", after=0.01, counted=False)
        return len(tries)

    async with process(dsn, [cogo.Role("t", "work", handle=work, max_attempts=2)]):
        id = await insert(bus, "t/work")
        assert (await bus.result(id)).value == 4
    assert tries == [1, 1, 1, 1]


async def test_a_database_that_is_away_does_not_count_as_an_attempt(dsn: str, bus: Bus) -> None:
    """And the message comes back after a pause: a handler with a wrong DSN must not spin."""
    tries: list[int] = []

    async def work(task: Any, ctx: cogo.Context) -> int:
        tries.append(ctx.attempt)
        if len(tries) == 1:
            raise errors.BusUnavailable("the handler's own database")
        return len(tries)

    role = cogo.Role("t", "work", handle=work, max_attempts=1)
    async with process(dsn, [role]):
        id = await insert(bus, "t/work")
        late = "SELECT extract(epoch FROM retry_at - last_error_at)::float8 FROM public.agent_messages"
        assert await eventually_async(lambda: bus.db.fetch_value(late)) == pytest.approx(1.0)
        result = await bus.result(id, timeout_s=10)
    assert (result.status, result.value, tries) == ("done", 2, [1, 1])


async def test_an_error_after_the_message_has_ended_changes_nothing(
    dsn: str, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(task: Any, ctx: cogo.Context) -> None:
        async with ctx.transaction() as tx:
            tx.done("first")
        raise ValueError("too late")

    found = await ended(dsn, bus, work)
    assert (found["status"], found["result_snippet"]) == ("done", '"first"')
    await eventually_async(lambda: "handler.late_error" in caplog.text)


# -- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "snippet"),
    [(None, "null"), ({"a": [1, 2.5, "ü"]}, '{"a":[1,2.5,"ü"]}'), (Part("p", [1]), '{"name":"p","pages":[1]}'),
     (b"bytes", '"Ynl0ZXM="')],
)  # fmt: skip
async def test_results(dsn: str, bus: Bus, result: Any, snippet: str) -> None:
    async def work(task: Any, ctx: cogo.Context) -> Any:
        return result

    found = await ended(dsn, bus, work)
    assert (found["status"], found["result_snippet"], found["result_url"]) == ("done", snippet, None)


@pytest.mark.parametrize("result", ["nul \x00", ["\ud800"], {"\x00": 1}, object(), {1, object()}])
async def test_results_that_cannot_be_stored_fail_the_message(dsn: str, bus: Bus, result: Any) -> None:
    async def work(task: Any, ctx: cogo.Context) -> Any:
        return result

    found = await ended(dsn, bus, work)
    assert (found["status"], found["attempts"]) == ("failed", 1)
    assert found["error"].startswith("result_invalid: ")


@pytest.mark.parametrize(
    "text", ["x" * SNIPPET_BYTES, "ü" * (SNIPPET_BYTES // 2)], ids=["ascii", "two bytes each"]
)
@pytest.mark.parametrize("how", ["return", "transaction"])
async def test_a_long_result_becomes_an_artifact(dsn: str, bus: Bus, text: str, how: str) -> None:
    async def work(task: Any, ctx: cogo.Context) -> Any:
        if how == "return":
            return text
        async with ctx.transaction() as tx:
            tx.done(text)
        return None

    found = await ended(dsn, bus, work)
    (artifact,) = await bus.db.fetch("SELECT tenant, digest, body FROM cogo.artifacts")
    assert msgspec.json.decode(artifact["body"]) == text
    assert artifact["tenant"] == "acme"
    assert found["result_url"] == f"/api/artifacts/{artifact['digest']}"
    assert found["result_snippet"] == f'"{text}'[:SNIPPET_CUT]


async def test_a_result_at_the_limit_stays_in_the_row(dsn: str, bus: Bus) -> None:
    async def work(task: Any, ctx: cogo.Context) -> str:
        return "x" * (SNIPPET_BYTES - 2)

    found = await ended(dsn, bus, work)
    assert (len(found["result_snippet"]), found["result_url"]) == (SNIPPET_BYTES, None)


# -- the task type -----------------------------------------------------------------------------


class Callable1:
    """An object whose call is async."""

    async def __call__(self, task: Order, ctx: cogo.Context) -> int:
        return len(task.parts)


async def hinted_for_checkers(task: Order, ctx: NotImported) -> int:  # type: ignore[name-defined]  # noqa: F821
    return len(task.parts)


async def counted(more: int, task: Order, ctx: cogo.Context) -> int:
    return len(task.parts) + more


@functools.wraps(functools.partial(counted, 0))
async def around_a_partial(*args: Any) -> int:
    return await counted(0, *args)


@pytest.mark.parametrize(
    "handle", [Callable1(), hinted_for_checkers, functools.partial(counted, 0), around_a_partial]
)
async def test_handlers_of_other_shapes(dsn: str, bus: Bus, handle: Any) -> None:
    found = await ended(dsn, bus, handle, '{"parts": [{"name": "a", "pages": []}]}')
    assert (found["status"], found["result_snippet"]) == ("done", "1")


async def undecodable(task: NotImported, ctx: cogo.Context) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


async def set_of_two_structs(task: Part | Order, ctx: cogo.Context) -> None:
    pass


@pytest.mark.parametrize("handle", [undecodable, set_of_two_structs])
async def test_a_task_type_that_cannot_be_decoded_stops_the_start(dsn: str, handle: Any) -> None:
    with pytest.RaisesGroup(errors.PluginFailed, flatten_subgroups=True) as caught:
        async with process(dsn, [cogo.Role("t", "work", handle=handle)]):
            pass
    (error,) = caught.value.exceptions
    with contextlib.suppress(AttributeError):
        assert "t-work: the task type" in str(error.exceptions[0])  # type: ignore[attr-defined]
