"""Decisions looked at afterwards. It reads the database directly; no role has to run."""

from __future__ import annotations

import click
import msgspec

from cogo.commands.base import command, emit, note, say, tenant_option

SHOWN = 10


@click.group(name="eval")
def evals() -> None:
    """Look at decisions afterwards: make them again and compare."""


@command("replay", group=evals, example="cogo eval replay --tenant acme\ncogo eval replay --limit 100 --json")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=1_000,
    show_default=True,
    help="The last so many decisions.",
)
@tenant_option
async def replay(*, limit: int, tenant: str, as_json: bool) -> int:
    """Make logged decisions again out of what each knew; exit code 1 when one differs.

    A decision keeps its inputs, its seed and which outcomes it had seen; the same code comes to the same choice.
    """
    import cogo
    from cogo.plugins.orchestrator import replay as again

    async with cogo.connect() as bus:
        found = await again.replay(bus.db, tenant, limit)
    if as_json:
        emit(msgspec.to_builtins(found))
    else:
        say(f"{found.equal} of {found.decisions} decisions of {tenant} came out as they were logged")
        for row in found.different[:SHOWN]:
            note(f"{row['decision_id']}: {row['why']}")
    return 1 if found.different else 0
