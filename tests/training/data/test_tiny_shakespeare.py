"""A local server stands for the Hub and for the site of the raw file, and a short text for the genuine one."""

import hashlib
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from minigpt.training.data import tiny_shakespeare as room
from minigpt.training.data.corpus import CorpusError, load_text

GENUINE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 20
OTHER = GENUINE.swapcase()
ANSWER_SECONDS = room.ANSWER_SECONDS
HUB_FOLDER = "/datasets/karpathy/tiny_shakespeare/resolve/refs%2Fconvert%2Fparquet/default"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache, a current folder and settings of this test's own."""
    monkeypatch.setattr(room, "NUM_BYTES", len(GENUINE))
    monkeypatch.setattr(room, "SHA256", hashlib.sha256(GENUINE.encode()).hexdigest())
    monkeypatch.setattr(room, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache" / "minigpt"


class Site:
    """Serves the bytes in `files`, or 404, and writes down what it is asked for."""

    def __init__(self):
        self.files, self.asked = {}, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                body = site.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def offer_on_the_hub(self, text):
        """Cuts the text as the Hub's dataset is cut: nine tenths, half of the rest, the other half."""
        first = int(len(text) * 0.9)
        second = first + int((len(text) - first) * 0.5)
        parts = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
        for split, part in parts.items():
            file = io.BytesIO()
            pq.write_table(pa.table({"text": [part]}), file)
            self.files[f"{HUB_FOLDER}/{split}/0000.parquet"] = file.getvalue()


@pytest.fixture
def site(monkeypatch):
    site = Site()
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(room, "RAW_URL", f"{site.url}/input.txt")
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    """Connections are refused: the Hub's address is so for every test."""
    monkeypatch.setattr(room, "RAW_URL", f"{constants.ENDPOINT}/input.txt")


def test_the_hubs_three_splits_are_joined_to_the_genuine_text(site):
    site.offer_on_the_hub(GENUINE)
    corpus = load_text("tiny_shakespeare")
    assert corpus.text == GENUINE
    assert (corpus.name, corpus.notice) == ("tiny_shakespeare", None)
    assert [path.split("/")[-2] for path in site.asked] == ["train", "validation", "test"]


def test_the_hubs_own_name_for_it_is_understood(site):
    site.offer_on_the_hub(GENUINE)
    assert load_text("karpathy/tiny_shakespeare").name == "tiny_shakespeare"


def test_it_is_fetched_once(site):
    site.offer_on_the_hub(GENUINE)
    load_text("tiny_shakespeare")
    site.asked.clear()
    assert load_text().text == GENUINE
    assert site.asked == []


def test_with_nothing_said_a_line_says_that_it_is_used(site):
    site.offer_on_the_hub(GENUINE)
    assert load_text().notice == "No text was named: using Tiny Shakespeare."


def test_without_the_hubs_files_the_raw_file_is_fetched(site):
    site.files["/input.txt"] = GENUINE.encode()
    assert load_text("tiny_shakespeare").text == GENUINE


@pytest.mark.parametrize("wrong", [OTHER, GENUINE[:-1]], ids=["hash", "size"])
def test_another_text_from_the_hub_is_refused_for_the_raw_file(site, wrong):
    site.offer_on_the_hub(wrong)
    site.files["/input.txt"] = GENUINE.encode()
    assert load_text("tiny_shakespeare").text == GENUINE


def test_another_text_from_everywhere_is_refused_and_not_kept(site, cache):
    site.offer_on_the_hub(OTHER)
    site.files["/input.txt"] = OTHER.encode()
    with pytest.raises(CorpusError, match=r"the Hub: SHA-256 .* instead of .*; its raw file: SHA-256 .* instead of "):
        load_text("tiny_shakespeare")
    assert not cache.exists()


def test_a_damaged_copy_in_the_cache_is_fetched_again(site, cache):
    site.offer_on_the_hub(GENUINE)
    load_text("tiny_shakespeare")
    (copy,) = cache.iterdir()
    copy.write_bytes(GENUINE.encode()[:100])
    assert load_text("tiny_shakespeare").text == GENUINE
    assert copy.read_bytes() == GENUINE.encode()
    assert list(cache.iterdir()) == [copy]


def test_a_cache_that_cannot_be_written_is_done_without(site, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    site.offer_on_the_hub(GENUINE)
    assert load_text("tiny_shakespeare").text == GENUINE


def test_out_of_reach_with_nothing_said_the_plays_are_used_and_a_line_says_so(no_network):
    corpus = load_text()
    assert corpus.name == "plays"
    assert "out of reach" in corpus.notice
    assert "bundled plays" in corpus.notice
    assert "\n" not in corpus.notice


def test_out_of_reach_when_named_it_fails_and_tells_the_remedies(no_network):
    with pytest.raises(
        CorpusError, match=r"out of reach \(the Hub: .*; its raw file: .*MINIGPT_TINY_SHAKESPEARE.*'plays'"
    ):
        load_text("tiny_shakespeare")


def test_all_that_is_waited_for_an_answer_is_less_than_ten_seconds(monkeypatch):
    waits = []

    def no_answer(seconds, call):
        waits.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(room, "ANSWER_SECONDS", ANSWER_SECONDS)
    monkeypatch.setattr(room, "_within", no_answer)
    assert load_text().name == "plays"
    assert len(waits) == 2
    assert sum(waits) < 10


def test_servers_that_accept_and_never_answer_are_out_of_reach(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(room, "RAW_URL", f"{url}/input.txt")
        monkeypatch.setattr(room, "ANSWER_SECONDS", 0.2)
        assert load_text().name == "plays"


def test_a_name_server_that_never_answers_is_waited_for_no_longer_than_a_server(monkeypatch):
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asleep.wait(30))
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(room, "RAW_URL", "http://raw.invalid/input.txt")
    monkeypatch.setenv("no_proxy", "invalid")
    monkeypatch.setattr(room, "ANSWER_SECONDS", 0.2)
    try:
        assert load_text().name == "plays"
    finally:
        asleep.set()


@pytest.mark.parametrize("setting", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_mode_asks_nobody(site, monkeypatch, setting):
    site.offer_on_the_hub(GENUINE)
    # Both libraries read the variables once, when they are imported.
    module = constants if setting == "HF_HUB_OFFLINE" else datasets.config
    monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    assert "offline mode" in load_text().notice
    assert site.asked == []


def test_the_variable_names_a_copy_that_is_used_without_network(tmp_path, monkeypatch, no_network):
    (tmp_path / "copy.txt").write_bytes(GENUINE.encode())
    monkeypatch.setenv("MINIGPT_TINY_SHAKESPEARE", str(tmp_path / "copy.txt"))
    assert load_text().text == load_text("tiny_shakespeare").text == GENUINE


def test_the_variable_naming_another_text_is_an_error_even_with_nothing_said(tmp_path, monkeypatch):
    (tmp_path / "copy.txt").write_bytes(OTHER.encode())
    monkeypatch.setenv("MINIGPT_TINY_SHAKESPEARE", str(tmp_path / "copy.txt"))
    with pytest.raises(
        CorpusError, match=r"MINIGPT_TINY_SHAKESPEARE names '.*copy\.txt', which is not Tiny Shakespeare"
    ):
        load_text()


def test_the_variable_naming_no_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_TINY_SHAKESPEARE", str(tmp_path / "none.txt"))
    with pytest.raises(CorpusError, match=r"MINIGPT_TINY_SHAKESPEARE names .* cannot be read"):
        load_text("tiny_shakespeare")
