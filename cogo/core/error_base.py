"""What every error of COGO has: a stable code, a sentence, what to do next, and what becomes of the message.

The errors themselves are in errors.py, the one table, which also offers these names.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, ClassVar, Literal

Fate = Literal["failed", "retry", "none"]
"""What an error raised by a handler does to its message: ended, tried again, or left alone."""

CODES: dict[str, type[CogoError]] = {}
"""Every error class by its code; filled as classes are defined."""


class CogoError(Exception):
    """Something went wrong that COGO has no better name for."""

    code: ClassVar[str] = "cogo_error"
    hint: ClassVar[str] = "Run `cogo doctor`, then look at the log line with this code."
    fate: ClassVar[Fate] = "retry"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    level: ClassVar[int] = logging.ERROR

    def __init__(self, detail: str | None = None, *, hint: str | None = None, **extra: Any) -> None:
        self.detail = detail or self.summary()
        self.next_step = hint or self.hint
        self.extra = extra
        super().__init__(self.detail)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = CODES.setdefault(cls.code, cls)
        if known is not cls and "code" in cls.__dict__:
            raise TypeError(f"{cls.__name__} takes the code {cls.code!r} of {known.__name__}")

    @classmethod
    def summary(cls) -> str:
        """The first paragraph of the docstring: the default message."""
        return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")

    def __str__(self) -> str:
        return self.detail

    def line(self) -> str:
        """`code: detail`, as it is written to `agent_messages.error` and to the log."""
        return f"{self.code}: {self.detail}"


CODES[CogoError.code] = CogoError
