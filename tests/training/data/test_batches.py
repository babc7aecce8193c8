import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from minigpt.training.data.batches import IGNORED, RandomCrops, Windows, blocks, collate, get_batch
from minigpt.training.data.corpus import CorpusError
from minigpt.training.data.token_stream import TokenStream

TOKENS = random.Random(0).choices(range(65), k=1000)


def stream_of(tokens, row=10**6):
    """A stream of these tokens, each row a record batch of its own, as in the files of the cache."""
    rows = [tokens[start : start + row] for start in range(0, len(tokens), row)]
    features = datasets.Features({"tokens": datasets.List(datasets.Value("uint16"))})
    parts = [datasets.Dataset.from_dict({"tokens": [row]}, features=features) for row in rows]
    return TokenStream(datasets.concatenate_datasets(parts, split="train"))


@pytest.fixture(scope="module", params=[10**6, 64], ids=["one row", "rows of 64"])
def stream(request):
    return stream_of(TOKENS, request.param)


def lecture_get_batch(data, batch_size, block_size):
    """As "Let's build GPT" writes it."""
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([data[i : i + block_size] for i in ix])
    y = torch.stack([data[i + 1 : i + block_size + 1] for i in ix])
    return x, y


def splitmix64(state):
    """The published generator (Steele, Lea and Flood, 2014) in plain integers: the output that follows this state."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_get_batch_draws_the_lectures_batches(stream):
    torch.manual_seed(1337)
    ours = [get_batch(stream, 4, 8) for _ in range(5)]
    torch.manual_seed(1337)
    theirs = [lecture_get_batch(torch.tensor(TOKENS), 4, 8) for _ in range(5)]
    for (x, y), (their_x, their_y) in zip(ours, theirs, strict=True):
        assert torch.equal(x, their_x)
        assert torch.equal(y, their_y)
        assert x.dtype == y.dtype == torch.int64


def test_get_batch_leaves_the_global_generator_alone_when_given_another(stream):
    state = torch.get_rng_state()
    first = get_batch(stream, 4, 8, generator=torch.Generator().manual_seed(1))
    again = get_batch(stream, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_of_one_crop_gives_that_crop():
    x, y = get_batch(stream_of([5, 6, 7]), 2, 2)
    assert x.tolist() == [[5, 6]] * 2
    assert y.tolist() == [[6, 7]] * 2
    assert RandomCrops(stream_of([5, 6, 7]), 2)[0].tolist() == [5, 6, 7]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5])
def test_a_crop_lies_where_splitmix64_of_seed_and_index_says(stream, seed):
    crops = RandomCrops(stream, 32, seed=seed)
    mixed = splitmix64(seed % 2**64)
    for index in (0, 1, 999, 2**40):
        start = splitmix64((mixed + index * 0x9E3779B97F4A7C15) % 2**64) % (1000 - 32)
        assert crops.starts([index]).tolist() == [start]
        assert crops.__getitems__([index]).tolist() == [TOKENS[start : start + 33]]


def test_crops_depend_on_seed_and_index_alone(stream):
    crops, same, other = (RandomCrops(stream, 8, seed=seed, length=500) for seed in (3, 3, 4))
    forwards = crops.__getitems__(list(range(500)))
    order = random.Random(1).sample(range(500), 500)
    assert torch.equal(same.__getitems__(order), forwards[order])
    assert torch.equal(torch.stack([crops[index] for index in range(20)]), forwards[:20])
    assert not torch.equal(other.__getitems__(range(500)), forwards)


def test_the_crops_of_neighbouring_seeds_are_unrelated():
    places = 10**6
    stream = stream_of([0] * (places + 8))
    starts = [set(RandomCrops(stream, 8, seed=seed).starts(range(1000)).tolist()) for seed in range(4)]
    # Two lists of 1000 of a million places share one by chance, and would share 999 if one were the other, shifted.
    assert all(len(one & other) < 10 for one in starts for other in starts if one is not other)


def test_every_place_is_as_likely_as_any_other():
    places, draws = 50, 200_000
    starts = RandomCrops(stream_of([0] * (places + 8)), 8, seed=7).starts(range(draws))
    counts = np.bincount(starts, minlength=places)
    assert len(counts) == places
    chi_square = ((counts - draws / places) ** 2 / (draws / places)).sum()
    assert 20 < chi_square < 95  # 49 degrees of freedom: one fair hash in ten thousand falls outside


def test_an_epoch_has_a_crop_for_each_block_unless_told_otherwise(stream):
    assert len(RandomCrops(stream, 32)) == 31
    assert len(RandomCrops(stream, 32, length=10**9)) == 10**9


def test_crops_and_windows_can_be_iterated_to_their_end(stream):
    assert len(list(RandomCrops(stream, 32))) == 31
    assert len(list(Windows(stream, 32))) == 32
    with pytest.raises(IndexError, match="no item 32 among 32"):
        Windows(stream, 32)[32]


def test_collate_shifts_inputs_and_targets_by_one(stream):
    crops = RandomCrops(stream, 8).__getitems__(range(4))
    batch = collate(crops)
    assert batch.keys() == {"input_ids", "labels", "shift_labels"}
    assert batch["input_ids"].tolist() == [row[:-1] for row in crops.tolist()]
    assert batch["labels"].tolist() == batch["input_ids"].tolist()  # for whoever shifts them by himself
    assert batch["shift_labels"].tolist() == [row[1:] for row in crops.tolist()]
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in batch.values())


def test_a_data_loader_gives_the_same_batches(stream):
    crops = RandomCrops(stream, 8, length=10)
    batches = list(DataLoader(crops, batch_size=4, collate_fn=collate))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    assert torch.equal(
        torch.cat([batch["shift_labels"] for batch in batches]), torch.stack([crops[index][1:] for index in range(10)])
    )


def test_crops_and_windows_survive_pickling(stream):
    for dataset in (RandomCrops(stream, 8, seed=5), Windows(stream, 8)):
        assert torch.equal(pickle.loads(pickle.dumps(dataset)).__getitems__([0, 7]), dataset.__getitems__([0, 7]))


@pytest.mark.slow
def test_two_spawned_workers_give_what_the_process_itself_gives():
    crops = RandomCrops(stream_of(TOKENS, 64), 8, seed=5, length=40)
    one, two = (
        list(DataLoader(crops, batch_size=4, collate_fn=collate, num_workers=number, multiprocessing_context=context))
        for number, context in ((0, None), (2, "spawn"))
    )
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("length", [2, 3, 32, 33, 34, 64, 65, 66, 1000])
@pytest.mark.parametrize("block_size", [1, 2, 32, 64, 2000])
def test_windows_have_every_next_token_exactly_once_and_in_order(length, block_size):
    windows = Windows(stream_of(TOKENS[:length], row=50), block_size)
    batches = [collate(batch) for batch in DataLoader(windows, batch_size=7, collate_fn=lambda batch: batch)]
    inputs = torch.cat([batch["input_ids"] for batch in batches])
    targets = torch.cat([batch["shift_labels"] for batch in batches])
    counted = targets != IGNORED
    assert targets[counted].tolist() == TOKENS[1:length]
    assert inputs[counted].tolist() == TOKENS[: length - 1]
    assert windows.num_targets == length - 1
    assert len(windows) == len(inputs) == -(-(length - 1) // block_size)
    # Padding is at the end of the last window, where no token that counts can see it, and harmless as a token.
    assert counted[:-1].all()
    assert counted[-1].tolist() == sorted(counted[-1].tolist(), reverse=True)
    assert inputs.min() >= 0


def test_tiny_shakespeares_validation_split_has_111539_targets():
    windows = Windows(stream_of([0] * 111_540), 32)
    assert (windows.num_targets, len(windows)) == (111_539, 3486)
    assert (collate(windows.__getitems__(range(3486)))["shift_labels"] != IGNORED).sum() == 111_539


@pytest.mark.parametrize("block_size", [1, 7, 64, 65, 300, 1000])
def test_blocks_are_the_stream_cut_in_order(stream, block_size):
    dataset = blocks(stream, block_size)
    number = 1000 // block_size
    expected = [TOKENS[start * block_size :][:block_size] for start in range(number)]
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset[:]["input_ids"] == dataset[:]["labels"] == expected


def test_blocks_are_what_a_stock_collator_expects(stream):
    batch = default_data_collator([blocks(stream, 8)[index] for index in range(4)])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [TOKENS[start : start + 8] for start in range(0, 32, 8)]


def test_blocks_do_not_copy_the_stream():
    stream = stream_of(TOKENS)
    column = blocks(stream, 8).data.column("labels").chunk(0)
    assert np.shares_memory(column.values.to_numpy(), stream.segments[0])


def test_blocks_of_another_size_or_text_have_another_fingerprint(stream):
    prints = {
        blocks(stream, 8)._fingerprint,
        blocks(stream, 9)._fingerprint,
        blocks(stream_of(TOKENS[1:]), 8)._fingerprint,
    }
    assert len(prints) == 3
    assert blocks(stream, 8)._fingerprint in prints


@pytest.mark.parametrize(
    "use", [lambda stream: get_batch(stream, 1, 20), lambda stream: RandomCrops(stream, 20)], ids=["get_batch", "crops"]
)
def test_a_split_shorter_than_a_crop_is_refused_with_both_lengths_and_the_remedy(use):
    with pytest.raises(CorpusError, match=r"train split has 20 tokens .* block_size 20 takes 21; .*smaller.*longer"):
        use(stream_of(TOKENS[:20]))
    use(stream_of(TOKENS[:21]))


def test_a_split_shorter_than_a_block_has_no_blocks():
    with pytest.raises(CorpusError, match=r"train split has 19 tokens and a block has 20; .*smaller.*longer"):
        blocks(stream_of(TOKENS[:19]), 20)
    assert len(blocks(stream_of(TOKENS[:20]), 20)) == 1


@pytest.mark.parametrize("length", [0, 1])
def test_a_split_with_nothing_to_predict_is_refused(length):
    stream = stream_of(TOKENS[:1]) if length else TokenStream(stream_of(TOKENS)._dataset.select([]))
    with pytest.raises(CorpusError, match=f"has {length} tokens"):
        Windows(stream, 8)


@pytest.mark.parametrize("use", [RandomCrops, Windows, blocks, lambda stream, size: get_batch(stream, 1, size)])
@pytest.mark.parametrize("block_size", [0, -1])
def test_block_sizes_below_one_are_refused(stream, use, block_size):
    with pytest.raises(ValueError, match=f"block_size is {block_size} and must be at least 1"):
        use(stream, block_size)
