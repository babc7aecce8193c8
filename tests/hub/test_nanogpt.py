"""nanoGPT's checkpoints become MiniGPTs that compute what nanoGPT computes."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.errors import UsageError
from minigpt.hub.importing.sources import import_model
from tests.hub.foreign_models import NanoGPT, save_nanogpt, sharpen, write

# In an order that no sorting gives: the ids have to be kept.
CHARACTERS = list("wher tofa\nm")
DOOR = pytest.mark.door(
    "`minigpt import ckpt.pt`: nanoGPT's checkpoints, with and without bias, compiled, by characters: equal logits",
    "torch",
    "transformers",
)


def save_meta(folder: Path, characters: list[str] = CHARACTERS) -> Path:
    path = folder / "meta.pkl"
    stoi = {character: index for index, character in enumerate(characters)}
    path.write_bytes(pickle.dumps({"vocab_size": len(stoi), "itos": dict(enumerate(characters)), "stoi": stoi}))
    return path


def assert_same_logits(folder: Path, oracle: NanoGPT, **tolerance: float) -> MiniGPTForCausalLM:
    """In the oracle's precision; at double, nothing but the same arithmetic is this equal."""
    model = MiniGPTForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, oracle.arguments["vocab_size"], (5, oracle.block_size))
    tolerance = tolerance or {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(model(ids).logits[..., : oracle.arguments["vocab_size"]], oracle(ids), **tolerance)
    return model


@DOOR
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_logits_equal_nanogpts_on_the_old_ids(tmp_path: Path, bias: bool, prefix: str) -> None:
    oracle = NanoGPT(bias=bias, dropout=0.2).double()
    meta = save_meta(tmp_path)
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt", prefix), tmp_path / "model", meta=meta)
    model = assert_same_logits(folder, oracle)
    assert model.config.vocab_size == 11 + 3
    assert (model.config.dropout, model.config.embedding_dropout) == (0.2, 0.2)
    assert model.config.attention_bias == model.config.norm_bias == bias


def test_single_precision_stays_and_its_logits_are_equal(tmp_path: Path) -> None:
    oracle = NanoGPT()
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", meta=save_meta(tmp_path))
    model = assert_same_logits(folder, oracle, rtol=1e-5, atol=1e-5)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    oracle = NanoGPT().to(dtype)
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", meta=save_meta(tmp_path))
    model = MiniGPTForCausalLM.from_pretrained(folder)
    assert model.dtype == dtype
    assert torch.equal(model.model.layers[1].self_attn.qkv_proj.weight, oracle.transformer.h[1].attn.c_attn.weight)


def test_greedy_text_equals_nanogpts_past_the_block_and_through_the_tokenizer(tmp_path: Path) -> None:
    oracle = sharpen(NanoGPT(tied=False), std=1.0).double()
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", meta=save_meta(tmp_path))
    model, tokenizer = MiniGPTForCausalLM.from_pretrained(folder), MiniGPTTokenizer.from_pretrained(folder)
    inputs = tokenizer("where", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[CHARACTERS.index(character) for character in "where"]]
    written = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0].tolist()
    assert written == write(oracle, inputs["input_ids"][0].tolist(), 40)
    assert len(set(written[-30:])) > 2
    assert tokenizer.decode(written) == "".join(CHARACTERS[index] for index in written)


def test_new_tokens_are_never_written_before_they_are_trained(tmp_path: Path) -> None:
    checkpoint = save_nanogpt(NanoGPT(), tmp_path / "ckpt.pt")
    folder = import_model(checkpoint, tmp_path / "model", meta=save_meta(tmp_path))
    model, tokenizer = MiniGPTForCausalLM.from_pretrained(folder), MiniGPTTokenizer.from_pretrained(folder)
    torch.nn.init.zeros_(model.lm_head.weight)  # every token is as likely as every other
    written = model.generate(torch.tensor([[0]]), attention_mask=torch.ones(1, 1), max_new_tokens=300)[0]
    assert set(written.tolist()) == set(range(11))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 11


def test_masks_among_the_weights_are_no_weights(tmp_path: Path) -> None:
    oracle = NanoGPT(masks=True).double()
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", meta=save_meta(tmp_path))
    assert_same_logits(folder, oracle)


def test_checkpoints_from_before_the_bias_argument_have_the_gelu_of_their_time(tmp_path: Path) -> None:
    oracle = NanoGPT(bias=True, gelu="tanh", tied=False, masks=True).double()
    del oracle.arguments["bias"]
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", meta=save_meta(tmp_path))
    assert assert_same_logits(folder, oracle).config.hidden_act == "gelu_new"


