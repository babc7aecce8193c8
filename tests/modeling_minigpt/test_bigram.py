"""The bigram behaves as every causal model does, and its best loss is that of counting pairs."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import DynamicCache, StaticCache, Trainer, TrainingArguments
from transformers.generation import stopping_criteria

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM, BigramModel

VOCAB = 7


@pytest.fixture
def model():
    torch.manual_seed(0)
    return sharp_bigram(VOCAB)


def sharp_bigram(vocab_size, **config):
    bigram = BigramForCausalLM(BigramConfig(vocab_size=vocab_size, block_size=4, **config)).eval()
    nn.init.normal_(bigram.token_embedding_table.weight, std=2.0)
    return bigram


def markov_text(length, seed=0):
    """Ids from a lopsided chain, so that there is something for a bigram to learn."""
    chain = random.Random(seed)
    ids = [0]
    while len(ids) < length:
        ids.append((ids[-1] + chain.choice([1, 1, 1, 2, 5])) % VOCAB)
    return ids


def counted_cross_entropy(ids):
    """Nats per next token of the best table there can be: the conditional frequencies themselves."""
    pairs = list(itertools.pairwise(ids))
    firsts, both = Counter(first for first, _ in pairs), Counter(pairs)
    return -sum(math.log(both[pair] / firsts[pair[0]]) for pair in pairs) / len(pairs)


def lecture_loop(bigram, ids, max_new_tokens, do_sample=False):
    for _ in range(max_new_tokens):
        logits = bigram.token_embedding_table.weight[ids[:, -1]]
        probabilities = logits.softmax(dim=-1)
        chosen = torch.multinomial(probabilities, 1) if do_sample else probabilities.argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
    return ids


def test_loss_of_log_counts_equals_the_counted_cross_entropy(model):
    ids = markov_text(500)
    counts = torch.zeros(VOCAB, VOCAB)
    for pair in itertools.pairwise(ids):
        counts[pair] += 1
    # Pairs that never occur get probability 0 without a logit of minus infinity, whose gradient is not a number.
    model.token_embedding_table.weight.data = counts.log().clamp(min=-1e4)
    row = torch.tensor([ids])

    loss = model(row, labels=row).loss

    assert loss.item() == pytest.approx(counted_cross_entropy(ids), abs=1e-6)


def test_stock_trainer_reaches_the_counted_cross_entropy(tmp_path):
    ids = markov_text(400)
    rows = [{"input_ids": ids[i : i + 9], "labels": ids[i : i + 9]} for i in range(0, 392, 8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=150,
        per_device_train_batch_size=49,
        learning_rate=0.3,
        use_cpu=True,
        activation_checkpointing=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    bigram = BigramForCausalLM(BigramConfig(vocab_size=VOCAB, block_size=8))

    Trainer(model=bigram, args=arguments, train_dataset=rows).train()

    batch = torch.tensor([row["input_ids"] for row in rows])
    best = counted_cross_entropy(ids[: len(rows) * 8 + 1])
    loss = bigram(batch, labels=batch).loss.item()
    assert best - 1e-4 <= loss <= best + 0.01


def test_labels_already_shifted_count_every_position(model):
    ids = torch.tensor([[1, 2, 3, 4]])
    targets = torch.tensor([[2, 3, 4, 5]])
    expected = nn.functional.cross_entropy(model(ids).logits[0], targets[0])

    loss = model(ids, labels=targets, shift_labels=targets).loss
    halved = model(ids, labels=targets, shift_labels=targets, num_items_in_batch=8).loss

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(halved, expected / 2)


def test_logits_depend_on_the_same_token_alone(model):
    ids = torch.tensor([[3, 1, 5, 2]])
    others = torch.tensor([[6, 1, 0, 2]])

    torch.testing.assert_close(model(ids).logits[:, [1, 3]], model(others).logits[:, [1, 3]], rtol=0, atol=0)
    torch.testing.assert_close(model(ids).logits[0], model.token_embedding_table.weight[ids[0]], rtol=0, atol=0)


def test_saved_model_loads_with_equal_logits(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = BigramForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])

    assert (tmp_path / "model.safetensors").exists()
    assert loaded.config.block_size == 4
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_base_model_gives_the_rows_that_are_the_logits(model, tmp_path):
    model.save_pretrained(tmp_path)
    base, info = BigramModel.from_pretrained(tmp_path, output_loading_info=True)
    ids = torch.tensor([[1, 2, 3]])

    assert not any(info.values())
    assert torch.equal(base(ids).last_hidden_state, model(ids).logits)
    assert torch.equal(base(inputs_embeds=base.get_input_embeddings()(ids))[0], model(ids).logits)
    assert not base.can_generate()
    base.resize_token_embeddings(VOCAB + 1)
    assert base(ids).last_hidden_state.shape == (1, 3, VOCAB + 1)

    base.save_pretrained(tmp_path / "base")
    loaded, info = BigramForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, base(ids).last_hidden_state)


def test_initial_table_has_the_configured_spread():
    bigram = BigramForCausalLM(BigramConfig(vocab_size=100, initializer_range=0.5))

    assert bigram.token_embedding_table.weight.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("use_cache", [True, False, None])
@pytest.mark.parametrize("do_sample", [True, False])
def test_generate_equals_the_lecture_loop_far_past_the_block(model, use_cache, do_sample):
    prompt = torch.tensor([[1], [4]])
    cache = {} if use_cache is None else {"use_cache": use_cache}

    torch.manual_seed(7)
    expected = lecture_loop(model, prompt, 40, do_sample)
    torch.manual_seed(7)
    generated = model.generate(prompt, max_new_tokens=40, do_sample=do_sample, top_k=0, **cache)

    assert generated.tolist() == expected.tolist()


def test_generate_continues_a_prompt_longer_than_the_block_without_arguments_or_warning(model, monkeypatch):
    warnings = []
    monkeypatch.setattr(stopping_criteria.logger, "warning_once", warnings.append)
    prompt = torch.randint(VOCAB, (1, 50))

    generated = model.generate(prompt, do_sample=False)

    assert generated.tolist() == lecture_loop(model, prompt, 20).tolist()
    assert warnings == []


def test_maximal_length_still_counts_the_prompt(model):
    assert model.generate(torch.tensor([[1, 2, 3]]), max_length=9).shape == (1, 9)


def test_generate_hands_on_a_cache_that_was_given(model):
    prompt = torch.tensor([[1, 2]])
    expected = lecture_loop(model, prompt, 12).tolist()

    with_cache = model.generate(prompt, past_key_values=DynamicCache(), max_new_tokens=6, return_dict_in_generate=True)
    continued = model.generate(with_cache.sequences, past_key_values=with_cache.past_key_values, max_new_tokens=6)

    assert continued.tolist() == expected


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_a_cache_made_for_its_configuration_stays_empty(model, cache_class):
    length = {"max_cache_len": 3} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config, **length)
    prompt = torch.tensor([[1, 2]])

    assert model.generate(prompt, past_key_values=cache, max_new_tokens=9, do_sample=False).tolist() == (
        lecture_loop(model, prompt, 9).tolist()
    )
    assert len(cache.layers) == 0


def test_a_prompt_of_nothing_is_refused(model):
    for inputs in ({}, {"inputs": torch.zeros(2, 0, dtype=torch.long)}):
        with pytest.raises(ValueError, match="a prompt of 0 tokens and needs 1 to start from"):
            model.generate(**inputs)
    mask = torch.tensor([[1, 1], [0, 0]])
    with pytest.raises(ValueError, match="row 1 of the prompts is padding alone"):
        model.generate(torch.ones_like(mask), attention_mask=mask)


def test_left_padded_rows_generate_as_they_do_alone(model):
    rows = torch.tensor([[0, 0, 3], [5, 1, 2]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])

    generated = model.generate(rows, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)

    assert generated[0, 2:].tolist() == model.generate(rows[:1, 2:], max_new_tokens=10, do_sample=False)[0].tolist()


def test_beams_that_keep_everything_find_the_likeliest_text():
    torch.manual_seed(3)
    bigram = sharp_bigram(3)
    log_probabilities = bigram.token_embedding_table.weight.log_softmax(dim=-1)
    likeliest = max(
        itertools.product(range(3), repeat=4),
        key=lambda tail: sum(log_probabilities[pair].item() for pair in itertools.pairwise((1, *tail))),
    )

    # 27 beams hold every text of three characters, so nothing can be lost on the way to four.
    generated = bigram.generate(torch.tensor([[1]]), max_new_tokens=4, num_beams=27, do_sample=False)

    assert generated[0].tolist() == [1, *likeliest]


def test_assisted_generation_is_refused(model):
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(torch.tensor([[1, 2, 1, 2]]), max_new_tokens=4, prompt_lookup_num_tokens=2)


def test_continuous_batching_is_refused(model):
    with pytest.raises(ValueError, match="use plain generate"):
        model.generate_batch([[1, 2], [3]], max_new_tokens=4)


def test_logits_to_keep_takes_a_count_or_positions(model):
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    logits = model(ids).logits

    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, logits[:, -2:], rtol=0, atol=0)
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 2])).logits, logits[:, [0, 2]])


def test_rows_already_looked_up_give_the_same_logits_and_text(model):
    ids = torch.tensor([[1, 2, 3]])
    rows = model.get_input_embeddings()(ids)

    torch.testing.assert_close(model(inputs_embeds=rows).logits, model(ids).logits, rtol=0, atol=0)
    generated = model.generate(inputs_embeds=rows, max_new_tokens=5, do_sample=False)
    assert generated.tolist() == lecture_loop(model, ids, 5)[:, 3:].tolist()


@pytest.mark.parametrize("where", ["call", "config"])
def test_hidden_states_are_the_rows_as_there_are_no_layers(model, where):
    ids = torch.tensor([[3, 1, 5, 2]])
    rows = model.token_embedding_table.weight[ids]
    asked = {"output_hidden_states": True} if where == "call" else {}
    model.config.output_hidden_states = where == "config"
    base = BigramModel(model.config)
    base.load_state_dict(model.state_dict())

    for whole in (model, base):
        (hidden_states,) = whole(ids, **asked).hidden_states
        assert torch.equal(hidden_states, rows)
        assert whole(ids, output_hidden_states=False).hidden_states is None
    assert len(model(ids, labels=ids, logits_to_keep=0, return_dict=False, **asked)) == 3
    text = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True, output_hidden_states=True)
    assert [[states.shape for states in step] for step in text.hidden_states][-1] == [(1, 1, VOCAB)]


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_kind_of_input_is_taken(model, both):
    ids = torch.tensor([[1]])
    inputs = {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)} if both else {}

    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs)


def test_tuple_is_returned_on_request(model):
    ids = torch.tensor([[1, 2]])
    loss, logits = model(ids, labels=ids, return_dict=False)

    assert (loss.shape, logits.shape) == ((), (1, 2, VOCAB))


def test_every_pair_known_before_keeps_its_logit_when_the_vocabulary_grows(model):
    before = model.token_embedding_table.weight.detach().clone()

    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    after = model.token_embedding_table.weight

    assert after.shape == (VOCAB + 3, VOCAB + 3)
    assert (model.config.vocab_size, model.get_input_embeddings().embedding_dim) == (VOCAB + 3, VOCAB + 3)
    torch.testing.assert_close(after[:VOCAB, :VOCAB], before, rtol=0, atol=0)
    assert 0 < after[:, VOCAB:].std() < 0.1


def test_new_token_is_as_likely_as_the_average_one(model):
    before = model.token_embedding_table.weight.detach().clone()

    model.resize_token_embeddings(VOCAB + 1)
    after = model.token_embedding_table.weight

    torch.testing.assert_close(after[:VOCAB, -1], before.mean(dim=1))
    torch.testing.assert_close(after[-1, :VOCAB], before.mean(dim=0), rtol=0, atol=0.01)


def test_grown_model_trains_generates_saves_and_shrinks_back(model, tmp_path):
    before = model.token_embedding_table.weight.detach().clone()
    model.resize_token_embeddings(VOCAB + 1, pad_to_multiple_of=4)
    ids = torch.tensor([[7, 1, 7, 2]])

    model(ids, labels=ids).loss.backward()
    assert model.token_embedding_table.weight.grad[7].abs().sum() > 0
    assert model.generate(ids, max_new_tokens=3).shape == (1, 7)
    model.save_pretrained(tmp_path)
    loaded = BigramForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)

    loaded.resize_token_embeddings(VOCAB)
    torch.testing.assert_close(loaded.token_embedding_table.weight, nn.Parameter(before), rtol=0, atol=0)
    assert loaded(torch.tensor([[1]])).logits.shape == (1, 1, VOCAB)


def test_frozen_table_stays_frozen_when_resized(model):
    model.requires_grad_(False)
    model.resize_token_embeddings(VOCAB + 1)

    assert not model.token_embedding_table.weight.requires_grad


def test_whole_forward_compiles_into_one_graph(model):
    ids = torch.tensor([[1, 2, 3]])
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(ids, labels=ids).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_any_attention_implementation_may_be_asked_for(model, tmp_path, implementation):
    model.save_pretrained(tmp_path)

    loaded = BigramForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)

    torch.testing.assert_close(loaded.token_embedding_table.weight, model.token_embedding_table.weight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"vocab_size": "65"}, "vocab_size"),
        ({"block_size": -1}, "max_position_embeddings must be at least 1, got -1"),
        ({"initializer_range": -0.1}, "initializer_range must be at least 0, got -0.1"),
    ],
)
def test_impossible_values_are_refused_by_name(wrong, message):
    with pytest.raises(StrictDataclassError, match=message):
        BigramConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabsize": 65}, "did you mean vocab_size"),
        ({"blocksize": 8}, "did you mean block_size"),
        ({"n_embd": 64}, "has no field 'n_embd'"),
        ({"hidden_size": 64}, "has no field 'hidden_size'"),
    ],
)
def test_fields_that_a_bigram_lacks_are_refused_by_name(wrong, message):
    with pytest.raises(TypeError, match=message):
        BigramConfig(**wrong)


def test_keys_of_the_libraries_pass_through_the_config(tmp_path):
    keys = {"auto_map": {"AutoModel": "a.B"}, "quantization_config": {"bits": 4}}
    BigramConfig(vocab_size=9, **keys).save_pretrained(tmp_path)
    loaded = BigramConfig.from_pretrained(tmp_path)

    assert (loaded.vocab_size, loaded.auto_map["AutoModel"]) == (9, "a.B")
