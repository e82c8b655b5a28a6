"""`python -m cogo` is `cogo`."""

from .cli import main

main()
