"""The Hub's side of the conversation: every request that a client makes, answered as the real Hub does."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub.cards import problems_of
from tests.hub.large_files import LargeFiles
from tests.hub.repositories import BRANCHES, TAGS, Blob, Commit, Refused, Repository
from tests.hub.routes import route

# What it tells of a model's config.json.
CONFIG_KEYS = ("architectures", "auto_map", "model_type")


class Handler(LargeFiles):
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
            wished = {"private": True, "public": False}.get(wish.get("visibility"), wish.get("private"))
            private = self.hub.new_are_private if wished is None else wished
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
            self._send_large(kind, id, blob, commit.oid)
