"""Where large files go: the storage of Git LFS, and that of Xet, in which today's client sends them by itself."""

import hashlib
import json

from tests.hub.conversation import Conversation
from tests.hub.repositories import Blob, Refused, Repository
from tests.hub.routes import route
from tests.hub.xet import read_shard, read_xorb, terms_within


class LargeFiles(Conversation):
    # Git LFS.

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

    # Xet. What a token allows stands in the token.

    @route("GET /api/{kind}/{id}/xet-(?P<scope>read|write)-token/{revision}")
    def give_xet_token(self, kind: str, id: str, scope: str, revision: str) -> None:
        if scope == "write":
            self._writable(kind, id, proposes=True)
        self._readable(kind, id)
        token, address, expiry = f"{scope} {kind} {id}", f"{self._elsewhere}/_xet", 4_000_000_000
        headers = {"X-Xet-Access-Token": token, "X-Xet-Cas-Url": address, "X-Xet-Token-Expiration": str(expiry)}
        self._send({"accessToken": token, "casUrl": address, "exp": expiry}, headers=headers)

    def _of_xet_token(self, scope: str) -> Repository:
        granted, _, name = (self.headers.get("Authorization") or "").removeprefix("Bearer ").partition(" ")
        kind, _, id = name.partition(" ")
        if scope not in granted or (kind, id) not in self.hub.repositories:
            raise Refused(401, "The token is not one of this storage")
        return self.hub.repositories[kind, id]

    @route("POST /_xet/v1/xorbs/default/{name}")
    def store_xorb(self, name: str) -> None:
        self._of_xet_token("write")
        read_xorb(self.body)
        self.hub.xorbs[name] = self.body
        self._send({"was_inserted": True})

    @route("GET /_xet/v1/chunks/default(-merkledb)?/{name}")
    def find_chunk(self, name: str) -> None:
        raise Refused(404, "The chunk is not known")

    @route("POST /_xet/v1/shards")
    def store_shard(self) -> None:
        repository = self._of_xet_token("write")
        for file in read_shard(self.body):
            missing = [term.xorb for term in file.terms if term.xorb not in self.hub.xorbs]
            if missing:
                raise Refused(400, f"The xorbs {missing} were not uploaded")
            xorbs = {term.xorb: read_xorb(self.hub.xorbs[term.xorb]) for term in file.terms}
            parts = (chunk.content for term in file.terms for chunk in xorbs[term.xorb][term.start : term.stop])
            content = b"".join(parts)
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise Refused(400, "The content does not have the promised SHA-256")
            self.hub.storage[file.sha256] = content
            self.hub.xet_files[file.sha256] = file
            repository.uploads.add(file.sha256)
        self._send({"result": 1})

    @route("GET /_xet/v1/reconstructions/{name}")
    def reconstruct(self, name: str) -> None:
        self._of_xet_token("")
        file = next((file for file in self.hub.xet_files.values() if file.hash == name), None)
        if file is None:
            raise Refused(404, "The file is not known")
        start, stop = self._wanted_range(sum(term.length for term in file.terms))
        xorbs = {term.xorb: read_xorb(self.hub.xorbs[term.xorb]) for term in file.terms}
        offset, terms = terms_within(file, xorbs, start, stop)
        fetch: dict[str, list[dict[str, object]]] = {}
        for term in terms:
            chunks = xorbs[term.xorb][term.start : term.stop]
            fetch.setdefault(term.xorb, []).append(
                {
                    "range": {"start": term.start, "end": term.stop},
                    "url": f"{self._elsewhere}/_xorbs/{term.xorb}?signature={self._signature(term.xorb)}",
                    "url_range": {"start": chunks[0].start, "end": chunks[-1].stop - 1},
                }
            )
        listed = [
            {"hash": term.xorb, "unpacked_length": term.length, "range": {"start": term.start, "end": term.stop}}
            for term in terms
        ]
        self._send({"offset_into_first_range": offset, "terms": listed, "fetch_info": fetch})

    @route("GET /_xorbs/{name}")
    def fetch_xorb(self, name: str) -> None:
        self._check_signature(name)
        self._send_content(self.hub.xorbs[name], {})

    def _send_large(self, kind: str, id: str, blob: Blob, commit: str) -> None:
        """Says where a large file is: at the other host, and in Xet's storage if it came from there."""
        self.hub.storage[blob.sha256] = blob.content
        address = f"{self._elsewhere}/_storage/{blob.sha256}?signature={self._signature(blob.sha256)}"
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.content)),
            "Location": address,
            "Content-Type": "text/plain",
        }
        if file := self.hub.xet_files.get(blob.sha256):
            token = f"{self.hub.url}/api/{kind}/{id}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": file.hash, "Link": f'<{token}>; rel="xet-auth"'}
        self._send(b"", 302, headers)
