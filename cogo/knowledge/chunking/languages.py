"""Which language a file is in, by its name's ending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from .. import syntax

# Programming languages by their files' endings, those with a grammar first; then prose and data.
_CODE = {
    "python": "py pyi", "javascript": "js mjs cjs jsx", "typescript": "ts mts cts", "tsx": "tsx", "go": "go",
    "rust": "rs", "java": "java", "sql": "sql",
    "c": "c h", "c++": "cc cpp cxx hh hpp hxx ipp", "c#": "cs", "objective-c": "m mm", "swift": "swift",
    "kotlin": "kt kts", "scala": "scala sc", "groovy": "groovy gradle", "clojure": "clj cljs cljc",
    "ruby": "rb rake gemspec", "php": "php", "perl": "pl pm", "lua": "lua", "r": "r", "julia": "jl",
    "dart": "dart", "elixir": "ex exs", "erlang": "erl hrl", "haskell": "hs", "ocaml": "ml mli", "f#": "fs fsx",
    "elm": "elm", "nim": "nim", "zig": "zig", "solidity": "sol", "vue": "vue", "svelte": "svelte",
    "shell": "sh bash zsh", "powershell": "ps1 psm1", "terraform": "tf", "protobuf": "proto",
    "graphql": "graphql gql", "cython": "pyx pxd",
}  # fmt: skip
_PROSE = {
    "markdown": "md markdown", "rst": "rst txt", "toml": "toml", "yaml": "yaml yml", "json": "json", "html": "html htm",
    "css": "css scss less", "xml": "xml",
}  # fmt: skip
_ENDINGS = {f".{end}": lang for lang, ends in (_CODE | _PROSE).items() for end in ends.split()}


def language(path: str) -> str:
    """By the file name's ending; "text" when it is unknown."""
    return _ENDINGS.get(PurePosixPath(path).suffix.lower(), "text")


def cut_into_lines(paths: Iterable[str]) -> dict[str, int]:
    """How many of these files are in a programming language without a grammar here, by language."""
    counts = Counter(map(language, paths))
    return {lang: n for lang, n in counts.most_common() if lang in _CODE and not syntax.known(lang)}
