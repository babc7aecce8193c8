"""One request and its answer: who asks, what they may do, what has to go wrong, what is sent back."""

import json
import re
import socket
import struct
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.repositories import Account, Refused, Repository
from tests.hub.routes import ROUTES

if TYPE_CHECKING:
    from tests.hub.double import Hub


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
    """What goes wrong with the requests that match: an answer, or the connection cut.

    It is cut after some bytes of the body, or when what was asked for is done and only the answer is missing.
    """

    pattern: str
    times: int | None
    answer: Refused | None = None
    cut_after: int = 0
    loses_answer: bool = False

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


class Conversation(BaseHTTPRequestHandler):
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
            self.loses_answer = fault is not None and fault.loses_answer
            cuts_body = fault is not None and fault.answer is None and not fault.loses_answer
            self.body = self._read_body(fault.cut_after if fault and cuts_body else None)
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
        if self.loses_answer:
            raise _Cut
        self.request_log.status = status
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(content)), "X-Request-Id": "double"}
        for name, value in (defaults | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """Sends a file, or the range of it that was asked for."""
        headers = headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if "Range" not in self.headers:
            self._send(content, headers=headers)
            return
        start, stop = self._wanted_range(len(content))
        self._send(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def _wanted_range(self, length: int) -> tuple[int, int]:
        """Where what was asked for begins and where it ends; without a range, all of it."""
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 0, length
        first, last = wanted.groups()
        start = int(first) if first else max(0, length - int(last))
        if start >= length:
            raise Refused(416, "The range lies beyond the end")
        return start, min(int(last) + 1, length) if first and last else length

    def _page(self, kind: str, id: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{id}"

    # Who may do what.

    def _account(self) -> Account | None:
        header = self.headers.get("Authorization")
        if header is None or self.path.startswith("/_"):  # at the storage's own host, nobody has a name
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
