"""The Hub's side of the conversation: every request that a client makes, answered as the real Hub does."""

import base64
import hashlib
import json
import re
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.cards import problems_of
from tests.hub.repositories import BRANCHES, TAGS, Account, Blob, Commit, Refused, Repository

if TYPE_CHECKING:
    from tests.hub.double import Hub

# What it tells of a model's config.json.
CONFIG_KEYS = ("architectures", "auto_map", "model_type")


@dataclass
class Request:
    """A request that came in, and the status it was answered with (0: the connection was cut)."""

    method: str
    path: str
    size: int
    account: str | None
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What goes wrong with the requests that match: an answer, or the connection cut after some bytes of the body."""

    pattern: str
    times: int | None
    answer: Refused | None = None
    cut_after: int = 0

    def strikes(self, request: Request) -> bool:
        if self.times == 0 or not re.search(self.pattern, str(request)):
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class _Cut(Exception):
    """The connection is to be cut."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that has gone."""

    def hang_up(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = []


def route(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers what answers requests whose `METHOD /path` is of this form; `{id}` stands for a repository's."""
    pattern = pattern.replace("{kind}", "(?P<kind>models|datasets|spaces)")
    pattern = pattern.replace("{id}", "(?P<id>[^/]+/[^/]+|[^/]+)")
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)

    def register(answer: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((re.compile(pattern), answer))
        return answer

    return register


class Handler(BaseHTTPRequestHandler):
    hub: "Hub"
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body go out together

    def log_message(self, *_: Any) -> None:
        """Says nothing: `hub.requests` has it all."""

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        self.request_log = Request(self.command, split.path, int(self.headers.get("Content-Length") or 0), None)
        self.hub.requests.append(self.request_log)
        try:
            with self.hub.lock:
                fault = next((fault for fault in self.hub.faults if fault.strikes(self.request_log)), None)
            self.body = self._read_body(fault.cut_after if fault and fault.answer is None else None)
            with self.hub.lock:
                self._answer(split.path, fault)
        except _Cut:
            # Reset, not closed: as by a router that has lost the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _read_body(self, cut_after: int | None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
            self.request_log.size = len(body)
        else:
            size = self.request_log.size
            body = self.rfile.read(size if cut_after is None else min(size, cut_after))
        if cut_after is not None:
            raise _Cut
        return body

    def _answer(self, path: str, fault: Fault | None) -> None:
        try:
            self.account = self._account()
            self.request_log.account = self.account.name if self.account else None
            if fault is not None and fault.answer is not None:
                raise fault.answer
            method = "GET" if self.command == "HEAD" else self.command
            for pattern, answer in ROUTES:
                if match := pattern.fullmatch(f"{method} {path}"):
                    found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    answer(self, **found)
                    return
            raise Refused(404, f"The double knows no {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self._send({"error": refused.message}, refused.status, headers)
        except (ConnectionError, _Cut):
            raise
        except Exception:
            self._send({"error": f"The double failed: {traceback.format_exc()}"}, 501)

    def _send(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.request_log.status = status
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(content)), "X-Request-Id": "double"}
        for name, value in (defaults | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    # Who may do what.

    def _account(self) -> Account | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        account = self.hub.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return account

    def _named(self) -> Account:
        if self.account is None:
            raise Refused(401, "Invalid username or password.")
        return self.account

    def _readable(self, kind: str, id: str) -> Repository:
        """A repository that this account may read; another's private one is as if it were not there."""
        repository = self.hub.repositories.get((kind, id))
        mine = repository is not None and self.account is not None and self.account.name == repository.owner
        if repository is None or (repository.private and not mine):
            if self.account is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, kind: str, id: str, *, proposes: bool = False) -> Repository:
        """A repository that this account may write to, or at least propose a change to."""
        repository = self._readable(kind, id)
        account = self._named()
        if not account.may_write or (account.name != repository.owner and not proposes):
            raise Refused(403, "Authorization error.")
        return repository

    @property
    def _proposes(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    # Accounts and repositories.

    @route("GET /api/whoami-v2")
    def whoami(self) -> None:
        account = self._named()
        role = "write" if account.may_write else "read"
        token = {"displayName": "double", "role": role, "createdAt": "2026-01-01T00:00:00.000Z"}
        self._send(
            {
                "type": "user",
                "id": account.name,
                "name": account.name,
                "fullname": account.name.title(),
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    @route("POST /api/repos/create")
    def create_repository(self) -> None:
        wish = json.loads(self.body)
        account = self._named()
        owner, kind = wish.get("organization") or account.name, f"{wish.get('type') or 'model'}s"
        id = f"{owner}/{wish['name']}"
        if owner != account.name or not account.may_write:
            raise Refused(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        if not re.fullmatch(r"(?!.*(--|\.\.))[\w-][\w.-]{0,95}", wish["name"]):
            raise Refused(400, f"Invalid repository name: {wish['name']}")
        answer = {"url": self._page(kind, id), "name": id, "id": id}
        if (kind, id) in self.hub.repositories:
            self._send(answer | {"error": f"You already created this {kind[:-1]} repo"}, 409)
        else:
            private = wish.get("visibility") == "private" or bool(wish.get("private"))
            self.hub.repositories[kind, id] = Repository(kind, id, private)
            self._send(answer)

    @route("DELETE /api/repos/delete")
    def delete_repository(self) -> None:
        wish = json.loads(self.body)
        kind = f"{wish.get('type') or 'model'}s"
        repository = self._writable(kind, f"{wish.get('organization') or self._named().name}/{wish['name']}")
        del self.hub.repositories[kind, repository.id]
        self._send({})

    @route("POST /api/repos/move")
    def move_repository(self) -> None:
        wish = json.loads(self.body)
        kind = f"{wish.get('type') or 'model'}s"
        repository = self._writable(kind, wish["fromRepo"])
        del self.hub.repositories[kind, repository.id]
        repository.id = wish["toRepo"]
        self.hub.repositories[kind, repository.id] = repository
        self._send({})

    @route("PUT /api/{kind}/{id}/settings")
    def change_settings(self, kind: str, id: str) -> None:
        repository = self._writable(kind, id)
        wish = json.loads(self.body)
        repository.private = wish.get("visibility", "private" if repository.private else "public") == "private"
        self._send({"private": repository.private})

    @route("GET /api/{kind}/{id}/auth-check(/write)?")
    def check_rights(self, kind: str, id: str) -> None:
        check = self._writable if urlsplit(self.path).path.endswith("/write") else self._readable
        check(kind, id)
        self._send({})

    @route("GET /api/{kind}")
    def list_repositories(self, kind: str) -> None:
        author, search = self.query.get("author", [""])[0], self.query.get("search", [""])[0]
        me = self.account.name if self.account else None
        found = [
            repository
            for (this, id), repository in self.hub.repositories.items()
            if this == kind
            and (not repository.private or repository.owner == me)
            and author in ("", repository.owner)
            and search.lower() in id.lower()
        ]
        self._send([self._described(repository, repository.at("main")) for repository in found])

    @route("GET /api/{kind}/{id}(/revision/{revision})?")
    def describe(self, kind: str, id: str, revision: str = "main") -> None:
        repository = self._readable(kind, id)
        self._send(self._described(repository, repository.at(revision)))

    def _described(self, repository: Repository, commit: Commit) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for path, blob in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in self.query:
                siblings[-1] |= {"size": len(blob.content), "blobId": blob.oid}
                if blob.is_large:
                    siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 127}
        *_, first = commit.history()
        answer: dict[str, object] = {
            "_id": repository.id,
            "id": repository.id,
            "author": repository.owner,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "createdAt": first.date,
            "lastModified": commit.date,
        }
        if repository.kind == "models":
            config = repository.json_of("config.json", commit.oid) or {}
            answer |= {"modelId": repository.id, "config": {key: config[key] for key in config if key in CONFIG_KEYS}}
        return answer

    def _page(self, kind: str, id: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{id}"

    # Revisions.

    @route("GET /api/{kind}/{id}/refs")
    def list_refs(self, kind: str, id: str) -> None:
        refs = self._readable(kind, id).refs
        listed = [
            [
                {"name": name.removeprefix(prefix), "ref": name, "targetCommit": commit.oid}
                for name, commit in refs.items()
                if name.startswith(prefix)
            ]
            for prefix in (BRANCHES, TAGS, "refs/pr/")
        ]
        self._send({"branches": listed[0], "tags": listed[1], "pullRequests": listed[2], "converts": []})

    @route("GET /api/{kind}/{id}/commits/{revision}")
    def list_commits(self, kind: str, id: str, revision: str) -> None:
        history = self._readable(kind, id).at(revision).history()
        self._send(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "date": commit.date,
                    "authors": [{"user": commit.author}],
                }
                for commit in history
            ]
        )

    @route("POST /api/{kind}/{id}/branch/{name}")
    def create_branch(self, kind: str, id: str, name: str) -> None:
        repository = self._writable(kind, id)
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        repository.branch(name, repository.at(start))
        self._send({})

    @route("POST /api/{kind}/{id}/tag/{revision}")
    def create_tag(self, kind: str, id: str, revision: str) -> None:
        repository = self._writable(kind, id)
        name = TAGS + json.loads(self.body)["tag"]
        if name in repository.refs:
            raise Refused(409, f"Reference already exists: {name}")
        repository.refs[name] = repository.at(revision)
        self._send({})

    @route("DELETE /api/{kind}/{id}/(?P<what>branch|tag)/{name}")
    def delete_ref(self, kind: str, id: str, what: str, name: str) -> None:
        repository = self._writable(kind, id)
        ref = {"branch": BRANCHES, "tag": TAGS}[what] + name
        if ref not in repository.refs:
            raise Refused(404, f"Reference does not exist: {ref}", "RevisionNotFound")
        del repository.refs[ref]
        self._send({})

    @route("POST /api/{kind}/{id}/discussions")
    def open_pull_request(self, kind: str, id: str) -> None:
        repository, wish = self._writable(kind, id, proposes=True), json.loads(self.body)
        request = repository.open_pull_request(wish["title"], wish.get("description", ""), self._named().name)
        self._send({"num": request.number, "url": f"{self._page(kind, id)}/discussions/{request.number}"})

    @route("GET /api/{kind}/{id}/discussions/{number}")
    def describe_pull_request(self, kind: str, id: str, number: str) -> None:
        request = self._pull_request(self._readable(kind, id), int(number))
        self._send(
            {
                "num": request.number,
                "title": request.title,
                "author": {"name": request.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "draft",
                "isPullRequest": True,
                "repo": {"name": id, "type": kind[:-1]},
                "events": [],
                "changes": {"base": "refs/heads/main"},
                "filesWithConflicts": [],
            }
        )

    @route("POST /api/{kind}/{id}/discussions/{number}/merge")
    def merge_pull_request(self, kind: str, id: str, number: str) -> None:
        repository = self._writable(kind, id)
        repository.refs[f"{BRANCHES}main"] = repository.refs[self._pull_request(repository, int(number)).ref]
        self._send({})

    def _pull_request(self, repository: Repository, number: int) -> Any:
        for request in repository.pull_requests:
            if request.number == number:
                return request
        raise Refused(404, f"There is no discussion {number}")

    # Writing.

    @route("POST /api/validate-yaml")
    def validate_card(self) -> None:
        errors, warnings = problems_of(json.loads(self.body)["content"])
        answer = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        self._send(answer, 400 if errors else 200)

    @route("POST /api/{kind}/{id}/preupload/{revision}")
    def preupload(self, kind: str, id: str, revision: str) -> None:
        repository = self._writable(kind, id, proposes=self._proposes)
        there = repository.at(revision).files
        answer = []
        for file in json.loads(self.body)["files"]:
            blob = there.get(file["path"])
            is_large = repository.stores_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = None if blob is None else blob.sha256 if blob.is_large else blob.oid
            mode = "lfs" if is_large else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._send({"files": answer, "commitOid": repository.at(revision).oid})

    @route(r"POST /((?P<kind>datasets|spaces)/)?{id}\.git/info/lfs/objects/batch")
    def prepare_large_files(self, id: str, kind: str = "models") -> None:
        repository = self._writable(kind, id, proposes=True)
        answer = []
        for wanted in json.loads(self.body)["objects"]:
            answer.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in repository.uploads:
                put = f"{self._elsewhere}/_storage/{wanted['oid']}?signature={self._signature(wanted['oid'])}"
                verify = f"{self._page(kind, id)}.git/info/lfs/verify"
                answer[-1]["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
        self._send({"transfer": "basic", "objects": answer})

    @property
    def _elsewhere(self) -> str:
        """Large files are stored at another host, which must see no token: a signature in the address serves."""
        return self.hub.url.replace("127.0.0.1", "localhost")

    @staticmethod
    def _signature(oid: str) -> str:
        return hashlib.sha256(f"signed {oid}".encode()).hexdigest()[:16]

    def _check_signature(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        if self.query.get("signature") != [self._signature(oid)]:
            raise Refused(403, "The request signature does not match")

    @route("PUT /_storage/{oid}")
    def store_large_file(self, oid: str) -> None:
        self._check_signature(oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The content does not have the promised SHA-256")
        self.hub.storage[oid] = self.body
        self._send({})

    @route("GET /_storage/{oid}")
    def fetch_large_file(self, oid: str) -> None:
        self._check_signature(oid)
        self._send_content(self.hub.storage[oid], {"ETag": f'"{oid}"'})

    @route(r"POST /((?P<kind>datasets|spaces)/)?{id}\.git/info/lfs/verify")
    def verify_large_file(self, id: str, kind: str = "models") -> None:
        repository = self._writable(kind, id, proposes=True)
        promised = json.loads(self.body)
        if len(self.hub.storage.get(promised["oid"], b"")) != promised["size"]:
            raise Refused(400, "The stored file does not have the promised size")
        repository.uploads.add(promised["oid"])
        self._send({})

    @route("POST /api/{kind}/{id}/commit/{revision}")
    def commit(self, kind: str, id: str, revision: str) -> None:
        repository = self._writable(kind, id, proposes=self._proposes)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        base = repository.at(revision)
        if not base.oid.startswith(header.get("parentCommit", "")):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines:
            self._apply(repository, files, line["key"], line["value"])
        summary, description, author = header["summary"], header.get("description", ""), self._named().name
        if self._proposes:
            request = repository.open_pull_request(summary, description, author)
            repository.refs[request.ref] = base
            ref, pull_request = request.ref, f"{self._page(kind, id)}/discussions/{request.number}"
        else:
            ref, pull_request = repository.ref(revision), None
        commit = repository.commit(ref, files, summary, author, description)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self._page(kind, id)}/commit/{commit.oid}"}
        self._send(answer | {"hookOutput": "", "pullRequestUrl": pull_request})

    def _apply(self, repository: Repository, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        """Makes one change of a commit to the files."""
        path = value.get("path", "")
        if key == "file":
            content = base64.b64decode(value["content"])
            if repository.stores_large(path, len(content), content[:512]):
                raise Refused(400, f"{path} must go to the large file storage")
            errors = problems_of(content.decode())[0] if path == "README.md" else []
            if errors:
                raise Refused(400, "; ".join(errors))
            files[path] = Blob(content)
        elif key == "lfsFile":
            if value["oid"] not in repository.uploads:
                raise Refused(400, f"{path} was not uploaded")
            files[path] = Blob(self.hub.storage[value["oid"]], is_large=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        elif key != "header":
            raise Refused(400, f"The double knows no change of the kind {key}")

    # Reading.

    @route("GET /api/{kind}/{id}/tree/{revision}(/(?P<folder>.+))?")
    def list_tree(self, kind: str, id: str, revision: str, folder: str = "") -> None:
        entries = self._entries(self._readable(kind, id).at(revision))
        start = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listed = [
            entry
            for path, entry in entries.items()
            if path.startswith(start) and (recursive or "/" not in path.removeprefix(start))
        ]
        if folder and not listed:
            raise Refused(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        self._send(listed)

    @route("POST /api/{kind}/{id}/paths-info/{revision}")
    def list_paths(self, kind: str, id: str, revision: str) -> None:
        if self.headers.get_content_type() == "application/json":
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        entries = self._entries(self._readable(kind, id).at(revision))
        self._send([entries[path] for path in paths if path in entries])

    def _entries(self, commit: Commit) -> dict[str, dict[str, object]]:
        """The files and folders of a commit, described as in a tree's listing."""
        entries: dict[str, dict[str, object]] = {}
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        extra = {"lastCommit": last} if self.query.get("expand", ["false"])[0].lower() == "true" else {}
        for path, blob in sorted(commit.files.items()):
            for cut in (match.start() for match in re.finditer("/", path)):
                folder = path[:cut]
                oid = hashlib.sha1(f"{commit.oid} {folder}".encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0, **extra}
            entries[path] = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content), **extra}
            if blob.is_large:
                size = len(blob.content)
                entries[path]["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
        return entries

    @route("GET /((?P<kind>datasets|spaces)/)?{id}/(resolve|raw)/{revision}/(?P<path>.+)")
    def resolve(self, id: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self._readable(kind, id).at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(path)
        if blob is None:
            code = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send({"error": "Entry not found"}, 404, headers | code)
        elif not blob.is_large:
            self._send_content(blob.content, headers | {"ETag": f'"{blob.oid}"'})
        elif "/raw/" in urlsplit(self.path).path:
            self._send_content(blob.pointer, headers)
        else:
            self.hub.storage[blob.sha256] = blob.content
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            address = f"{self._elsewhere}/_storage/{blob.sha256}?signature={self._signature(blob.sha256)}"
            self._send(b"", 302, headers | linked | {"Location": address, "Content-Type": "text/plain"})

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """Sends a file, or the range of it that was asked for."""
        headers = headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(content, headers=headers)
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self._send(b"", 416, headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        self._send(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})
