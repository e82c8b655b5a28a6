"""Which policy decides, and which one only looks on. Read with whatever else is new, so it holds for the next decision."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Literal

import msgspec

Explore = Literal["thompson", "inverse-gap", "epsilon-greedy"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Policy(msgspec.Struct, frozen=True):
    """How scores become probabilities."""

    explore: Explore
    exploration: Share

    @property
    def version(self) -> str:
        """What decided, and with which parameters; the number counts changes of the method itself."""
        return f"{self.explore}-1:{self.exploration:g}"


def named(version: str) -> Policy | None:
    """The policy that has this version; None: it is none of this code's."""
    explore, _, exploration = version.partition("-1:")
    try:
        found = msgspec.convert({"explore": explore, "exploration": float(exploration)}, Policy)
    except (ValueError, msgspec.ValidationError):
        return None
    return found if found.version == version else None


def held_back(policy: Policy, exploration: float) -> float:
    """The share of a policy's exploration that it was left with, while something burned."""
    return exploration / policy.exploration if policy.exploration else 1.0


class InForce(msgspec.Struct, frozen=True):
    """Of the whole deployment. Without an active one the process's settings decide."""

    active: Policy | None = None
    shadow: Policy | None = None


def in_force(text: str | None) -> InForce:
    """Of the table's JSON. A policy that only a newer COGO knows can't be obeyed: the settings decide then."""
    found: dict[str, Policy] = {}
    for status, params in msgspec.json.decode(text or "{}", type=dict[str, msgspec.Raw]).items():
        with suppress(msgspec.ValidationError):
            found[status] = msgspec.json.decode(params, type=Policy)
    return InForce(found.get("active"), found.get("shadow"))


class Shadowed(msgspec.Struct, frozen=True):
    """What the shadow would have done: the probability of each candidate, and the place of the one that it draws."""

    version: str
    p: list[float]
    chosen: int