class NewGELU(torch.nn.Module):
    """GELU as minGPT computes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mingpt() -> NanoGPT:
    oracle = NanoGPT(bias=True, tied=False, masks=True)
    for block in oracle.transformer.h:
        block.mlp.gelu = NewGELU()
    return oracle.double()


def test_mingpts_weights_have_its_gelu(tmp_path: Path) -> None:
    oracle = mingpt()
    torch.save(oracle.state_dict(), tmp_path / "model.pt")
    import_as = {"meta": save_meta(tmp_path), "n_head": 3}
    assert_same_logits(import_model(tmp_path / "model.pt", tmp_path / "model", **import_as), oracle)
    exact = import_model(tmp_path / "model.pt", tmp_path / "exact", **import_as, hidden_act="gelu")
    with pytest.raises(AssertionError):
        assert_same_logits(exact, oracle)


@pytest.mark.parametrize("fields", [{"masks": True}, {"tied": False}], ids=["tied", "without masks"])
def test_weights_that_only_look_a_little_like_mingpts_have_nanogpts_gelu(tmp_path: Path, fields: Any) -> None:
    oracle = NanoGPT(bias=True, **fields).double()
    torch.save(oracle.state_dict(), tmp_path / "model.pt")
    folder = import_model(tmp_path / "model.pt", tmp_path / "model", meta=save_meta(tmp_path), n_head=3)
    assert_same_logits(folder, oracle)


def test_an_activation_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    oracle = NanoGPT(gelu="tanh").double()
    checkpoint, meta = save_nanogpt(oracle, tmp_path / "ckpt.pt"), save_meta(tmp_path)
    assert_same_logits(import_model(checkpoint, tmp_path / "asked", meta=meta, hidden_act="gelu_new"), oracle)
    with pytest.raises(AssertionError):
        assert_same_logits(import_model(checkpoint, tmp_path / "not", meta=meta), oracle)


@pytest.mark.parametrize("kind", ["bare", "safetensors", "safetensors without the head", "under a name"])
def test_weights_alone_are_imported_when_the_heads_are_counted(tmp_path: Path, kind: str) -> None:
    oracle = NanoGPT(bias=True).double()
    weights = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    source = tmp_path / ("weights.safetensors" if "safetensors" in kind else "weights.pt")
    if kind == "safetensors without the head":
        del weights["lm_head.weight"]
    if "safetensors" in kind:
        save_file(weights, source)
    else:
        torch.save({"model_state_dict": weights, "epoch": 3} if kind == "under a name" else weights, source)
    meta = save_meta(tmp_path)
    with pytest.raises(UsageError, match=r"holds weights alone, which do not say how many heads .*; give --n_head"):
        import_model(source, tmp_path / "model", meta=meta)
    model = assert_same_logits(import_model(source, tmp_path / "model", meta=meta, n_head=3), oracle)
    assert model.config.tie_word_embeddings


GPT2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=3, n_embd=12, n_positions=8, vocab_size=11))


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in NanoGPT().state_dict().items() if key != name}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a weight is missing": (
        {"model": without("transformer.h.1.ln_2.weight")},
        r"is not nanoGPT's GPT: it lacks transformer\.h\.1\.ln_2\.weight; only that",
    ),
    "a layer is missing": (
        {"model": {key: tensor for key, tensor in NanoGPT().state_dict().items() if ".h.1." not in key}},
        r"contradicts itself: its model_args say n_layer=2 and its weights n_layer=1",
    ),
    "the embedding is missing": (
        {"model": {key: tensor for key, tensor in NanoGPT().state_dict().items() if ".h." in key or ".wpe." in key}},
        r"it has no matrix transformer\.wte\.weight",
    ),
    "a weight too many": (
        {"model": NanoGPT().state_dict() | {"transformer.h.0.attn.rotary.weight": torch.zeros(2)}},
        r"it has transformer\.h\.0\.attn\.rotary\.weight, for which there is no place",
    ),
    "a weight of another shape": (
        {"model": NanoGPT().state_dict() | {"transformer.h.0.ln_1.weight": torch.zeros(5)}},
        r"its transformer\.h\.0\.ln_1\.weight is \(5,\) and should be \(12,\)",
    ),
    "a mask of another block": (
        {"model": NanoGPT().state_dict() | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}},
        r"attn\.bias is a mask of \(1, 1, 4, 4\) and there are 8 positions",
    ),
    "other sizes than it says": (
        {"model_args": NanoGPT().arguments | {"block_size": 16}},
        r"its model_args say block_size=16 and its weights block_size=8",
    ),
    "heads that do not divide": (
        {"model_args": NanoGPT().arguments | {"n_head": 5}},
        r"which n_head=5 does not divide; save the",
    ),
    "heads that are no number": (
        {"model_args": NanoGPT().arguments | {"n_head": True}},
        r"which n_head=True does not divide",
    ),
    "an argument of a fork": (
        {"model_args": NanoGPT().arguments | {"use_relu": True}},
        r"has 'use_relu' in its model_args, which nanoGPT's GPT does not know; where it changes nothing",
    ),
    "arguments that are none": ({"model_args": "n_head=3"}, r"its model_args are a str"),
    "dropout that is none": ({"model_args": NanoGPT().arguments | {"dropout": "0.1"}}, r"dropout"),
    "no weights": ({"model": None}, r"holds no weights \('model', 'optimizer', 'model_args', 'iter_num', 'best_val"),
    "transformers' GPT-2": (
        {"model": GPT2.state_dict()},
        r"holds the weights of transformers' GPT-2, whose matrices are the other way round; import the folder",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_nanogpts_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    checkpoint, meta = save_nanogpt(NanoGPT(), tmp_path / "ckpt.pt", **changes), save_meta(tmp_path)
    with pytest.raises((UsageError, StrictDataclassError), match=reason):
        import_model(checkpoint, tmp_path / "runs" / "model", meta=meta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "meta.pkl"]


def test_heads_said_twice_must_agree(tmp_path: Path) -> None:
    checkpoint, meta = save_nanogpt(NanoGPT(), tmp_path / "ckpt.pt"), save_meta(tmp_path)
    import_model(checkpoint, tmp_path / "model", meta=meta, n_head=3)
    with pytest.raises(UsageError, match="has n_head=3; leave --n_head 4 out"):
        import_model(checkpoint, tmp_path / "other", meta=meta, n_head=4)


def test_a_scale_is_not_nanogpts_to_choose(tmp_path: Path) -> None:
    checkpoint, meta = save_nanogpt(NanoGPT(), tmp_path / "ckpt.pt"), save_meta(tmp_path)
    with pytest.raises(UsageError, match="leave --attention_scale out"):
        import_model(checkpoint, tmp_path / "model", meta=meta, attention_scale="n_embd")
