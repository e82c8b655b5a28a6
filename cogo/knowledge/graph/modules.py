"""What Python files are called: by the packages around them, as the interpreter would import them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .facts import Module

# Folders that code is imported from, so that their own names are no part of a module's name.
_SOURCE_FOLDERS = frozenset({"src"})
_ENVIRONMENT_FOLDERS = frozenset({"site-packages", "dist-packages"})
_CLIMB_MAX = 20
_NAMESPACE_MAX = 4


class _Folder(msgspec.Struct, frozen=True):
    """What a folder says about the modules in it."""

    names: tuple[str, ...]
    """Of the packages around them, the outermost first."""
    packaged: bool
    place: Path
    """Folder that the top package lies in."""
    source: Path | None


class Modules:
    """Names the modules below a root by the `__init__.py` files and the source folders around them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._has_init: dict[Path, bool] = {}
        self._folders: dict[str, _Folder] = {}

    def of(self, path: str) -> Module:
        """The module that a file is."""
        above, _, file = path.rpartition("/")
        stem = file.rpartition(".")[0]
        own = [] if file == "__init__.py" else [stem]
        folder = self._folders.get(above)
        if folder is None:
            folder = self._folders[above] = self._look(self.root / above)
        packaged = folder.packaged and "." not in stem
        names, place = folder.names, folder.place
        by_place = above.split("/") if above else []
        if folder.source is None and not packaged:
            names, place = tuple(by_place), self.root
        full = [*names, *own]
        # Never a name that is shorter than the real one, but for folders between src and the package:
        # `typing` must not come to mean pkg/typing.py.
        by_place += own
        others = {".".join(by_place)} if len(by_place) > len(full) else set()
        if not packaged:
            others.add(".".join([self.root.name, *by_place]))
        elif folder.source is not None and folder.source.is_relative_to(self.root) and place != folder.source:
            others.add(".".join([*(self.root / above).relative_to(place).parts, *own]))
        name = ".".join(full) or self.root.name
        source = (folder.source or place).as_posix()
        return Module(name, packaged, not own, source, tuple(sorted(others - {name, ""})))

    def _look(self, folder: Path) -> _Folder:
        names = list[str]()
        while self._is_package(folder) and len(names) < _CLIMB_MAX:
            names.insert(0, folder.name)
            folder = folder.parent
        source = _source_folder(self.root, folder)
        # A folder without __init__.py inside a package is none that tools look into.
        orphan = not names and any(map(self._is_package, (folder, *folder.parents)[:_CLIMB_MAX]))
        packaged = bool(names) or (source is not None and not orphan)
        if source is not None:
            names = [*folder.relative_to(source).parts, *names]
        return _Folder(tuple(names), packaged, folder, source)

    def _is_package(self, folder: Path) -> bool:
        known = self._has_init.get(folder)
        if known is None:
            known = self._has_init[folder] = (folder / "__init__.py").exists()
        return known


def _source_folder(root: Path, folder: Path) -> Path | None:
    """The nearest folder at or above this one that code is imported from: folders in between are
    namespace packages. Above the root only an environment's counts: people keep projects in ~/src.
    """
    for above in (folder, *folder.parents)[:_NAMESPACE_MAX]:
        inside = above.is_relative_to(root) and above != root
        if above.name in _ENVIRONMENT_FOLDERS or (inside and above.name in _SOURCE_FOLDERS):
            return above
    return None
