"""What a Hub keeps: repositories with branches, tags, pull requests and the whole history of their files."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from uuid import uuid4

# What the Hub writes into the .gitattributes of a new repository, shortened: these go to the large file storage.
LARGE = (
    *("arrow", "bin", "ckpt", "gguf", "gz", "h5", "msgpack", "npy", "npz", "onnx", "parquet", "pickle", "pkl"),
    *("pt", "pth", "safetensors", "tar", "zip", "zst"),
)
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()
LARGEST_REGULAR_FILE = 10 * 2**20
BRANCHES, TAGS, PULL_REQUESTS = "refs/heads/", "refs/tags/", "refs/pr/"


class Refused(Exception):
    """An answer that is no: the status, the message and the code that the client tells its errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and whether it may write."""

    name: str
    may_write: bool = True


@dataclass(frozen=True)
class Blob:
    """A file's content; of one in the large file storage, git has only a pointer."""

    content: bytes
    is_large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def oid(self) -> str:
        """Git's hash."""
        stored = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0%s" % (len(stored), stored)).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "".join(f"{line}\n" for line in lines).encode()


@dataclass(frozen=True)
class Commit:
    """The files after a change, and who made it."""

    files: Mapping[str, Blob]
    title: str
    author: str
    message: str = ""
    parent: "Commit | None" = None
    # Unlike git's, never the same twice: a cache cannot mistake one test's commit for another's.
    oid: str = field(default_factory=lambda: hashlib.sha1(uuid4().bytes).hexdigest())
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    def history(self) -> Iterable["Commit"]:
        """This commit and those before it, the newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def changed(self) -> set[str]:
        """The paths that this commit added, changed or deleted."""
        before = self.parent.files if self.parent else {}
        return {path for path in {*before, *self.files} if before.get(path) != self.files.get(path)}


@dataclass(frozen=True)
class PullRequest:
    """A change that somebody proposes; its commits are on `refs/pr/NUMBER`."""

    number: int
    title: str
    description: str
    author: str

    @property
    def ref(self) -> str:
        return f"{PULL_REQUESTS}{self.number}"


@dataclass
class Repository:
    """A repository of a kind (models, datasets, spaces), under `OWNER/NAME`."""

    kind: str
    id: str
    private: bool = False
    refs: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)
    uploads: set[str] = field(default_factory=set)  # SHA-256 of the large files that have arrived for it

    def __post_init__(self) -> None:
        start = Commit({".gitattributes": Blob(GITATTRIBUTES)}, "initial commit", self.owner)
        self.refs.setdefault(f"{BRANCHES}main", start)

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def ref(self, revision: str) -> str:
        """The full name of a branch, a tag or a pull request."""
        for name in (revision, BRANCHES + revision, TAGS + revision):
            if name in self.refs:
                return name
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a pull request, or a commit's own hash (its first seven digits will do)."""
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for commit in itertools.chain.from_iterable(tip.history() for tip in self.refs.values()):
                if commit.oid.startswith(revision):
                    return commit
        return self.refs[self.ref(revision)]

    def commit(self, ref: str, files: Mapping[str, Blob], title: str, author: str, message: str = "") -> Commit:
        """Puts a commit with these files, all there are, on a ref."""
        self.refs[ref] = Commit(dict(files), title, author, message, parent=self.refs.get(ref))
        return self.refs[ref]

    def branch(self, name: str, start: Commit) -> None:
        if not re.fullmatch(r"(?!refs/)(?!.*(\.\.|//|@\{))[\w][\w./+-]*(?<![./])", name):
            raise Refused(400, f"Invalid reference for a branch: {name}")
        if BRANCHES + name in self.refs:
            raise Refused(409, f"Reference already exists: {BRANCHES}{name}")
        self.refs[BRANCHES + name] = start

    def open_pull_request(self, title: str, description: str, author: str) -> PullRequest:
        request = PullRequest(len(self.pull_requests) + 1, title, description, author)
        self.pull_requests.append(request)
        self.refs[request.ref] = self.refs[f"{BRANCHES}main"]
        return request

    def stores_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether a file goes to the large file storage: by its name, its size, or because it is not text."""
        return path.endswith(tuple(f".{name}" for name in LARGE)) or size > LARGEST_REGULAR_FILE or b"\0" in sample

    def json_of(self, path: str, revision: str = "main") -> dict[str, object] | None:
        """A file of JSON, if there is one and it can be read."""
        blob = self.at(revision).files.get(path)
        try:
            return json.loads(blob.content) if blob else None
        except ValueError:
            return None
