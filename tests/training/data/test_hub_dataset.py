"""The door that goes through `datasets` to a Hub, here a local server that speaks as much of its protocol as that."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

COMMIT = "1" * 40
FILES = {
    "train.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "test.jsonl": b'{"text": "four"}\n',
    "validation.jsonl": b'{"text": "three"}\n',
}


class Hub(BaseHTTPRequestHandler):
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/datasets/owner/name/resolve/") and name in FILES:
            self.answer(200, FILES[name], ETag=f'"{name}"')
        elif path.startswith("/api/datasets/owner/name/tree/") and name in ("main", COMMIT):
            entries = [{"type": "file", "path": file, "size": len(body), "oid": file} for file, body in FILES.items()]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith("/api/datasets/owner/name") and "/tree/" not in path:
            siblings = [{"rfilename": file} for file in FILES]
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_a_dataset_comes_from_the_hub_that_hf_endpoint_names(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "cache"),
        }
        program = "from minigpt.training.data.corpus import load_text; print(ascii(load_text('owner/name').text))"
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == repr("one\ntwo\nthree\nfour\n")
