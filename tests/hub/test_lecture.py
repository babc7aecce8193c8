"""What the lecture's scripts save becomes a MiniGPT that computes what the scripts compute."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from minigpt import BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer, TextbookGPT
from minigpt.errors import UsageError
from minigpt.hub.importing.sources import import_model
from minigpt.modeling_minigpt.textbook import lecture_weights
from minigpt.training.data.corpus import PLAYS
from tests.hub.foreign_models import LectureBigram, LectureGPT, sharpen, write

TEXT = "to be or nots"  # 8 characters
PROSE = PLAYS.read_text(encoding="utf-8")[:20_000].lower()
DOOR = pytest.mark.door(
    "`minigpt import`: the lecture's state_dict, heads apart: equal logits", "torch", "transformers"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def save(oracle: nn.Module, folder: Path) -> Path:
    path = folder / "lecture.pt"
    torch.save(oracle.state_dict(), path)
    return path


def assert_same_logits(folder: Path, oracle: nn.Module) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, 8, (5, oracle.block_size))
    torch.testing.assert_close(model(ids).logits[..., :8], oracle(ids), rtol=1e-10, atol=1e-10)
    return model


@DOOR
@pytest.mark.parametrize("scale", ["head_size", "n_embd"])
@pytest.mark.parametrize("norm_in_blocks", [False, True])
def test_logits_equal_the_lectures_on_the_old_ids(tmp_path: Path, text: Path, scale: str, norm_in_blocks: bool) -> None:
    oracle = LectureGPT(8, scale=scale, norm_in_blocks=norm_in_blocks).double()
    source = save(oracle, tmp_path)
    folder = import_model(source, tmp_path / "model", text=text, attention_scale=scale)
    model = assert_same_logits(folder, oracle)
    assert model.config.vocab_size == 8 + 3
    other = {"head_size": "n_embd", "n_embd": "head_size"}[scale]
    with pytest.raises(AssertionError):
        assert_same_logits(import_model(source, tmp_path / "other", text=text, attention_scale=other), oracle)


@DOOR
def test_the_bigrams_logits_equal_the_lectures(tmp_path: Path, text: Path) -> None:
    oracle = LectureBigram(8).double()
    folder = import_model(save(oracle, tmp_path), tmp_path / "model", text=text)
    model = assert_same_logits(folder, oracle)
    assert isinstance(model, BigramForCausalLM)
    prompt = torch.tensor([[3]])
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)
    assert written[0].tolist() == write(oracle, [3], 20)


def test_greedy_text_equals_the_lectures_past_the_block(tmp_path: Path, text: Path) -> None:
    oracle = sharpen(LectureGPT(8), std=1.0, seed=1).double()
    for name, parameter in oracle.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)  # or it writes one character for ever
    folder = import_model(save(oracle, tmp_path), tmp_path / "model", text=text, attention_scale="head_size")
    model, tokenizer = MiniGPTForCausalLM.from_pretrained(folder), MiniGPTTokenizer.from_pretrained(folder)
    inputs = tokenizer("to be", return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [sorted(set(TEXT)).index(character) for character in "to be"]
    written = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0].tolist()
    assert written == write(oracle, inputs["input_ids"][0].tolist(), 40)
    assert len(set(written[-20:])) > 1


def test_what_the_textbook_takes_over_comes_back(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    model = sharpen(MiniGPTForCausalLM(MiniGPTConfig(vocab_size=8, n_embd=12, n_head=3, n_layer=2, block_size=8)))
    source = save(TextbookGPT.from_minigpt(model), tmp_path)
    folder = import_model(source, tmp_path / "model", text=text, attention_scale="head_size")
    imported = MiniGPTForCausalLM.from_pretrained(folder)
    imported.resize_token_embeddings(8)
    assert all(torch.equal(imported.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_lectures_names_are_the_models_own_memory() -> None:
    model = MiniGPTForCausalLM(MiniGPTConfig())
    for place in lecture_weights(model).values():
        place.fill_(7)
    assert all((parameter == 7).all() for parameter in model.parameters())


@pytest.fixture(scope="module", params=["head_size", "n_embd"])
def trained(request: pytest.FixtureRequest) -> LectureGPT:
    """Trained until its attention matters: until then a text cannot tell by what its scores are divided."""
    torch.manual_seed(0)
    characters = sorted(set(PROSE))
    data = torch.tensor([characters.index(character) for character in PROSE])
    oracle = LectureGPT(len(characters), 32, 4, 1, 16, scale=request.param)
    for parameter in oracle.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    oracle.scale = request.param
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=1e-2)
    for _ in range(250):
        at = torch.randint(len(data) - 17, (16, 1)) + torch.arange(17)  # (16, 17)
        loss = F.cross_entropy(oracle(data[at[:, :-1]]).flatten(0, 1), data[at[:, 1:]].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return oracle.eval().double()


def test_the_text_tells_by_what_scores_are_divided(
    trained: LectureGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input.txt").write_text(PROSE, encoding="utf-8", newline="\n")
    folder = import_model(save(trained, tmp_path), tmp_path / "model", text=tmp_path / "input.txt")
    said = capsys.readouterr().err
    assert f"divided by the root of {trained.scale}, as {tmp_path / 'input.txt'} fits best; --attention_scale" in said
    ids = torch.randint(0, 20, (5, 16))
    model = MiniGPTForCausalLM.from_pretrained(folder).eval()
    size = trained.lm_head.out_features
    torch.testing.assert_close(model(ids).logits[..., :size], trained(ids), rtol=1e-10, atol=1e-10)


def test_where_nothing_tells_the_scale_the_choice_is_said(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write_text(TEXT * 100, encoding="utf-8")
    oracle = LectureGPT(8).double()  # which has never seen it
    assert_same_logits(import_model(save(oracle, tmp_path), tmp_path / "model", text=text), oracle)
    assert "divided by the root of head_size, which nothing could tell; --attention_scale" in capsys.readouterr().err
    alone = LectureGPT(8, heads=1).double()
    import_model(save(alone, tmp_path), tmp_path / "alone", text=text)
    assert "divided" not in capsys.readouterr().err  # one head is as wide as the embedding


def drop(*parts: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in LectureGPT(8).state_dict().items() if not any(p in name for p in parts)}


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "heads without a projection": (drop("sa.proj"), r"it lacks blocks\.0\.sa\.proj\.weight; only that"),
    "blocks without norms": (drop(".ln1.", ".ln2."), r"it lacks blocks\.0\.ln1\.weight"),
    "no last norm": (drop("ln_f"), r"it lacks ln_f\.weight"),
    "no blocks": (
        drop("blocks") | {"sa_heads.heads.0.key.weight": torch.zeros(4, 12)},
        r"is not the lecture's finished GPT: it has no matrix blocks\.0\.sa\.heads\.0\.key\.weight; finish the script",
    ),
    "no positions": (drop("position"), r"it has no matrix position_embedding_table\.weight"),
    "one layer": (drop("ffwd.net.2"), r"it lacks blocks\.0\.ffwd\.net\.2\.weight"),
    "a bias of a key": (
        drop() | {"blocks.1.sa.heads.2.key.bias": torch.zeros(4)},
        r"it has blocks\.1\.sa\.heads\.2\.key\.bias, for which there is no place",
    ),
    "a mask of another block": (
        drop() | {"blocks.0.sa.heads.0.tril": torch.ones(4, 4)},
        r"blocks\.0\.sa\.heads\.0\.tril is a mask of \(4, 4\) and there are 8 positions",
    ),
    "heads of two sizes": (
        drop() | {"blocks.1.sa.heads.0.query.weight": torch.zeros(5, 12)},
        r"its blocks\.1\.sa\.heads\.0\.query\.weight is \(5, 12\) and should be \(4, 12\)",
    ),
    "a table that is no bigram": (
        {"token_embedding_table.weight": torch.zeros(8, 12)},
        r"holds weights of another architecture \(token_embedding_table\.weight is one of them\)",
    ),
}


@pytest.mark.parametrize(("weights", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_other_stages_of_the_script_are_refused_by_the_first_weight_that_differs(
    tmp_path: Path, text: Path, weights: dict[str, torch.Tensor], reason: str
) -> None:
    torch.save(weights, tmp_path / "lecture.pt")
    with pytest.raises(UsageError, match=reason):
        import_model(tmp_path / "lecture.pt", tmp_path / "model", text=text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.txt", "lecture.pt"]


def test_a_head_without_bias_and_another_activation_are_taken_as_they_are(tmp_path: Path, text: Path) -> None:
    oracle = LectureGPT(8).double()
    oracle.lm_head.bias = None
    for block in oracle.blocks:
        block.ffwd.net[1] = nn.GELU()
    source = save(oracle, tmp_path)
    folder = import_model(
        source, tmp_path / "model", text=text, attention_scale="head_size", hidden_act="gelu", n_head=3
    )
    assert_same_logits(folder, oracle)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"n_head": 4}, r"has 3 heads; leave --n_head 4 out"),
        ({"attention_scale": "C"}, r"attention_scale is 'C' and can be head_size or n_embd"),
    ],
)
def test_what_contradicts_the_weights_is_refused(
    tmp_path: Path, text: Path, asked: dict[str, object], reason: str
) -> None:
    source = save(LectureGPT(8), tmp_path)
    with pytest.raises(UsageError, match=reason):
        import_model(source, tmp_path / "model", text=text, **asked)


def test_a_bigram_has_no_heads_to_count(tmp_path: Path, text: Path) -> None:
    source = save(LectureBigram(8), tmp_path)
    with pytest.raises(UsageError, match=r"is a bigram, which has no such thing; leave --n_head out"):
        import_model(source, tmp_path / "model", text=text, n_head=2)
