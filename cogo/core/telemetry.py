"""One log line per outcome, and W3C trace context through every message.

Lines are `event key=value …` on stderr, one per ended attempt, none per poll. Spans go through the
OpenTelemetry API: without an SDK that somebody configured they cost nothing worth naming.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

if TYPE_CHECKING:
    from .model import Message

log = logging.getLogger("cogo")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PLAIN = re.compile(r"[\w./@:+-]+")


def line(event: str, /, **fields: Any) -> str:
    """`event key=value …`; values with spaces are quoted, None is left out."""
    parts = [event]
    for name, value in fields.items():
        if value is not None:
            text = f"{value:.1f}" if isinstance(value, float) else str(value)
            parts.append(f"{name}={text}" if _PLAIN.fullmatch(text) else f"{name}={text!r}")
    return " ".join(parts)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, message."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return msgspec.json.encode({"time": at, "level": record.levelname.lower(), "message": text}).decode()


def configure(level: str, *, as_json: bool = False) -> None:
    """Send the log of this process to stderr. Only `serve` calls it: a library leaves logging alone."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False
    # The driver warns of each connection that a cancelled task leaves behind and of every attempt to
    # connect during an outage; both are ours to report, in one line.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def new_traceparent(parent: str | None = None) -> str:
    """A W3C traceparent: a new span of the parent's trace, or of a new trace.

    Source: W3C Trace Context, level 1.
    """
    found = _TRACEPARENT.fullmatch(parent or "")
    trace_id = found[1] if found else secrets.token_hex(16)
    return f"00-{trace_id}-{secrets.token_hex(8)}-{found[3] if found else '01'}"


def valid_traceparent(text: str | None) -> bool:
    """True for a well-formed traceparent whose ids are not all zero."""
    found = _TRACEPARENT.fullmatch(text or "")
    return bool(found and found[1].strip("0") and found[2].strip("0"))


def trace_id(traceparent: str | None) -> str | None:
    found = _TRACEPARENT.fullmatch(traceparent or "")
    return found[1] if found else None


def _creation_link(traceparent: str | None) -> list[Link]:
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if not found:
        return []
    context = SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(int(found[3], 16)))
    return [Link(context)]


_tracer = trace.get_tracer("cogo")


def traced() -> bool:
    """False while nobody has configured an SDK: then spans are not even made."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def process_span(message: Message) -> Iterator[None]:
    """The span of one handled message, linked to the span that enqueued it.

    Names follow OpenTelemetry's messaging conventions.
    """
    destination = f"{message.key.service}/{message.key.role}"
    with _tracer.start_as_current_span(
        f"process {destination}",
        kind=SpanKind.CONSUMER,
        links=_creation_link(message.traceparent),
        attributes={
            "messaging.system": "cogo",
            "messaging.operation.name": "process",
            "messaging.destination.name": destination,
            "messaging.message.id": str(message.id),
        },
    ):
        yield


class Outage:
    """Two lines for an outage: one at its onset, one at its end."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.on = False

    def begin(self, why: object) -> None:
        if not self.on:
            self.on = True
            log.warning(line(f"{self.what}.unavailable", why=why))

    def end(self) -> None:
        if self.on:
            self.on = False
            log.warning(line(f"{self.what}.back"))
