"""The textbook GPT and the fast one compute the same, and the textbook says so where they would not."""

import math

import pytest
import torch
from torch import nn

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM, MiniGPTForTokenClassification
from minigpt.modeling_minigpt.textbook import Block, FeedForward, Head, MultiHeadAttention, TextbookGPT

LECTURE = {"vocab_size": 11, "n_embd": 24, "n_head": 3, "n_layer": 2, "block_size": 8}


def sharp_gpt(std=0.3, **config):
    """A model whose attention is far from even: with small weights an error in it would hide."""
    torch.manual_seed(0)
    model = MiniGPTForCausalLM(MiniGPTConfig(**{**LECTURE, **config}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()


def some_ids(time=8, batch=3):
    return torch.randint(LECTURE["vocab_size"], (batch, time))


@pytest.mark.parametrize("time", [1, 5, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_loss_equal_the_fast_models(time, attention):
    model = sharp_gpt(attn_implementation=attention)
    textbook = TextbookGPT.from_minigpt(model)
    ids, targets = some_ids(time), some_ids(time)

    logits, loss = textbook(ids, targets)
    expected = model(ids, labels=targets, shift_labels=targets)

    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


def test_gradients_equal_the_fast_models():
    model = sharp_gpt()
    textbook = TextbookGPT.from_minigpt(model)
    ids, targets = some_ids(), some_ids()
    model(ids, labels=targets, shift_labels=targets).loss.backward()
    textbook(ids, targets)[1].backward()

    pairs = {
        model.model.embed_tokens: textbook.token_embedding_table,
        model.model.embed_positions: textbook.position_embedding_table,
        model.model.norm: textbook.ln_f,
        model.lm_head: textbook.lm_head,
    }
    for layer, block in zip(model.model.layers, textbook.blocks, strict=True):
        pairs[layer.input_layernorm] = block.ln1
        pairs[layer.self_attn.o_proj] = block.sa.proj
        pairs[layer.post_attention_layernorm] = block.ln2
        pairs[layer.mlp.up_proj], pairs[layer.mlp.down_proj] = block.ffwd.net[0], block.ffwd.net[2]
        heads = block.sa.heads
        rows = [getattr(head, name).weight.grad for name in ("query", "key", "value") for head in heads]
        torch.testing.assert_close(torch.cat(rows), layer.self_attn.qkv_proj.weight.grad, rtol=1e-4, atol=1e-4)
    for fast, spelled_out in pairs.items():
        expected = {name: parameter.grad for name, parameter in fast.named_parameters()}
        gradients = {name: parameter.grad for name, parameter in spelled_out.named_parameters()}
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
    compared = sum(1 for module in pairs for _ in module.parameters()) + model.config.n_layer
    assert compared == sum(1 for _ in model.parameters())


def test_both_have_the_same_number_of_weights():
    model = sharp_gpt()

    count = sum(parameter.numel() for parameter in TextbookGPT.from_minigpt(model).parameters())

    assert count == model.num_parameters()


def test_weights_are_copies():
    model = sharp_gpt()
    textbook = TextbookGPT.from_minigpt(model)

    for parameter in model.parameters():
        nn.init.zeros_(parameter)

    assert all(parameter.any() for parameter in textbook.parameters())


def test_defaults_of_both_are_the_same_shape():
    textbook = TextbookGPT.from_minigpt(MiniGPTForCausalLM(MiniGPTConfig()))

    shapes = {name: tensor.shape for name, tensor in TextbookGPT().state_dict().items()}

    assert shapes == {name: tensor.shape for name, tensor in textbook.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_dropout_mode_and_precision_are_taken_over(training):
    textbook = TextbookGPT.from_minigpt(sharp_gpt(dropout=0.25).double().train(training))

    assert {module.p for module in textbook.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert {parameter.dtype for parameter in textbook.parameters()} == {torch.float64}
    assert textbook.training is training


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("prompt_length", [1, 5, 20])
def test_generate_equals_the_fast_models_past_the_block(do_sample, prompt_length):
    model = sharp_gpt(std=1.0).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)  # or the greedy text is one character for ever, which any model equals
    textbook = TextbookGPT.from_minigpt(model)
    prompt = some_ids(prompt_length, batch=2)

    torch.manual_seed(5)
    spelled_out = textbook.generate(prompt, 30, do_sample=do_sample)
    torch.manual_seed(5)
    fast = model.generate(prompt, max_new_tokens=30, do_sample=do_sample, top_k=0)

    assert spelled_out.tolist() == fast.tolist()
    assert len(set(spelled_out[0, -10:].tolist())) > 1


def test_generate_draws_from_the_generator_it_is_given():
    textbook = TextbookGPT.from_minigpt(sharp_gpt())
    prompt = torch.tensor([[0]])

    texts = [textbook.generate(prompt, 20, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)]

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_head_attends_evenly_to_the_past_when_nothing_is_looked_for():
    head = Head(n_embd=2, head_size=2, block_size=4, dropout=0.0)
    nn.init.zeros_(head.query.weight)
    nn.init.eye_(head.value.weight)
    x = torch.tensor([[[1.0, 0.0], [3.0, 6.0], [5.0, 3.0]]])

    # Each row is the mean of the rows up to it.
    torch.testing.assert_close(head(x), torch.tensor([[[1.0, 0.0], [2.0, 3.0], [3.0, 3.0]]]))


def test_head_weighs_by_the_scaled_dot_product():
    head = Head(n_embd=4, head_size=4, block_size=2, dropout=0.0)
    for linear in (head.query, head.key, head.value):
        nn.init.eye_(linear.weight)
    first, second = torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])

    # The second token's affinities: 2 to the first, 2 to itself, halved by the root of four features: even again.
    torch.testing.assert_close(head(torch.stack((first, second))[None])[0, 1], (first + second) / 2)
    # Twice as long, 8 to itself and 4 to the first, halved: a difference of 2.
    weight = 1 / (1 + math.exp(-2))
    found = head(torch.stack((first, 2 * second))[None])[0, 1]
    torch.testing.assert_close(found, (1 - weight) * first + weight * 2 * second)


def test_no_character_sees_the_future():
    textbook = TextbookGPT.from_minigpt(sharp_gpt())
    ids = some_ids()
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % LECTURE["vocab_size"]

    logits, other = textbook(ids)[0], textbook(changed)[0]

    torch.testing.assert_close(logits[:, :5], other[:, :5], rtol=0, atol=1e-6)
    assert not torch.allclose(logits[:, 5:], other[:, 5:])


def test_parts_keep_the_shape_that_runs_through_them():
    x = torch.randn(2, 5, 12)
    parts = (MultiHeadAttention(12, 3, 8, 0.1), FeedForward(12, 0.1), Block(12, 3, 8, 0.1))

    assert [part(x).shape for part in parts] == [x.shape] * 3


def test_loss_falls_when_the_textbook_trains():
    torch.manual_seed(0)
    textbook = TextbookGPT(vocab_size=5, n_embd=16, n_head=2, n_layer=1, block_size=8)
    optimizer = torch.optim.AdamW(textbook.parameters(), lr=1e-2)
    ids = torch.arange(9).repeat(4, 1) % 5
    first = textbook(ids[:, :-1], ids[:, 1:])[1].item()

    for _ in range(60):
        optimizer.zero_grad()
        loss = textbook(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        optimizer.step()

    assert first == pytest.approx(math.log(5), abs=0.1)
    assert loss.item() < 0.1


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"n_embd \(10\) must be a multiple of n_head \(4\)"):
        TextbookGPT(n_embd=10, n_head=4)


OTHER_SHAPES = [
    {"position_embedding_type": "rope"},
    {"norm_type": "rmsnorm"},
    {"norm_type": "unweighted_rmsnorm"},
    {"norm_eps": 1e-6},
    {"norm_bias": False},
    {"embedding_norm": True},
    {"qk_norm": "before_rotary"},
    {"qk_norm": "after_rotary"},
    {"hidden_act": "gelu"},
    {"hidden_act": "swiglu"},
    {"num_key_value_heads": 1},
    {"head_dim": 4},
    {"intermediate_size": 48},
    {"attention_bias": True},
    {"attention_output_bias": False},
    {"mlp_bias": False},
    {"lm_head_bias": False},
    {"tie_word_embeddings": True},
    {"final_logit_softcapping": 15.0},
    {"embedding_dropout": 0.1},
    {"sliding_window": 4},
]
# These change nothing that the textbook would have to do otherwise.
SAME_SHAPE = {
    "vocab_size": 7,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 5,
    "dropout": 0.2,
    "classifier_dropout": 0.1,
    "initializer_range": 0.1,
    "residual_init": "scaled",
    "rope_parameters": None,
    "layer_types": ["full_attention"],
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


@pytest.mark.parametrize("shape", OTHER_SHAPES, ids=str)
def test_another_shape_is_refused_naming_the_switch_and_its_value(shape):
    [(switch, value)] = shape.items()
    model = MiniGPTForCausalLM(MiniGPTConfig(**{**LECTURE, **shape}))

    with pytest.raises(ValueError, match=f"^{switch}={value!r} is not the lecture's GPT, which has"):
        TextbookGPT.from_minigpt(model)


def test_head_dim_that_only_rounding_hides_is_refused():
    model = MiniGPTForCausalLM(MiniGPTConfig(n_embd=10, n_head=4, head_dim=2))

    with pytest.raises(ValueError, match="must be a multiple of n_head"):
        TextbookGPT.from_minigpt(model)


def test_switches_that_leave_the_shape_alone_are_accepted():
    model = MiniGPTForCausalLM(MiniGPTConfig(**SAME_SHAPE)).eval()
    ids = torch.tensor([[1, 2, 3]])

    logits = TextbookGPT.from_minigpt(model)(ids)[0]

    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_every_switch_of_the_configuration_is_decided_on():
    switches = set(MiniGPTConfig.__annotations__)
    refused = {switch for shape in OTHER_SHAPES for switch in shape}

    assert switches - refused - set(SAME_SHAPE) == set()


@pytest.mark.parametrize(
    "model",
    [
        MiniGPTForTokenClassification(MiniGPTConfig(**LECTURE)),
        BigramForCausalLM(BigramConfig(vocab_size=5)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_another_model_is_refused_by_name(model):
    with pytest.raises(ValueError, match=f"got a {type(model).__name__}"):
        TextbookGPT.from_minigpt(model)
