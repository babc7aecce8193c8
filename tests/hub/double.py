"""A Hub of one's own on this machine: the real clients talk to it over HTTP, as they would to the real one.

It keeps repositories, branches and pull requests (`repositories.py`), knows who may do what and checks what it is sent
(`protocol.py`, `cards.py`), writes down every request, and fails on demand: a full disk, a connection that breaks in
the middle of an upload.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub.conversation import Fault, Request, Server
from tests.hub.protocol import Handler
from tests.hub.repositories import Account, Blob, Commit, Refused, Repository
from tests.hub.xet import FileInfo

# How large files arrive: by Git LFS, or by Xet.
UPLOAD = "PUT /_storage/|POST /_xet/v1/xorbs/"


@dataclass
class Hub:
    """The double: what it holds, what it was asked, what is to fail.

    The tokens are called after the accounts: `hf_tester` and `hf_stranger`, `hf_reader` that is tester's too but may
    only read, and `hf_my_name` of `my-name`, as the documentation calls its reader.
    """

    url: str = ""
    caches: Path = Path()
    accounts: dict[str, Account] = field(
        default_factory=lambda: {
            "hf_tester": Account("tester"),
            "hf_reader": Account("tester", may_write=False),
            "hf_stranger": Account("stranger"),
            "hf_my_name": Account("my-name"),
        }
    )
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)  # the large files, by their SHA-256
    xorbs: dict[str, bytes] = field(default_factory=dict)  # parts of them, as Xet's client packs them
    xet_files: dict[str, FileInfo] = field(default_factory=dict)  # which parts make them, by their SHA-256
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    new_are_private: bool = False  # as organisations may have it, where nothing else is asked for
    lock: threading.RLock = field(default_factory=threading.RLock)
    _environments: int = 0

    def fail(
        self,
        pattern: str,
        status: int = 500,
        message: str = "Failure",
        *,
        code: str | None = None,
        times: int | None = None,
    ) -> None:
        """Answers the requests that match a regular expression of `METHOD /path` with an error, until `heal()`."""
        self.faults.append(Fault(pattern, times, answer=Refused(status, message, code)))

    def fill_disk(self) -> None:
        """Lets every upload of a large file fail as on a full disk."""
        self.fail(UPLOAD, 507, "No space left on device")

    def cut(self, pattern: str = UPLOAD, *, after: int = 1000, times: int | None = None) -> None:
        """Cuts the connection when that many bytes of the body of a matching request have come in."""
        self.faults.append(Fault(pattern, times, cut_after=after))

    def lose_answers(self, pattern: str, *, times: int | None = None) -> None:
        """Does what the requests that match ask for, and cuts the connection before it answers."""
        self.faults.append(Fault(pattern, times, loses_answer=True))

    def heal(self) -> None:
        """Ends every failure."""
        self.faults.clear()

    def environment(self, token: str | None = "hf_tester") -> dict[str, str]:
        """The environment of a fresh process that knows this Hub, with empty caches."""
        self._environments += 1
        home = self.caches / f"home-{self._environments}"
        home.mkdir(parents=True)
        environment = os.environ | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home)}
        environment.pop("HF_TOKEN", None)
        return environment | ({"HF_TOKEN": token} if token else {})

    def repository(self, id: str, kind: str = "models") -> Repository:
        return self.repositories[kind, id]

    def create(self, id: str, kind: str = "models", *, private: bool = False, **files: bytes) -> Repository:
        """Makes a repository, as its owner would have before the test began."""
        repository = self.repositories[kind, id] = Repository(kind, id, private)
        if files:
            self.put(id, files, kind=kind)
        return repository

    def put(
        self, id: str, files: dict[str, bytes], *, revision: str = "main", kind: str = "models", title: str = "Edit"
    ) -> Commit:
        """Changes files of a repository, as its owner would in the browser."""
        repository = self.repository(id, kind)
        ref = repository.ref(revision)
        blobs = {name: Blob(data, repository.stores_large(name, len(data), data[:512])) for name, data in files.items()}
        return repository.commit(ref, {**repository.refs[ref].files, **blobs}, title, repository.owner)

    def files(self, id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a revision of a repository holds."""
        return {path: blob.content for path, blob in self.repository(id, kind).at(revision).files.items()}

    def commits(self, id: str, revision: str = "main", kind: str = "models") -> list[Commit]:
        """The commits of a revision, the newest first."""
        return list(self.repository(id, kind).at(revision).history())

    def requested(self, pattern: str) -> list[Request]:
        """The requests whose `METHOD /path` a regular expression finds."""
        return [request for request in self.requests if re.search(pattern, str(request))]


@contextmanager
def running_hub(port: int, caches: Path) -> Iterator[Hub]:
    """Serves a Hub on this port of 127.0.0.1 until the block ends; then every connection to it is closed."""
    hub = Hub(f"http://127.0.0.1:{port}", caches)
    server = Server(("127.0.0.1", port), type("Handler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()
