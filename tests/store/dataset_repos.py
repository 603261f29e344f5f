"""Data set repositories as a Hub keeps them: commits, each a tree of files, and what is said to whom."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LARGE = 2000  # bytes from which on this Hub wants a file in its storage


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether it lies in the storage."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git(self) -> str:
        """The object name that git gives to the file, or to the pointer that stands for a large one."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        data = pointer.encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """What the Hub tells of the file in listings."""
        told = {"type": "file", "path": path, "oid": self.git, "size": len(self.content)}
        if self.large:
            told["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return told


Tree = dict[str, Blob]


@dataclass
class Repo:
    """A repository's commits, and who may do what with it besides its owner."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: Tree, branch: str = "main") -> str:
        """Make ``tree`` the newest commit and return its name."""
        name = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(tree)}".encode()).hexdigest()
        self.commits[name] = tree
        self.branches[branch] = name
        return name

    @property
    def newest(self) -> Tree:
        return self.commits[self.branches["main"]]


class Refusal(NamedTuple):
    """An answer that is not success."""

    status: int
    message: str
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
