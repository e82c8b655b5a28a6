"""`cogo demo`: the main job on real input, start to end, through the doors that everybody uses."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from cogo.commands import work
from cogo.commands.base import command, duration, emit, note, say, tenant_option
from cogo.commands.knowledge import unnamed_places
from cogo.commands.local import Client, client_of
from cogo.commands.operate import loaded
from cogo.commands.progress import Update, progress
from cogo.core.model import TERMINAL

ROLES = (
    "orchestrator", "executor", "gateway", "rag-embed", "kg-builder", "rag-dispatcher", "reclaimer", "retention",
    "metrics", "ingress",
)  # fmt: skip
ANSWERABLE = 3
WAIT_MS = 20_000

EVENTS = "SELECT kind, count(*) AS n FROM public.bus_events WHERE trace_id = ANY (%s) GROUP BY 1 ORDER BY 1"


class Hop(msgspec.Struct, frozen=True):
    """One message on the way of a question. `elapsed_ms`: until the next hop, the last one's until its end."""

    lane: str
    id: int
    elapsed_ms: float


class Asked(msgspec.Struct, kw_only=True):
    """A question and what became of it."""

    question: str
    id: int
    status: str
    found: bool
    answer: str
    citations: list[dict[str, Any]]
    hops: list[str]
    elapsed_ms: float
    trace_id: str | None
    error: str | None = None
    hop_ms: list[float] = []
    mode: str | None = None


@command(example="cogo demo\ncogo demo ~/src/project --keep\ncogo demo --json | jq '.questions[].citations'")
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--keep", is_flag=True, help="Leave the server running that it started, to look at the dashboard."
)
@tenant_option
async def demo(path: Path, *, keep: bool, tenant: str, as_json: bool) -> int:
    """Run the main job on a repository, start to end.

    Starts what is missing, indexes PATH (default: the repository one stands in) through the bus, asks
    three questions taken from its own prose and one that has no answer, and prints the answers with
    file:line, the hops, and where the dashboard is.
    """
    import cogo
    from cogo.commands.started import serving

    settings = loaded().settings
    folder = work.repository_root(path) if str(path) == "." else path.resolve()
    async with (
        serving(settings, ROLES, route="ingress", keep=keep) as started,
        cogo.connect(settings=settings) as bus,
    ):
        client = client_of(settings, started.server, tenant)
        if not as_json and started.process is not None:
            note(f"started `cogo serve` (pid {started.process.pid}, log {started.log})")
        name = await work.repo_name(bus, folder, tenant)
        with progress(f"Indexing {name}", quiet=as_json) as update:
            indexed, traces = await work.index_folder(bus, folder, name, tenant=tenant, update=update)
        with progress("Asking", quiet=as_json) as update:
            questions = pick_questions(folder)
            asked = [each async for each in ask_all(client, questions, name, tenant, update)]
        traces += [each.trace_id for each in asked if each.trace_id]
        events = await work.patient(partial(bus.db.fetch, EVENTS, (traces,)))
        summary = (await work.patient(partial(client.get, "/api/metrics/summary"))).json()
        shown: dict[str, Any] = {
            "path": str(folder),
            "indexed": indexed,
            "questions": asked,
            "change": None,
            "bus": {"byStatus": summary["bus"]["byStatus"]},
            "events": {row["kind"]: row["n"] for row in events},
            "dashboard": f"{client.url}/dashboard/login?token={client.token}",
        }
        if as_json:
            emit(shown)
        else:
            show(shown)
            show_dashboard(shown["dashboard"], kept=keep or started.process is None)
    return 0 if all(each.status == "done" for each in asked) else 1


def pick_questions(folder: Path) -> list[str]:
    """Three questions that the folder's own prose answers, and one that nothing here answers."""
    from cogo.knowledge.questions import answerable, unanswerable

    return [*answerable(folder, ANSWERABLE), unanswerable(folder)]


async def ask_all(
    client: Client, questions: Sequence[str], repo: str, tenant: str, update: Update
) -> AsyncIterator[Asked]:
    """Ask one question after the other, so that each time is that of one question alone."""
    for number, question in enumerate(questions):
        update(number, len(questions), question)
        yield await ask(client, question, repo, tenant, update)
        update(number + 1, len(questions), "")


