import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    TokenizersBackend,
)

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.errors import UsageError
from minigpt.hub.stock.conversion import ARCHITECTURES, from_stock, import_stock, save_stock, to_stock
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.training.presets import PRESETS
from tests.hub.stock_shapes import BLOCK, GPT2, LLAMA, NANOCHAT, PURE, QWEN3, VOCABULARY, draw_ids, minigpt, sharpen

# The same arithmetic in another order: on the machines that we had, gpt2, llama and qwen3 were equal bit for bit, and
# what remains is nanochat's and nothing but rounding. Logits here are up to 5, where float32 has steps of 5e-7.
ROUNDING = {"atol": 5e-6, "rtol": 0.0}

YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 2.0}}
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 6,
    }
}
NO_WEIGHTS = {"norm_type": "unweighted_rmsnorm"}
NANOGPT = {
    "hidden_act": "gelu",
    "norm_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
EXPRESSIBLE = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, nanoGPT": ("gpt2", {**GPT2, **NANOGPT}),
    "gpt2, all biases": ("gpt2", {**GPT2, "attention_bias": True}),
    "gpt2, keys shared": ("gpt2", {**GPT2, "num_key_value_heads": 2, "attention_bias": True}),
    "gpt2, one key for all": ("gpt2", {**GPT2, "num_key_value_heads": 1}),
    "gpt2, narrow and wide epsilon": ("gpt2", {**GPT2, "intermediate_size": 24, "norm_eps": 0.1}),
    "llama": ("llama", LLAMA),
    "llama, tied, grouped, wide heads": (
        "llama",
        {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 6},
    ),
    "llama, norms without weights": ("llama", {**LLAMA, **NO_WEIGHTS, "norm_eps": 0.1}),
    "llama, all biases": ("llama", {**LLAMA, "attention_bias": True, "attention_output_bias": True, "mlp_bias": True}),
    "llama, output bias alone": ("llama", {**LLAMA, "attention_output_bias": True}),
    "llama, query bias alone": ("llama", {**LLAMA, "attention_bias": True}),
    "llama, yarn": ("llama", {**LLAMA, **YARN}),
    "llama, llama3": ("llama", {**LLAMA, **LLAMA3}),
    "qwen3": ("qwen3", QWEN3),
    "qwen3, window": ("qwen3", {**QWEN3, "sliding_window": 4}),
    "qwen3, window in one layer": (
        "qwen3",
        {**QWEN3, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3, norms without weights": ("qwen3", {**QWEN3, **NO_WEIGHTS, "attention_bias": True, "head_dim": 6}),
    "qwen3, norms without weights after the rotation": ("qwen3", {**QWEN3, **NO_WEIGHTS, "qk_norm": "after_rotary"}),
    "nanochat": ("nanochat", NANOCHAT),
    "nanochat, biases, grouped, wide heads, no cap": (
        "nanochat",
        {
            **NANOCHAT,
            "attention_bias": True,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "final_logit_softcapping": None,
        },
    ),
    "nanochat, norms before the rotation": ("nanochat", {**NANOCHAT, "qk_norm": "before_rotary"}),
}


@pytest.fixture(scope="module", params=EXPRESSIBLE)
def pair(request: pytest.FixtureRequest) -> tuple[MiniGPTForCausalLM, PreTrainedModel]:
    """A MiniGPT and what it became."""
    architecture, fields = EXPRESSIBLE[request.param]
    model = minigpt(**fields)
    return model, to_stock(model, architecture)


def test_the_stock_model_gives_the_same_logits(pair: tuple[MiniGPTForCausalLM, PreTrainedModel]) -> None:
    model, stock = pair
    assert type(stock).__module__.startswith("transformers.models.")
    logits = model(draw_ids()).logits
    assert 1 < logits.abs().amax() < 10
    torch.testing.assert_close(stock(draw_ids()).logits, logits, **ROUNDING)


def test_the_stock_model_writes_the_same_inside_the_block(pair: tuple[MiniGPTForCausalLM, PreTrainedModel]) -> None:
    model, stock = pair
    ids = draw_ids(length=4)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    options = {"attention_mask": mask, "max_length": BLOCK, "do_sample": False, "pad_token_id": 0}
    assert stock.generate(ids, **options).tolist() == model.generate(ids, **options).tolist()


def test_there_and_back_is_the_same_model(pair: tuple[MiniGPTForCausalLM, PreTrainedModel]) -> None:
    model, stock = pair
    torch.testing.assert_close(from_stock(stock)(draw_ids()).logits, model(draw_ids()).logits, **ROUNDING)


def test_a_saved_stock_model_comes_back_whole(pair: tuple[MiniGPTForCausalLM, PreTrainedModel], tmp_path: Path) -> None:
    _, stock = pair
    stock.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(draw_ids()).logits, stock(draw_ids()).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_of_the_pure_family_comes_back_as_it_was(architecture: str) -> None:
    biases = {"attention_bias": True} if architecture == "gpt2" else {}
    config = minigpt(**PURE[architecture], **biases, eos_token_id=3, pad_token_id=5, dropout=0.1).config
    back = from_stock(to_stock(MiniGPTForCausalLM(config), architecture)).config
    ignored = {"residual_init", "embedding_dropout", "dtype"}
    before, after = ({k: v for k, v in c.to_dict().items() if k not in ignored} for c in (config, back))
    assert after == before


IMPOSSIBLE = [
    ("gpt2", {"position_embedding_type": "rope"}),
    ("gpt2", {"norm_type": "rmsnorm"}),
    ("gpt2", {"embedding_norm": True}),
    ("gpt2", {"qk_norm": "before_rotary"}),
    ("gpt2", {"hidden_act": "swiglu"}),
    ("gpt2", {"head_dim": 6}),
    ("gpt2", {"sliding_window": 4}),
    ("gpt2", {"lm_head_bias": True}),
    ("gpt2", {"final_logit_softcapping": 15.0}),
    ("llama", {"position_embedding_type": "learned"}),
    ("llama", {"norm_type": "layernorm"}),
    ("llama", {"embedding_norm": True}),
    ("llama", {"qk_norm": "before_rotary"}),
    ("llama", {"hidden_act": "silu"}),
    ("llama", {"num_attention_heads": 3, "head_dim": 6}),
    ("llama", {"sliding_window": 4}),
    ("llama", {"lm_head_bias": True}),
    ("llama", {"final_logit_softcapping": 15.0}),
    ("qwen3", {"position_embedding_type": "learned"}),
    ("qwen3", {"norm_type": "layernorm"}),
    ("qwen3", {"embedding_norm": True}),
    ("qwen3", {"qk_norm": None}),
    ("qwen3", {"qk_norm": "after_rotary"}),
    ("qwen3", {"qk_norm": "after_rotary", **NO_WEIGHTS, **YARN}),
    ("qwen3", {"hidden_act": "relu2"}),
    ("qwen3", {"mlp_bias": True}),
    ("qwen3", {"lm_head_bias": True}),
    ("qwen3", {"final_logit_softcapping": 15.0}),
    ("nanochat", {"position_embedding_type": "learned"}),
    ("nanochat", {"norm_type": "rmsnorm"}),
    ("nanochat", {"embedding_norm": False}),
    ("nanochat", {"qk_norm": None}),
    ("nanochat", {"qk_norm": "before_rotary", **YARN}),
    ("nanochat", {"hidden_act": "swiglu"}),
    ("nanochat", {"sliding_window": 4}),
    ("nanochat", {"mlp_bias": True}),
    ("nanochat", {"lm_head_bias": True}),
]


@pytest.mark.door(
    "`minigpt export`: the bias of the lecture's head is refused, with presets to train instead", "transformers"
)
@pytest.mark.door("`minigpt export`: what a stock architecture cannot express is refused by name", "transformers")
@pytest.mark.parametrize(("architecture", "change"), IMPOSSIBLE, ids=str)
def test_a_switch_in_the_way_is_named_in_one_sentence(architecture: str, change: dict[str, Any]) -> None:
    switch = next(iter(change))
    with pytest.raises(UsageError) as caught:
        to_stock(minigpt(**{**PURE[architecture], **change}), architecture)
    sentence = str(caught.value)
    assert sentence.startswith(f"{architecture} cannot express ")
    assert f"{switch}={change[switch]!r} (it has " in sentence
    assert sentence.count("(it has ") == 1, "it names a switch that is not in the way"
    assert sentence.endswith(".")
    assert ". " not in sentence


def test_the_lectures_head_is_refused_with_the_presets_to_train_instead() -> None:
    sentence = (
        r"^gpt2 cannot express lm_head_bias=True \(it has False\); no stock architecture has a bias in its head, so "
        r"train --preset nano-cpu or nano, or this model with --lm_head_bias False, and export that --to gpt2\.$"
    )
    lecture = PRESETS["seed"].build_config(vocab_size=VOCABULARY, n_embd=8, n_layer=1)
    with pytest.raises(UsageError, match=sentence):
        to_stock(MiniGPTForCausalLM(lecture), "gpt2")


def test_an_architecture_that_can_is_named_where_the_one_asked_for_cannot() -> None:
    with pytest.raises(UsageError, match=r"; --to gpt2 can\.$"):
        to_stock(minigpt(**GPT2), "llama")


@pytest.mark.parametrize("preset", ["nano-cpu", "nano"])
def test_the_presets_named_there_do_become_gpt2(preset: str) -> None:
    config = PRESETS[preset].build_config(vocab_size=VOCABULARY, n_embd=24, n_layer=2)
    model = sharpen(MiniGPTForCausalLM(config))
    torch.testing.assert_close(to_stock(model, "gpt2")(draw_ids()).logits, model(draw_ids()).logits, **ROUNDING)


def test_a_bigram_and_a_stock_model_are_refused() -> None:
    bigram = BigramForCausalLM(BigramConfig(vocab_size=VOCABULARY))
    stock = to_stock(minigpt(**GPT2), "gpt2")
    for model, reason in ((bigram, "a bigram is one table"), (stock, "this is a GPT2LMHeadModel")):
        with pytest.raises(UsageError, match=reason):
            to_stock(model, "gpt2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_weights_are_copies_in_their_own_dtype_and_chance_is_left_alone(
    architecture: str, dtype: torch.dtype
) -> None:
    model = minigpt(**PURE[architecture]).to(dtype).train()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    chance = torch.random.get_rng_state()
    stock = to_stock(model, architecture)
    back = from_stock(stock)
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert {parameter.dtype for parameter in (*stock.parameters(), *back.parameters())} == {dtype}
    assert stock.training
    assert back.training
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in expected.items())
    for parameter in (*stock.parameters(), *back.parameters()):
        torch.nn.init.zeros_(parameter)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_the_angles_stay_in_float32_at_every_dtype() -> None:
    stock = to_stock(minigpt(**LLAMA).to(torch.bfloat16), "llama")
    assert stock.model.rotary_emb.inv_freq.dtype == torch.float32


def test_how_it_writes_comes_along_within_what_the_stock_model_can() -> None:
    model = minigpt(**GPT2)
    model.generation_config = lecture_generation_config([14, 15, 16], eos_token_id=14, pad_token_id=16)
    stock = to_stock(model, "gpt2").generation_config
    assert (stock.do_sample, stock.top_k, stock.suppress_tokens) == (True, 0, [15, 16])  # 14 is the last choice
    assert (stock.eos_token_id, stock.pad_token_id) == (14, 16)
    assert (stock.max_new_tokens, stock.max_length) == (None, BLOCK)
    assert model.generation_config.max_new_tokens == 500
    assert to_stock(model, "gpt2").generate(draw_ids(1, 4)).shape == (1, BLOCK)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_saved_stock_model_writes_an_untrained_end_only_where_nothing_else_is_allowed(
    architecture: str, tmp_path: Path
) -> None:
    model = minigpt(**{"gpt2": GPT2, "llama": LLAMA}[architecture])
    model.generation_config = lecture_generation_config([14, 15, 16], eos_token_id=14, pad_token_id=16)
    to_stock(model, architecture).save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = draw_ids(1, 4) % 14

    def only_the_end(row: int, ids: torch.Tensor) -> list[int]:
        return [1, 2] if len(ids) < 6 else [14]

    for do_sample in (True, False):
        ended = stock.generate(prompt, do_sample=do_sample, prefix_allowed_tokens_fn=only_the_end)
        assert ended.shape == (1, 7)
        assert ended[0, -1] == 14
    torch.manual_seed(0)
    free = stock.generate(prompt)
    torch.manual_seed(0)
    held_back = stock.generate(prompt, suppress_tokens=[14, 15, 16], sequence_bias=None, eos_token_id=None)
    assert free.tolist() == held_back.tolist()
    assert from_stock(stock).generation_config.suppress_tokens == [14, 15, 16]  # what `minigpt finetune` looks at
    assert from_stock(stock).generation_config.sequence_bias is None
    answer = stock.generate_batch(
        prompt.tolist(),
        generation_config=GenerationConfig.from_pretrained(
            tmp_path, do_sample=False, max_new_tokens=5, max_length=None
        ),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32),
        warmup=False,
    )
    assert (
        next(iter(answer.values())).generated_tokens
        == stock.generate(prompt, do_sample=False, max_new_tokens=5, max_length=None)[0, 4:].tolist()
    )


