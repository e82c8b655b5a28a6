"""Proves that ten questions about Django's own source are answered from the right places, each quote where it is cited."""

from __future__ import annotations

from pathlib import Path

import django
import pytest
from knowledge_hands import build_graph, index_all

from cogo import Database
from cogo.knowledge import answers
from cogo.plugins import gateway
from cogo.testing import run_role

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
ROOT = Path(django.__path__[0])

# The question, and what must be among the things that its answer cites.
GOLDEN = [
    ("Where is a CSRF token compared with the one in the cookie?", "middleware/csrf.py", "CsrfViewMiddleware._get_secret"),
    ("How does the template engine escape HTML?", "template/defaultfilters.py", "force_escape"),
    ("How is an SQL query compiled from a queryset?", "db/models/sql/compiler.py", "SQLCompiler.get_combinator_sql"),
    ("What happens when a transaction is rolled back to a savepoint?", "db/transaction.py", "savepoint_rollback"),
    ("How is an email address validated?", "core/validators.py", "EmailValidator.validate_domain_part"),
    ("How are signals sent to receivers?", "dispatch/dispatcher.py", "Signal"),
    ("Who calls get_random_secret_key?", "core/management/commands/startproject.py",
     "django.core.management.commands.startproject.Command.handle"),
    ("What imports django.utils.crypto?", "contrib/auth/tokens.py", "django.contrib.auth.tokens"),
    ("Which classes inherit from HttpResponseRedirectBase?", "http/response.py",
     "django.http.response.HttpResponsePermanentRedirect"),
    ("What breaks if salted_hmac changes?", "core/signing.py", "django.core.signing.base64_hmac"),
]  # fmt: skip


async def test_ten_questions_about_django(database: Database) -> None:
    await index_all(database, ROOT)
    await build_graph(database, ROOT)
    await database.execute("ANALYZE")
    wrong = []
    for question, path, qualname in GOLDEN:
        found = await run_role(gateway.cogo_role(), {"question": question}, tenant="acme", db=database)
        assert isinstance(found, answers.Answer)
        if not any((each.path, each.qualname) == (path, qualname) for each in found.citations):
            wrong.append(f"{question} -> {[each.place for each in found.citations]}")
        for citation in found.citations:
            lines = (ROOT / citation.path).read_text(encoding="utf-8").split("\n")
            assert citation.quote
            assert citation.quote in "\n".join(lines[citation.line - 1 : citation.end])
            assert citation.place in found.answer
    assert not wrong, "\n".join(wrong)
    nothing = await run_role(
        gateway.cogo_role(),
        {"question": "How long does sourdough rise in winter?"},
        tenant="acme",
        db=database,
    )
    assert not nothing.found
