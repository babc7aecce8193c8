"""Claims about the double of the Hub: what it checks, so that a test that passes against it means something."""

import hashlib
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    HfFileSystem,
    constants,
    create_commit,
    create_repo,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.xet import Chunk, FileInfo, Term, read_xorb, terms_within

if TYPE_CHECKING:
    from tests.hub.double import Hub

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def api(hub: "Hub") -> HfApi:
    return HfApi()


@pytest.fixture
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the client sends large files: by Xet, as it does by itself, or by Git LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def repository(api: HfApi) -> str:
    id = create_repo("model").repo_id
    files = {"config.json": b'{"model_type": "minigpt"}', "model.safetensors": WEIGHTS, "notes/a.txt": b"one"}
    create_commit(id, [CommitOperationAdd(path, content) for path, content in files.items()], commit_message="First")
    return id


@pytest.mark.parametrize("transfer", ["xet", "lfs"], indirect=True)
def test_what_was_committed_is_downloaded(hub: "Hub", transfer: str, repository: str) -> None:
    folder = Path(snapshot_download(repository))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "notes" / "a.txt").read_bytes() == b"one"
    # The large file took its way over the storage, up and down.
    ways = {"lfs": ["PUT /_storage/", "GET /_storage/"], "xet": ["POST /_xet/v1/xorbs/", "GET /_xorbs/"]}
    assert {name: [bool(hub.requested(way)) for way in ways[name]] for name in ways} == {
        name: [name == transfer] * 2 for name in ways
    }


def test_an_upload_that_lacks_the_promised_hash_is_refused(hub: "Hub", repository: str) -> None:
    promised = hashlib.sha256(b"promised").hexdigest()
    batch = {"objects": [{"oid": promised, "size": 8}]}
    headers = {"Authorization": "Bearer hf_tester"}
    session = get_session()
    prepared = session.post(f"{hub.url}/{repository}.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    address = prepared["objects"][0]["actions"]["upload"]["href"]
    assert session.put(address, content=b"something").status_code == 400
    assert session.put(address.partition("?")[0], content=b"promised").status_code == 403
    assert session.put(address, content=b"promised").status_code == 200


def test_a_file_is_read_in_parts(repository: str) -> None:
    with HfFileSystem().open(f"{repository}/model.safetensors", "rb", block_size=1000) as file:
        file.seek(5000)
        assert file.read(100) == WEIGHTS[5000:5100]


def test_an_older_commit_can_be_read(api: HfApi, repository: str) -> None:
    first = api.model_info(repository).sha
    create_commit(repository, [CommitOperationAdd("notes/a.txt", b"two")], commit_message="Second")
    assert Path(hf_hub_download(repository, "notes/a.txt")).read_bytes() == b"two"
    assert Path(hf_hub_download(repository, "notes/a.txt", revision=first)).read_bytes() == b"one"
    assert [commit.title for commit in api.list_repo_commits(repository)] == ["Second", "First", "initial commit"]


def test_a_commit_changes_its_branch_alone(api: HfApi, repository: str) -> None:
    api.create_branch(repository, branch="try/it")
    create_commit(repository, [CommitOperationAdd("new.txt", b"new")], commit_message="Add", revision="try/it")
    assert api.file_exists(repository, "new.txt", revision="try/it")
    assert not api.file_exists(repository, "new.txt")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repository, branch="try/it")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repository, revision="nowhere")
    api.delete_branch(repository, branch="try/it")
    assert [branch.name for branch in api.list_repo_refs(repository).branches] == ["main"]


def test_a_pull_request_leaves_main_alone(hub: "Hub", api: HfApi, repository: str) -> None:
    change = [CommitOperationAdd("new.txt", b"new")]
    stranger = HfApi(token="hf_stranger")
    made = stranger.create_commit(repository, change, commit_message="Propose", create_pr=True)
    assert made.pr_revision == "refs/pr/1"
    assert not api.file_exists(repository, "new.txt")
    assert api.file_exists(repository, "new.txt", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.create_commit(repository, [CommitOperationAdd("b.txt", b"b")], commit_message="Write")
    api.merge_pull_request(repository, 1)
    assert api.file_exists(repository, "new.txt")


def test_nothing_is_written_without_the_right_to(hub: "Hub", repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, refusal in [("hf_reader", "403"), ("hf_stranger", "403"), ("hf_wrong", "401")]:
        with pytest.raises(HfHubHTTPError, match=refusal):
            HfApi(token=token).create_repo("tester/another")
        with pytest.raises(HfHubHTTPError, match=refusal):
            HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repository)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HfHubHTTPError, match="401"):
        create_repo("tester/another")
    with pytest.raises(LocalTokenNotFoundError):
        HfApi().whoami()
    assert len(hub.repositories) == 1


