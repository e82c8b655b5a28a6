"""Role retention: removes ended messages older than RETENTION_DAYS."""

from cogo import Role, hookimpl, upkeep


@hookimpl
def cogo_role() -> Role:
    """A loop; every process that consumes runs the same one, this role alone needs no lane."""
    return Role(loop=upkeep.retain)
