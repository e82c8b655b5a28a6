"""Knowledge in, answers out, through the bus: index, ask, search."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogo.commands import work
from cogo.commands.base import command, duration, emit, note, say, tenant_option
from cogo.commands.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cogo.core.bus import Bus
    from cogo.knowledge.search import Hit

BATCH = 500
ASK_LANES = ("orchestrator/decide", "orchestrator/execute", "gateway/chat")


@command(example="cogo index .\ncogo index ~/src/project --json")
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call it (the folder's name).")
@tenant_option
async def index(path: Path, *, name: str | None, tenant: str, as_json: bool) -> None:
    """Index a repository through the bus.

    Its documents and code go to rag/embed, its import graph to kg/build; indexing it again only looks at
    what has changed. A process that serves those roles must run.
    It ends when all can be found by its words; where a model is installed, vectors follow behind.
    """
    import cogo

    folder = path.resolve()
    async with cogo.connect() as bus:
        await work.need_lanes(bus, tuple(work.LANES.values()))
        repo = name or await work.repo_name(bus, folder, tenant)
        with progress(f"Indexing {repo}", quiet=as_json) as update:
            indexed, _ = await work.index_folder(bus, folder, repo, tenant=tenant, update=update)
    if as_json:
        emit({"repo": repo, "path": str(folder), **work.as_dict(indexed)})
    else:
        say(
            f"{indexed.files} files, {indexed.chunks} spans, {indexed.nodes} nodes, {indexed.edges} edges "
            f"in {duration(indexed.elapsed_ms)}"
        )
        if indexed.unparsed:
            say(f"{sum(indexed.unparsed.values())} files cut into lines: {', '.join(indexed.unparsed)}")


@command(
    example='cogo ask "how is a lost claim noticed?"\ncogo ask "who pays late?" --path ~/src/harbour --stream'
)
@click.argument("question")
@click.option(
    "--path", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Only this folder."
)
@click.option("--repo", help="Only the repository of this name, as `cogo index` named it.")
@click.option("-k", "k", type=click.IntRange(1, 50), default=6, show_default=True, help="Spans to read.")
@click.option("--conversation", help="Follow the earlier questions of this name (any of your choice).")
@click.option("--stream", is_flag=True, help="Print the answer as it is written.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds."
)
@tenant_option
async def ask(
    question: str,
    *,
    path: Path | None,
    repo: str | None,
    k: int,
    conversation: str | None,
    stream: bool,
    wait_s: float,
    tenant: str,
    as_json: bool,
) -> int:
    """Ask a question; the answer cites file:line.

    Goes the whole way: orchestrator/decide, orchestrator/execute, gateway/chat. Without a language
    model the answer is extractive and says so. With --conversation "and who calls it?" is understood from
    the question before. Exit code 1 when nothing was found or the work failed.
    """
    import cogo

    async with cogo.connect() as bus:
        await work.need_lanes(bus, ASK_LANES)
        name = repo or (await work.repo_name(bus, path.resolve(), tenant) if path else None)
        payload = {"question": question, "repo": name, "k": k}
        if conversation is not None:
            payload["conversation_id"] = conversation
        task = {"intent": "chat", "payload": payload}
        sent = await bus.enqueue(f"orchestrator/decide/0@{tenant}", task)
        if stream and not as_json:
            await print_stream(bus, sent, wait_s)
        result = await bus.result(sent, timeout_s=wait_s)
        value = await work.whole_value(bus, result)
    if result.status != "done":
        from cogo.core.errors import WorkFailed

        raise WorkFailed(f"message {sent} is {result.status}: {result.error}")
    if as_json:
        emit({"id": sent, "trace_id": result.trace_id, **value})
    else:
        show_answer(value, already=stream)
    return 0 if value.get("found") else 1


async def print_stream(bus: Bus, message_id: int, wait_s: float) -> None:
    """Print the pieces of the answer as the last hop writes them; one that replaces them on a line of its own."""
    with_text = ("token", "text", "answer")
    began = False
    target = await work.last_hop(bus, message_id, ASK_LANES[-1], wait_s)
    async for chunk in bus.chunks(target, timeout_s=wait_s):
        text = chunk.data.get("text") if isinstance(chunk.data, dict) else chunk.data
        if chunk.kind in with_text and isinstance(text, str):
            if began and isinstance(chunk.data, dict) and chunk.data.get("replace"):
                click.echo()
                note("  (instead, after a look at its citations:)")
            click.echo(text, nl=False)
            began = True
    click.echo()


def show_answer(value: dict[str, Any], *, already: bool) -> None:
    if not value.get("found"):
        say("Not found: nothing that is indexed answers that.")
        return
    answer, citations = str(value.get("answer") or ""), value.get("citations") or []
    if not already:
        for paragraph in answer.splitlines():
            say(textwrap.fill(paragraph, 100))
    for place in unnamed_places(answer, citations):
        say(f"  {place}")
    if value.get("mode"):
        note(f"  ({how_answered(value)})")


def how_answered(value: dict[str, Any]) -> str:
    """`extractive`, or the model with its tokens and what they cost, and why there is no better answer."""
    parts = [str(value["model"] if value["mode"] == "model" else value["mode"])]
    if value.get("degraded"):
        parts.append(f"{value.get('model')}: {value['degraded']}")
    if usage := value.get("usage"):
        parts.append(f"{usage['input_tokens']:,} + {usage['output_tokens']:,} tokens")
        parts.append(f"{value.get('cost_usd', 0):.6f} USD")
    return ", ".join(parts)


def unnamed_places(answer: str, citations: Iterable[dict[str, Any]]) -> list[str]:
    """`path:line-end` of the citations that the text of the answer does not name itself, each once.

    Where the text names them by number, the number comes first.
    """
    places = {
        f"{each['path']}:{each['line']}-{each['end']}": f"[{each['number']}] " if each.get("number") else ""
        for each in citations
    }
    return [number + place for place, number in places.items() if place not in answer]


@command(example='cogo search "retry backoff" -k 5\ncogo search --batch queries.jsonl > hits.jsonl')
@click.argument("query", required=False)
@click.option(
    "-k", "k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Spans for each query."
)
@click.option("--repo", help="Only the repository of this name.")
@click.option(
    "--batch", type=click.File("r", encoding="utf-8"), help='JSON lines {"q": id, "text": query}; - is stdin.'
)
@tenant_option
async def search(
    query: str | None, *, k: int, repo: str | None, batch: Any, tenant: str, as_json: bool
) -> int:
    """Search the index for ranked spans.

    With --batch, one JSON line {"q", "hits": [{"path", "start", "end", "score"}]} for each line read.
    Lines are counted from 1 and inclusive. It reads the database directly; no role has to run.
    """
    import cogo
    from cogo.commands.operate import loaded
    from cogo.knowledge import vectors

    if (query is None) == (batch is None):
        raise click.UsageError("Give either a QUERY or --batch FILE.")
    async with cogo.connect() as bus, vectors.attached(bus.db, loaded().settings):
        if query is None:
            await search_batch(bus, batch, k, repo, tenant)
        else:
            hits = (await spans(bus, [query], k, repo, tenant))[0]
        if (known := vectors.of(bus.db)) and known.unavailable:
            note(f"words alone decided: {known.unavailable}")
    if query is None:
        return 0
    if as_json:
        emit({"query": query, "hits": hits})
    for hit in () if as_json else hits:
        say(f"{hit.path}:{hit.start}-{hit.end}  {hit.score:.2f}  {hit.qualname}".rstrip(), bold=True)
        say(textwrap.indent(textwrap.shorten(" ".join(hit.text.split()), 160), "    "))
    if not hits:
        note("nothing found")
    return 0 if hits else 1


async def spans(bus: Bus, texts: list[str], k: int, repo: str | None, tenant: str) -> list[list[Hit]]:
    """The best spans for each text."""
    from cogo.knowledge.search import Scope
    from cogo.knowledge.search import search as find

    return await find(bus.db, tenant, texts, k, Scope(repo=repo))


async def search_batch(bus: Bus, batch: Any, k: int, repo: str | None, tenant: str) -> None:
    """Answer the lines of a file in order, in pieces of as many queries as one search takes."""
    rows = list(read_batch(batch))
    for start in range(0, len(rows), BATCH):
        piece = rows[start : start + BATCH]
        found = await spans(bus, [row["text"] for row in piece], k, repo, tenant)
        for row, hits in zip(piece, found, strict=True):
            shown = [{"path": h.path, "start": h.start, "end": h.end, "score": h.score} for h in hits]
            emit({"q": row["q"], "hits": shown})


def read_batch(file: Any) -> Iterator[dict[str, Any]]:
    """The queries of a JSON lines file. Raises UsageError with the number of the line."""
    import msgspec

    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as exc:
            raise click.UsageError(f"line {number} is not JSON: {exc}") from None
        if not isinstance(row, dict) or "q" not in row or not isinstance(row.get("text"), str):
            raise click.UsageError(f'line {number} is not {{"q": …, "text": "…"}}')
        yield row