def test_a_rolling_window_goes_on_past_the_block_and_so_does_its_qwen3() -> None:
    model = minigpt(**QWEN3, sliding_window=4)
    model.generation_config = lecture_generation_config([], pad_token_id=16)
    stock = to_stock(model, "qwen3")
    assert stock.generation_config.max_new_tokens == 500
    options = {"max_new_tokens": 3 * BLOCK, "do_sample": False}
    assert stock.generate(draw_ids(1, 4), **options).tolist() == model.generate(draw_ids(1, 4), **options).tolist()


def test_dropout_that_a_stock_model_has_no_place_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stock = to_stock(minigpt(**GPT2, dropout=0.1, embedding_dropout=0.2), "gpt2")
        assert not caplog.records
        assert (stock.config.resid_pdrop, stock.config.attn_pdrop, stock.config.embd_pdrop) == (0.1, 0.1, 0.2)
        assert to_stock(minigpt(**LLAMA, dropout=0.1), "llama").config.attention_dropout == 0.1
    assert "dropout 0.1 on residual branches" in caplog.text


# The way back, for what a MiniGPT never is when it sets out.


def gpt2(**fields: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": BLOCK}
    return sharpen(GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": None, "eos_token_id": None, **fields})))


def llama_like(config_class: type, model_class: type, **fields: Any) -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": BLOCK}
    ids = {"bos_token_id": None, "eos_token_id": None}
    return sharpen(model_class(config_class(**{**sizes, **ids, **fields})))


STOCK = {
    "scores divided by the layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "scores not divided": lambda: gpt2(scale_attn_weights=False),
    "scores in float32": lambda: gpt2(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
    "another width and activation": lambda: gpt2(n_inner=20, activation_function="relu"),
    "a head of its own": lambda: gpt2(tie_word_embeddings=False),
    "linear": lambda: llama_like(
        LlamaConfig, LlamaForCausalLM, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "swish": lambda: llama_like(LlamaConfig, LlamaForCausalLM, hidden_act="swish", mlp_bias=True),
    "a window that no layer uses": lambda: llama_like(
        Qwen3Config, Qwen3ForCausalLM, head_dim=8, use_sliding_window=True, sliding_window=99, max_window_layers=2
    ),
}


@pytest.mark.door("GPT-2, Llama, Qwen3 and nanochat models made MiniGPTs: equal logits", "transformers")
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_stock_models_variants_give_the_same_logits_as_a_minigpt(name: str, implementation: str) -> None:
    stock = STOCK[name]()
    model = from_stock(stock)
    for one in (stock, model):
        one.set_attn_implementation(implementation)
    torch.testing.assert_close(model(draw_ids()).logits, stock(draw_ids()).logits, **ROUNDING)


@pytest.mark.door("A stock model made a MiniGPT, and made a stock model again: the same weights", "transformers")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_stock_model_comes_back_weight_for_weight(architecture: str) -> None:
    stock = sharpen(to_stock(minigpt(**PURE[architecture], num_key_value_heads=4), architecture))
    again = to_stock(from_stock(stock), architecture)
    assert type(again) is type(stock)
    assert again.config.to_dict() == stock.config.to_dict()
    weights = again.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in stock.state_dict().items())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: gpt2(add_cross_attention=True), r"add_cross_attention=True \(it has False\)"),
        (
            lambda: llama_like(LlamaConfig, LlamaForCausalLM, hidden_act="gelu"),
            r"hidden_act='gelu' \(it has 'silu' or 'swish'\)",
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=5, hidden_size=8, n_layer=1, n_head=2)),
            "a model of the type bloom cannot become a MiniGPT; one of gpt2, llama, qwen3, nanochat can",
        ),
        (
            lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2)),
            "a GPT2ForSequenceClassification cannot become a MiniGPT; load it as GPT2LMHeadModel",
        ),
    ],
    ids=["cross-attention", "gelu gate", "bloom", "classifier"],
)
def test_what_a_minigpt_cannot_be_is_refused_by_name(build: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        from_stock(build())


def test_a_rotary_scaling_that_a_minigpt_lacks_is_refused_by_name() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(StrictDataclassError, match=r"rope_type must be one of .*'dynamic'"):
        from_stock(llama_like(LlamaConfig, LlamaForCausalLM, rope_parameters=parameters))


def test_dropouts_that_a_minigpt_has_no_place_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert from_stock(gpt2(resid_pdrop=0.1, attn_pdrop=0.1, embd_pdrop=0.3)).config.embedding_dropout == 0.3
        assert not caplog.records
        assert from_stock(gpt2(resid_pdrop=0.2, attn_pdrop=0.1)).config.dropout == 0.2
        from_stock(llama_like(LlamaConfig, LlamaForCausalLM, attention_dropout=0.1))
    assert "resid_pdrop 0.2 is kept and attn_pdrop 0.1 is not" in caplog.text
    assert "attention_dropout 0.1 acts on the residual branches too" in caplog.text


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stock GPT-2's folder as other people write it, with a tokenizer of its own kind."""
    stock = gpt2(eos_token_id=15, bos_token_id=15)
    stock.generation_config.do_sample = True
    stock.save_pretrained(tmp_path)
    letters = {letter: index for index, letter in enumerate("abcdefghijklmno")} | {"<|endoftext|>": 15, "ab": 16}
    backend = Tokenizer(models.BPE(letters, [("a", "b")]))
    TokenizersBackend(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_imported_with_its_tokenizer_its_ids_and_how_it_writes(folder: Path) -> None:
    model, tokenizer = import_stock(folder)
    stock = GPT2LMHeadModel.from_pretrained(folder)
    torch.testing.assert_close(model(draw_ids()).logits, stock(draw_ids()).logits, **ROUNDING)
    assert tokenizer("cab")["input_ids"] == [2, 16]
    assert (model.config.eos_token_id, model.config.bos_token_id, tokenizer.eos_token_id) == (15, 15, 15)
    assert model.generation_config.to_dict() == stock.generation_config.to_dict()


def test_weights_that_are_missing_or_too_many_are_named(folder: Path) -> None:
    config = GPT2Config.from_pretrained(folder)
    config.n_layer = 3
    config.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"\(transformer\.h\.2\.\S+, .* and 9 more are missing\)"):
        import_stock(folder)


def test_quantized_weights_and_other_architectures_are_refused_before_they_are_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1), encoding="utf-8")
    with pytest.raises(UsageError, match="are quantized"):
        import_stock(folder)
    config.write_text(text.replace('"gpt2"', '"bloom"'), encoding="utf-8")
    with pytest.raises(UsageError, match="a model of the type bloom cannot"):
        import_stock(folder)
    config.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot be opened \(Error no file named model.safetensors"):
        import_stock(folder)
    config.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.json is not JSON"):
        import_stock(folder)


def test_a_name_that_is_nothing_is_one_sentence() -> None:
    with pytest.raises(OSError, match=r"^nobody/nothing is neither a folder nor a model that the Hub gives out"):
        import_stock("nobody/nothing")


def test_a_tokenizer_from_elsewhere_is_taken_and_must_fit(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("tokenizer")
    MiniGPTTokenizer.from_text("abc").save_pretrained(other)
    _, tokenizer = import_stock(folder, other)
    assert tokenizer.decode([0, 1]) == "ab"
    MiniGPTTokenizer.from_text("abcdefghijklmnopqrst").save_pretrained(other)
    with pytest.raises(ValueError, match="largest id is 22 and the model knows 17"):
        import_stock(folder, other)


def test_an_exported_repository_names_no_code_of_ours(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text("abcdefghijklmn")
    save_stock(to_stock(minigpt(**GPT2), "gpt2"), tokenizer, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    written = "".join(path.read_text(encoding="utf-8").lower() for path in tmp_path.glob("*.json"))
    assert "auto_map" not in written
    assert "minigpt" not in written