async def ask(client: Client, question: str, repo: str, tenant: str, update: Update) -> Asked:
    """POST a question to the ingress, follow its id to the end, and read the way that it took."""

    def waiting(text: str) -> None:
        update(0, 0, text)

    began = time.monotonic()
    body = {"tenant": tenant, "intent": "chat", "payload": {"question": question, "repo": repo}}
    post = partial(client.post_ingress, body, idempotency_key=f"demo-{secrets.token_hex(8)}")
    id = int((await work.patient(post, on_wait=waiting)).json()["id"])
    outcome: dict[str, Any] = {"status": "queued"}
    while outcome["status"] not in TERMINAL:
        follow = partial(
            client.get, f"/api/messages/{id}/result?wait_ms={WAIT_MS}", timeout_s=WAIT_MS / 1000 + 10
        )
        outcome = (await work.patient(follow, on_wait=waiting)).json()
    elapsed_ms = round((time.monotonic() - began) * 1000, 1)
    hops = await read_hops(client, id)
    value = await whole_result(client, outcome)
    return Asked(
        question=question,
        id=id,
        status=outcome["status"],
        found=bool(value.get("found")),
        answer=str(value.get("answer") or ""),
        citations=list(value.get("citations") or []),
        hops=[hop.lane for hop in hops],
        hop_ms=[hop.elapsed_ms for hop in hops],
        elapsed_ms=elapsed_ms,
        trace_id=outcome.get("trace_id"),
        error=outcome.get("error"),
        mode=value.get("mode"),
    )


async def whole_result(client: Client, outcome: dict[str, Any]) -> dict[str, Any]:
    """The result of a message; one that was too long for its row is fetched from where it lies."""
    value = outcome.get("result")
    if url := outcome.get("result_url"):
        value = (await work.patient(partial(client.get, url))).json()
    return value if isinstance(value, dict) else {}


async def read_hops(client: Client, id: int) -> list[Hop]:
    """The message and what it was delegated to, in order, with the time that each hop took."""
    found = (await work.patient(partial(client.get, f"/api/messages/{id}"))).json()
    rows = [found["message"], *found["children"]]
    times = [moment(row["created_at"]) for row in rows]
    times.append(moment(rows[-1]["done_at"]))
    return [
        Hop(f"{row['service']}/{row['role']}", row["id"], round(after - before, 1))
        for row, before, after in zip(rows, times, times[1:], strict=False)
    ]


def moment(text: str) -> float:
    """A time of the API in milliseconds."""
    return msgspec.convert(text, datetime).timestamp() * 1000


def show(shown: dict[str, Any]) -> None:
    """The demo as text."""
    indexed = shown["indexed"]
    say()
    say(f"Indexed {shown['path']}", bold=True)
    say(
        f"  {indexed.files} files, {indexed.chunks} spans, {indexed.nodes} nodes and {indexed.edges} edges"
        f" in {duration(indexed.elapsed_ms)}"
    )
    for number, asked in enumerate(shown["questions"], 1):
        show_asked(number, asked)
    say()
    counts = ", ".join(f"{status} {n}" for status, n in shown["bus"]["byStatus"].items())
    say(f"Messages on the bus: {counts}")
    say(f"Audit events: {', '.join(f'{kind} {n}' for kind, n in shown['events'].items())}")


def show_asked(number: int, asked: Asked) -> None:
    import textwrap

    say()
    say(f"{number}. {asked.question}", bold=True)
    if asked.status != "done":
        say(f"   {asked.status}: {asked.error}")
    elif not asked.found:
        say("   Not found: nothing in this repository answers that.")
    else:
        for paragraph in asked.answer.splitlines():
            say(textwrap.fill(paragraph, 100, initial_indent="   ", subsequent_indent="   "))
    for place in unnamed_places(asked.answer, asked.citations):
        say(f"     {place}")
    hops = " -> ".join(f"{lane} {duration(ms)}" for lane, ms in zip(asked.hops, asked.hop_ms, strict=True))
    say(f"   {hops}   (message {asked.id}, {duration(asked.elapsed_ms)} in all)", dim=True)


def show_dashboard(url: str, *, kept: bool) -> None:
    say()
    if kept:
        say(f"Dashboard: {url}")
    else:
        say("The server that was started for this has been stopped. To look at the dashboard:")
        say(f"  {own_name()} demo --keep     (or `{own_name()} serve`, then open the URL that it prints)")


def own_name() -> str:
    """How this command can be called again from here."""
    return "cogo" if shutil.which("cogo") else sys.argv[0]