def test_a_private_repository_is_its_owners(hub: "Hub", api: HfApi) -> None:
    create_repo("secret", private=True)
    assert api.model_info("tester/secret").private
    for token in ("hf_stranger", False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("tester/secret")


def test_the_same_name_is_free_for_another_kind(hub: "Hub", api: HfApi, repository: str) -> None:
    create_repo(repository, repo_type="dataset")
    api.upload_file(path_or_fileobj=io.BytesIO(b"row"), path_in_repo="a.txt", repo_id=repository, repo_type="dataset")
    assert api.list_repo_files(repository, repo_type="dataset") == [".gitattributes", "a.txt"]
    assert not api.file_exists(repository, "a.txt")


def test_a_card_with_a_wrong_header_is_refused(hub: "Hub", repository: str) -> None:
    for header in ("license: [unclosed", "license: my-own", "model-index: [{name: a, results: [{task: {}}]}]"):
        card = CommitOperationAdd("README.md", f"---\n{header}\n---\n# A model\n".encode())
        with pytest.raises(ValueError, match="Invalid metadata"):
            create_commit(repository, [card], commit_message="Card")
    assert "README.md" not in hub.files(repository)


def test_a_commit_on_an_old_parent_is_refused(api: HfApi, repository: str) -> None:
    old = api.list_repo_commits(repository)[-1].commit_id
    change = [CommitOperationAdd("new.txt", b"new")]
    with pytest.raises(HfHubHTTPError, match="412"):
        create_commit(repository, change, commit_message="Late", parent_commit=old)


def test_what_is_not_there_is_named(api: HfApi, repository: str) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/nothing")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(repository, "nothing.txt")
    with pytest.raises(BadRequestError):
        api.create_branch(repository, branch="not..a name")


@pytest.mark.parametrize("transfer", ["xet", "lfs"], indirect=True)
def test_it_fails_as_often_as_it_was_told_to(hub: "Hub", api: HfApi, transfer: str, repository: str) -> None:
    def upload(content: bytes) -> None:
        api.upload_file(path_or_fileobj=content, path_in_repo="weights.bin", repo_id=repository)

    failures = (ConnectionError, RuntimeError)  # Xet's, and the other's
    hub.fill_disk()
    with pytest.raises(failures):
        upload(b"full" * 1000)
    hub.heal()
    hub.cut(after=20)
    with pytest.raises(failures):
        upload(b"cut" * 1000)
    assert "weights.bin" not in hub.files(repository)
    hub.heal()
    hub.cut(after=20, times=2)
    upload(b"twice" * 1000)  # the client tries again by itself
    assert hub.files(repository)["weights.bin"] == b"twice" * 1000


def test_a_part_of_a_file_is_put_together_from_its_chunks() -> None:
    first, second = [
        [Chunk(text.encode(), 0, 0) for text in texts] for texts in (["abcd", "efgh", "ijkl"], ["mnop", "qrst"])
    ]
    xorbs = {"first": first, "second": second}
    file = FileInfo("", "", (Term("second", 0, 2, 8), Term("first", 1, 3, 8)))
    assert terms_within(file, xorbs, 0, 16) == (0, list(file.terms))
    assert terms_within(file, xorbs, 5, 10) == (1, [Term("second", 1, 2, 4), Term("first", 1, 2, 4)])
    assert terms_within(file, xorbs, 12, 99) == (0, [Term("first", 2, 3, 4)])


def test_what_lz4_has_packed_is_unpacked() -> None:
    # By hand, after LZ4's description: a frame of one block, which repeats three letters over themselves.
    block = bytes([0x3A, *b"abc", 3, 0, 0x50, *b"vwxyz"])
    frame = struct.pack("<IBBB", 0x184D2204, 0x60, 0x40, 0x82) + struct.pack("<I", len(block)) + block + bytes(4)
    content = b"abc" * 5 + b"abvwxyz"
    xorb = bytes([0, *len(frame).to_bytes(3, "little"), 1, *len(content).to_bytes(3, "little")]) + frame
    (chunk,) = read_xorb(xorb)
    assert chunk.content == content
