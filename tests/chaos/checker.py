"""Judges a recorded history: each rule looks at all of it and reports what broke it, with the lines that show it.

Pure Python over two files of JSON lines (history.py); it knows no database and nothing of COGO's code, so that
the judge does not share the mistakes of the judged. `python tests/chaos/checker.py FOLDER` judges a kept run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import rules_claims as claims
from chaos import rules_kinship as kinship
from chaos import rules_limits as limits
from chaos.history import History
from chaos.verdict import Found, Violation

ALL: tuple[Callable[[History], Found], ...] = (
    claims.record_is_whole, claims.nothing_is_lost, claims.ends_are_final, claims.fences_guard,
    claims.claims_do_not_overlap, limits.effects_happen_once, limits.attempts_are_limited, limits.tenants_are_apart,
    limits.budgets_hold, limits.work_goes_on, limits.memory_is_bounded, limits.processes_stay_up,
    limits.limits_hold, limits.pauses_hold,
    kinship.enqueued_as_asked, kinship.follow_ups_exist_once, kinship.ends_are_told,
    kinship.waiting_ends_with_its_child, kinship.keys_are_in_order,
)  # fmt: skip


def check(history: History) -> list[Violation]:
    """Every breach of every rule; empty when the run was right."""
    found = [violation for rule in ALL for violation in rule(history)]
    for violation in found:
        violation.history = violation.history or history.slice(violation.id)
    return found


def main(folder: str) -> int:
    found = check(History.read(Path(folder)))
    for violation in found:
        print(violation.report())
    print(f"{len(found)} violations" if found else "no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
