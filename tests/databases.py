"""Databases for tests, made ahead of them: a copy of the template takes longer than most tests."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import make_conninfo

AHEAD = 2
_numbers = itertools.count(1)


def create(conn: psycopg.Connection, template: str) -> str:
    """A copy of the template; its name."""
    name = f"cogo_test_{os.getpid()}_{next(_numbers)}"
    conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY WAL_LOG".encode())
    # The embedded superuser is called like our schema, so that "$user" would find what some SQL
    # forgot to qualify; on Supabase it would not.
    conn.execute(f"ALTER DATABASE {name} SET search_path = public".encode())
    return name


def drop(conn: psycopg.Connection, name: str) -> None:
    conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


class Databases:
    """Copies of one template: `take` one, give it back to be dropped. A thread keeps AHEAD of the tests."""

    def __init__(self, server_dsn: str, template: str) -> None:
        self._server_dsn = server_dsn
        self._template = template
        self._ready: queue.Queue[str | BaseException] = queue.Queue()
        self._wanted: queue.Queue[str | None] = queue.Queue()
        """A name to drop; "" to make one; None to stop."""
        self._thread = threading.Thread(target=self._work, name="databases", daemon=True)

    def _work(self) -> None:
        with psycopg.connect(self._server_dsn, autocommit=True) as conn:
            while (name := self._wanted.get()) is not None:
                try:
                    if name:
                        drop(conn, name)
                    else:
                        self._ready.put(create(conn, self._template))
                except psycopg.Error as error:
                    self._ready.put(error)

    @contextmanager
    def open(self) -> Iterator[Databases]:
        """Run the thread; at the end every database is gone."""
        self._thread.start()
        for _ in range(AHEAD):
            self._wanted.put("")
        try:
            yield self
        finally:
            while not self._ready.empty():
                self.give_back(str(self._ready.get()))
            self._wanted.put(None)
            self._thread.join()

    def take(self) -> tuple[str, str]:
        """Name and DSN of a fresh database."""
        self._wanted.put("")
        found = self._ready.get(timeout=60)
        if isinstance(found, BaseException):
            raise found
        return found, make_conninfo(self._server_dsn, dbname=found)

    def give_back(self, name: str) -> None:
        self._wanted.put(name)
