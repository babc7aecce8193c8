"""What trainers, compilers and memory savers ask of a model."""

import inspect

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, StaticCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_pt_utils import get_parameter_names

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import (
    MiniGPTBlock,
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTForTokenClassification,
    MiniGPTModel,
)

ROPE = {"position_embedding_type": "rope"}
VARIANTS = {
    "lecture": {},
    "modern": {
        **ROPE,
        "norm_type": "rmsnorm",
        "qk_norm": "before_rotary",
        "hidden_act": "swiglu",
        "num_key_value_heads": 2,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
        "final_logit_softcapping": 10.0,
    },
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture
def ids(draw_ids):
    return draw_ids(3, 10)


def cross_entropy_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The negative log-probability of each target that is not -100, one by one."""
    losses = [
        -(row[target] - row.exp().sum().log())
        for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True)
        if target != -100
    ]
    return torch.stack(losses)


# The loss.


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token(build, ids):
    outputs = build()(ids, labels=ids)
    torch.testing.assert_close(outputs.loss, cross_entropy_by_hand(outputs.logits[:, :-1], ids[:, 1:]).mean())


def test_labels_of_minus_100_count_for_nothing(build, ids):
    labels = ids.masked_fill(torch.arange(10) < 6, -100)
    outputs = build()(ids, labels=labels)
    losses = cross_entropy_by_hand(outputs.logits[:, :-1], labels[:, 1:])
    assert len(losses) == 3 * 4
    torch.testing.assert_close(outputs.loss, losses.mean())


def test_shift_labels_are_the_targets_themselves(build, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()
    outputs = build()(inputs, labels=targets, shift_labels=targets)
    losses = cross_entropy_by_hand(outputs.logits, targets)
    assert len(losses) == 27
    torch.testing.assert_close(outputs.loss, losses.mean())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_loss_is_a_sum_over_the_number_of_items_of_the_whole_batch(build, ids, as_tensor):
    items = torch.tensor(80) if as_tensor else 80
    outputs = build()(ids, labels=ids, num_items_in_batch=items)
    torch.testing.assert_close(outputs.loss, cross_entropy_by_hand(outputs.logits[:, :-1], ids[:, 1:]).sum() / 80)


def test_accumulated_pieces_give_the_whole_batchs_gradient(build, ids):
    gradients = []
    for pieces in (ids.split(3), ids.split(1)):
        model = build()
        for piece in pieces:
            model(piece, labels=piece, num_items_in_batch=27).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_a_loss_of_ones_own_gets_every_argument(build, ids):
    model, seen = build(), {}

    def loss_function(logits, labels, vocab_size, **kwargs):
        seen.update(kwargs, vocab_size=vocab_size)
        return logits.sum()

    model.loss_function = loss_function
    model(ids, labels=ids, num_items_in_batch=3, colour="blue")
    assert seen["vocab_size"] == 17
    assert (seen["num_items_in_batch"], seen["colour"]) == (3, "blue")


def test_without_labels_there_is_no_loss(build, ids):
    assert build()(ids).loss is None


# Inputs and outputs.


def test_inputs_embeds_equal_input_ids(build, ids, variant):
    model = build(**variant)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


@pytest.mark.parametrize("model_class", [MiniGPTModel, MiniGPTForCausalLM])
def test_both_inputs_or_none_are_refused(build, ids, model_class):
    model = build(model_class)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": torch.zeros(3, 10, 16)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_positions_of_other_tokens_are_refused(build, ids):
    with pytest.raises(ValueError, match="10 position_ids were given for 1 tokens; give one for each token"):
        build()(ids[:, :1], position_ids=torch.arange(10)[None])


@pytest.mark.parametrize(
    ("keep", "positions"),
    [(0, slice(None)), (1, slice(-1, None)), (4, slice(-4, None)), (torch.tensor([1, 7, 2]), [1, 7, 2])],
)
def test_only_the_logits_asked_for_are_computed(build, ids, keep, positions):
    model, rows = build(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    expected = model(ids).logits[:, positions]
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, expected)
    assert rows[-1] == expected.shape[1]


def test_a_tuple_is_returned_where_one_is_wanted(build, ids):
    model = build()
    outputs = model(ids, labels=ids)
    loss, logits, cache = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(logits, outputs.logits)
    assert cache.get_seq_length() == 10


def test_soft_capped_logits_stay_inside_the_cap(build, ids):
    capped, free = build(final_logit_softcapping=3)(ids).logits, build()(ids).logits
    assert free.abs().amax() > 3 > capped.abs().amax()
    torch.testing.assert_close(capped, 3 * (free / 3).tanh())


# Dropout.


def test_dropout_is_in_both_residual_branches(build, ids):
    """With almost everything dropped, the blocks add nothing, and the embeddings go straight to the head."""
    model = build(dropout=1 - 1e-7).train()
    embeddings = model.model.embed_tokens(ids) + model.model.embed_positions.weight[:10]
    torch.testing.assert_close(model(ids).logits, model.lm_head(model.model.norm(embeddings)))


def test_embedding_dropout_is_on_the_embeddings_alone(build, ids):
    model = build(embedding_dropout=1 - 1e-7).train()
    states = model(ids, output_hidden_states=True).hidden_states
    assert states[0].count_nonzero() == 0
    assert states[1].count_nonzero() > 0


def test_there_is_no_dropout_in_evaluation(build, ids):
    fields = {"dropout": 0.5, "embedding_dropout": 0.5}
    assert torch.equal(build(**fields)(ids).logits, build()(ids).logits)
    trained = build(**fields).train()
    assert not torch.equal(trained(ids).logits, trained(ids).logits)


# Gradient checkpointing.


def gradients_of(model, ids, **kwargs) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model.train()(ids, labels=ids, **kwargs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_changes_no_gradient(build, ids, variant, dropout, use_reentrant):
    expected = gradients_of(build(**variant, dropout=dropout), ids)
    model = build(**variant, dropout=dropout)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    passes = []
    model.model.layers[0].self_attn.qkv_proj.register_forward_hook(lambda *args: passes.append(1))
    torch.testing.assert_close(gradients_of(model, ids), expected)
    assert len(passes) == 2


def test_gradient_checkpointing_keeps_no_cache(build, ids):
    model = build().train()
    model.activation_checkpointing_enable()
    outputs = model(ids, labels=ids, use_cache=True)
    outputs.loss.backward()
    assert outputs.past_key_values is None or outputs.past_key_values.get_seq_length() == 0


def test_gradient_checkpointing_can_be_switched_off(build, ids):
    model = build()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_checkpointed_adapters_learn_though_the_embeddings_are_frozen(build, ids):
    for use_reentrant in (False, True):
        model = build().train()
        model.requires_grad_(False)
        model.model.layers[0].mlp.up_proj.weight.requires_grad_()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model(ids, labels=ids).loss.backward()
        assert model.model.layers[0].mlp.up_proj.weight.grad.abs().amax() > 0


# torch.compile.


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_forward_compiles_to_one_graph(build, ids, variant, fresh_compiler):
    model = build(**variant)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for inputs in ({"attention_mask": mask}, {"labels": ids, "use_cache": False}):
        torch.testing.assert_close(compiled(ids, **inputs).logits, model(ids, **inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_training_step_compiles_to_one_graph(build, ids, fresh_compiler):
    expected = gradients_of(build(**VARIANTS["modern"]), ids, use_cache=False)
    model = build(**VARIANTS["modern"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled.train()(ids, labels=ids, use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)


def test_decoding_with_a_static_cache_compiles_to_one_graph(build, ids, variant, fresh_compiler):
    model = build(**variant)
    expected = model(ids).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        logits = [model(ids[:, :7], past_key_values=cache).logits]
        logits += [compiled(ids[:, index : index + 1], past_key_values=cache).logits for index in range(7, 10)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-5, rtol=1e-5)


# What the libraries read off a model.


@pytest.mark.parametrize(
    "model_class",
    [MiniGPTModel, MiniGPTForCausalLM, MiniGPTForSequenceClassification, MiniGPTForTokenClassification],
)
def test_a_model_says_what_it_supports(build, model_class):
    for name in (
        "supports_gradient_checkpointing",
        "_supports_sdpa",
        "_supports_flex_attn",
        "_supports_flash_attn",
        "_supports_attention_backend",
        "_can_compile_fullgraph",
    ):
        assert getattr(model_class, name) is True, name
    assert model_class._no_split_modules == ["MiniGPTBlock"]
    assert model_class._skip_keys_device_placement == ["past_key_values"]
    assert model_class.config_class is MiniGPTConfig
    assert next(iter(inspect.signature(model_class.forward).parameters)) == "self"
    assert list(inspect.signature(model_class.forward).parameters)[1] == "input_ids"
    model = build(model_class)
    assert isinstance(model.base_model, MiniGPTModel)
    assert model.get_input_embeddings() is model.base_model.embed_tokens


def test_the_language_model_generates_of_its_own_right():
    assert GenerationMixin in MiniGPTForCausalLM.__bases__
    assert MiniGPTForCausalLM._tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert issubclass(MiniGPTBlock, GradientCheckpointingLayer)
    assert list(inspect.signature(MiniGPTBlock.forward).parameters)[1] == "hidden_states"


def test_output_embeddings_can_be_exchanged(build, ids):
    model = build()
    assert model.get_output_embeddings() is model.lm_head
    model.set_output_embeddings(nn.Linear(16, 5, bias=False))
    assert model(ids).logits.shape == (3, 10, 5)


def test_a_trainer_decays_matrices_and_neither_biases_nor_norms(build):
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    for fields in ({"embedding_norm": True, "qk_norm": "after_rotary"}, {**VARIANTS["modern"], "embedding_norm": True}):
        model = build(**fields)
        decayed = set(get_parameter_names(model, [nn.LayerNorm], patterns))
        assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
