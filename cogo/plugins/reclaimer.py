"""Role reclaimer: puts back what dead holders hold, ends what outlived its ttl."""

from cogo import Role, hookimpl, upkeep


@hookimpl
def cogo_role() -> Role:
    """A loop; every process that consumes runs the same one, this role alone needs no lane."""
    return Role(loop=upkeep.reclaim)
