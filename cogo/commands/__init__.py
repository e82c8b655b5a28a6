"""The verbs of `cogo`, one file per family; `cogo.cli` imports a file when one of its verbs runs."""
