"""A loss is what it is called, whichever way it is computed, and measuring it changes nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minigpt.training.data.token_stream import TokenStream
from minigpt.training.evaluation import estimate_loss, validation_loss
from minigpt.training.sample import write_sample

BLOCK = 8


@pytest.fixture
def stream(tokens):
    return TokenStream(tokens["validation"])


@pytest.fixture
def model(build_model):
    model = build_model(dropout=0.3).double()
    for weight in model.parameters():  # sharp, so that every context matters
        nn.init.normal_(weight, std=0.5)
    return model.eval()


class Recorder(nn.Module):
    """Predicts every token with the same probability, and remembers what it was shown."""

    def __init__(self, vocab_size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size))
        self.seen = []

    def forward(self, input_ids, use_cache):
        self.seen.append((input_ids.clone(), self.training))
        return SimpleNamespace(logits=self.weight.expand(*input_ids.shape, -1))


@torch.no_grad()
def spelled_out(model, tokens):
    """The loss of each token from the tokens of its window before it, one forward pass each."""
    nats = 0.0
    for position in range(1, len(tokens)):
        start = (position - 1) // BLOCK * BLOCK
        logits = model(input_ids=tokens[None, start:position]).logits[0, -1]
        nats -= logits.log_softmax(-1)[tokens[position]].item()
    return nats / (len(tokens) - 1)


def test_validation_loss_is_that_of_every_next_token_in_its_window(model, stream):
    tokens = torch.from_numpy(stream.crops([0], len(stream))[0])
    assert (len(tokens) - 1) % BLOCK  # the last window is a shorter one
    result = validation_loss(model, stream, BLOCK, batch_size=7)
    assert result.targets == len(tokens) - 1
    assert result.loss == pytest.approx(spelled_out(model, tokens), abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_number_of_windows_at_a_time_changes_no_loss(model, stream, batch_size):
    assert validation_loss(model, stream, BLOCK, batch_size).loss == pytest.approx(
        validation_loss(model, stream, BLOCK).loss, abs=1e-9
    )


def test_units_of_a_model_that_knows_nothing(stream):
    result = validation_loss(Recorder(64), stream, BLOCK)
    assert result.loss == pytest.approx(math.log(64), abs=1e-6)
    assert result.bits_per_character == pytest.approx(6, abs=1e-6)
    assert result.perplexity == pytest.approx(64, rel=1e-6)


def test_tokens_of_two_characters_halve_the_bits_a_character(stream):
    result = validation_loss(Recorder(64), stream, BLOCK, characters_per_token=2)
    assert result.bits_per_character == pytest.approx(3, abs=1e-6)
    assert result.perplexity == pytest.approx(64, rel=1e-6)


def test_every_estimate_scores_the_same_crops_in_evaluation_mode(stream):
    recorder = Recorder(64)
    for _ in range(2):
        recorder.train()
        estimate_loss(recorder, {"validation": stream}, BLOCK, num_crops=10, batch_size=10, seed=3)
        assert recorder.training
        torch.rand(5)
    (first, first_mode), (second, second_mode) = recorder.seen
    assert torch.equal(first, second)
    assert not first_mode
    assert not second_mode
    estimate_loss(recorder, {"validation": stream}, BLOCK, num_crops=10, batch_size=10, seed=4)
    assert not torch.equal(recorder.seen[-1][0], first)


def test_estimate_does_not_depend_on_how_many_crops_are_scored_at_a_time(model, stream):
    estimates = [
        estimate_loss(model, {"validation": stream}, BLOCK, num_crops=50, batch_size=size)["validation"]
        for size in (1, 7, 50)
    ]
    assert estimates == pytest.approx([estimates[0]] * 3, abs=1e-9)


def test_estimate_of_many_crops_is_near_the_validation_loss(model, stream):
    estimate = estimate_loss(model, {"validation": stream}, BLOCK, num_crops=4000)["validation"]
    assert estimate == pytest.approx(validation_loss(model, stream, BLOCK).loss, rel=0.03)


def test_processes_that_share_the_crops_get_the_estimate_of_one_alone(model, stream):
    whole = estimate_loss(model, {"validation": stream}, BLOCK, num_crops=11)["validation"]
    parts = []
    for rank in range(3):
        estimate_loss(
            model,
            {"validation": stream},
            BLOCK,
            num_crops=11,
            rank=rank,
            world_size=3,
            total=lambda sums: parts.append(sums) or sums,
        )
    nats, targets = torch.stack(parts).sum(0).tolist()
    assert targets == 11 * BLOCK
    assert nats / targets == pytest.approx(whole, abs=1e-9)


def test_measuring_and_sampling_draw_nothing_from_the_global_generator(model, stream, tokenizer):
    before = torch.get_rng_state()
    estimate_loss(model, {"validation": stream}, BLOCK)
    validation_loss(model, stream, BLOCK)
    write_sample(model, tokenizer, 20)
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_is_of_its_length_repeatable_and_without_special_tokens(model, tokenizer):
    model.train()
    with torch.no_grad():
        model.lm_head.bias[tokenizer.all_special_ids] = 50.0  # what it would write if it could
    sample = write_sample(model, tokenizer, 40, seed=1)
    assert model.training
    assert len(sample) == 40
    assert set(sample) <= set(tokenizer.stoi)
    assert write_sample(model, tokenizer, 40, seed=1) == sample
    assert write_sample(model, tokenizer, 40, seed=2) != sample
