import errno
import pickle
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import TokenizersBackend

from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer, UnknownCharacterError
from minigpt.training.data import corpus as corpus_module
from minigpt.training.data import token_files
from minigpt.training.data.corpus import CorpusError, load_text
from minigpt.training.data.tokens import ROW_TOKENS, TokenStream, tokenize_corpus

TEXT = "".join(random.Random(0).choices("abc défg\n😀,.", k=1003))
CUT = 902  # int(0.9 * 1003)


@pytest.fixture
def corpus_of(tmp_path):
    def make(text, name="text.txt"):
        (tmp_path / name).write_bytes(text.encode())
        return load_text(tmp_path / name)

    return make


@pytest.fixture
def corpus(corpus_of):
    return corpus_of(TEXT)


def flat(dataset):
    return [token for row in dataset["tokens"] for token in row]


def ids_of(text, alphabet=TEXT):
    """The lecture's encoder."""
    stoi = {character: index for index, character in enumerate(sorted(set(alphabet)))}
    return [stoi[character] for character in text]


def subwords(special_tokens=(), **settings):
    """A tokenizer of byte pairs, such as a text is cut into by most models."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=list(special_tokens), show_progress=False
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator([TEXT], trainer)
    return TokenizersBackend(tokenizer_object=backend, **settings)


def test_the_first_nine_tenths_train_and_the_rest_validates_in_order(corpus, tmp_path):
    splits = tokenize_corpus(corpus, cache_dir=tmp_path)
    assert flat(splits["train"]) == ids_of(TEXT[:CUT])
    assert flat(splits["validation"]) == ids_of(TEXT[CUT:])


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 19, 20, 99])
def test_the_cut_is_at_int_of_nine_tenths(corpus_of, tmp_path, length):
    splits = tokenize_corpus(corpus_of("ab" * 50, "all.txt"), cache_dir=tmp_path)
    splits = tokenize_corpus(corpus_of(("ab" * 50)[:length]), cache_dir=tmp_path)
    assert len(TokenStream(splits["train"])) == int(0.9 * length)
    assert len(TokenStream(splits["validation"])) == length - int(0.9 * length)


def test_tiny_shakespeares_length_is_cut_where_nanogpt_cuts_it():
    assert (int(0.9 * 1_115_394), 1_115_394 - int(0.9 * 1_115_394)) == (1_003_854, 111_540)


@pytest.mark.parametrize("chunk", [1, 7, 100, 902, 10**6])
@pytest.mark.parametrize("row_tokens", [1, 64, 902, 10**6])
def test_tokens_do_not_depend_on_chunks_and_rows(corpus, tmp_path, monkeypatch, chunk, row_tokens):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", chunk)
    splits = tokenize_corpus(corpus, cache_dir=tmp_path, row_tokens=row_tokens)
    assert flat(splits["train"]) + flat(splits["validation"]) == ids_of(TEXT)


def test_rows_have_the_length_asked_for_and_the_last_what_is_left(corpus, tmp_path):
    train = tokenize_corpus(corpus, cache_dir=tmp_path, row_tokens=64)["train"]
    assert [len(row) for row in train["tokens"]] == [64] * 14 + [6]
    assert ROW_TOKENS == 2**20


def test_tokens_are_uint16_while_the_vocabulary_fits_and_else_uint32(corpus, corpus_of, tmp_path):
    many = "".join(map(chr, range(0x10000, 0x20000)))
    for text, dtype in ((corpus, "uint16"), (corpus_of(many, "many.txt"), "uint32")):
        train = tokenize_corpus(text, cache_dir=tmp_path)["train"]
        assert train.features == datasets.Features({"tokens": datasets.List(datasets.Value(dtype))})
        assert TokenStream(train).dtype == dtype
    assert flat(train) == ids_of(many[: int(0.9 * len(many))], many)


def test_splits_are_memory_mapped_files_of_the_cache(corpus, tmp_path):
    splits = tokenize_corpus(corpus, cache_dir=tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "minigpt-tokens").iterdir()
    for name, split in splits.items():
        assert isinstance(split.data, datasets.table.MemoryMappedTable)
        assert Path(split.cache_files[0]["filename"]) == folder / f"{name}.arrow"


def test_the_cache_of_datasets_is_the_default(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tokenize_corpus(corpus)
    assert (tmp_path / "cache" / "minigpt-tokens").is_dir()


class CountingTokenizer(MiniGPTTokenizer):
    calls = 0

    def encode_array(self, *args, **kwargs):
        type(self).calls += 1
        return super().encode_array(*args, **kwargs)


def test_a_second_call_encodes_nothing(corpus, tmp_path):
    tokenizer = CountingTokenizer.from_text(TEXT)
    first = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    calls = CountingTokenizer.calls
    second = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    assert CountingTokenizer.calls == calls > 0
    assert flat(first["train"]) == flat(second["train"])


def test_another_text_or_vocabulary_is_not_taken_from_the_cache(corpus, corpus_of, tmp_path):
    tokenize_corpus(corpus, cache_dir=tmp_path)
    wider = MiniGPTTokenizer.from_text(TEXT + "Aé")
    assert flat(tokenize_corpus(corpus, wider, cache_dir=tmp_path)["train"]) == ids_of(TEXT[:CUT], TEXT + "Aé")
    reverse = corpus_of(TEXT[::-1])
    assert flat(tokenize_corpus(reverse, cache_dir=tmp_path)["train"]) == ids_of(TEXT[::-1][:CUT])


@pytest.mark.parametrize("damage", ["cut off", "missing", "overwritten"])
def test_a_damaged_cache_is_made_again(corpus, tmp_path, damage):
    tokenize_corpus(corpus, cache_dir=tmp_path)
    (folder,) = (tmp_path / "minigpt-tokens").iterdir()
    file = folder / "validation.arrow"
    data = file.read_bytes()
    file.unlink()
    if damage == "cut off":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":  # by a table that opens
        shutil.copy(folder / "train.arrow", file)
    assert flat(tokenize_corpus(corpus, cache_dir=tmp_path)["validation"]) == ids_of(TEXT[CUT:])
    assert file.read_bytes() == data


def test_many_at_once_leave_one_whole_result(corpus, tmp_path):
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(tokenize_corpus, corpus, tokenizer, cache_dir=tmp_path, row_tokens=16) for _ in range(24)]
    assert all(flat(run.result()["train"]) == ids_of(TEXT[:CUT]) for run in runs)
    assert len(list((tmp_path / "minigpt-tokens").iterdir())) == 1


def test_a_full_disk_is_said_and_nothing_unfinished_stays(corpus, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_files.pa.ipc, "new_stream", full)
    with pytest.raises(CorpusError, match=r"cannot be written .*No space left.*2,006 bytes.*HF_DATASETS_CACHE"):
        tokenize_corpus(corpus, cache_dir=tmp_path)
    assert list((tmp_path / "minigpt-tokens").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(corpus, tmp_path):
    (tmp_path / "file").write_bytes(b"where the folder should be")
    splits = tokenize_corpus(corpus, cache_dir=tmp_path / "file")
    assert flat(splits["train"]) == ids_of(TEXT[:CUT])


def test_a_text_that_changed_since_it_was_loaded_is_refused_and_not_kept(corpus, tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT[::-1].encode())
    with pytest.raises(CorpusError, match=r"text\.txt has changed"):
        tokenize_corpus(corpus, cache_dir=tmp_path)
    assert list((tmp_path / "minigpt-tokens").iterdir()) == []


@pytest.mark.parametrize("position", [3, 901, 902, 1000])
def test_an_unknown_character_is_named_with_its_position_in_the_whole_text(corpus_of, tmp_path, monkeypatch, position):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", 50)
    corpus = corpus_of(TEXT[:position] + "Ω" + TEXT[position + 1 :])
    with pytest.raises(UnknownCharacterError) as caught:
        tokenize_corpus(corpus, MiniGPTTokenizer.from_text(TEXT), cache_dir=tmp_path)
    assert caught.value.first_positions == {"Ω": position}


def test_special_tokens_written_in_a_text_are_characters(corpus_of, tmp_path):
    text = "a<|endoftext|>b" * 20
    assert flat(tokenize_corpus(corpus_of(text), cache_dir=tmp_path)["train"]) == ids_of(text[:270], text)


def test_subwords_encode_each_split_by_itself(corpus, tmp_path):
    tokenizer = subwords()
    splits = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path, row_tokens=64)
    for split, part in (("train", TEXT[:CUT]), ("validation", TEXT[CUT:])):
        assert flat(splits[split]) == tokenizer(part)["input_ids"]
        assert tokenizer.decode(flat(splits[split])) == part


class Recorder:
    """A tokenizer of whole pieces, the number n for the n-th it is given; nothing is known of its inside."""

    unk_token_id = eos_token_id = None

    def __init__(self):
        self.pieces = []

    def __len__(self):
        return 1000

    def __call__(self, text, **kwargs):
        assert not kwargs["add_special_tokens"]
        self.pieces.append(text)
        return {"input_ids": [len(self.pieces) - 1]}

    def decode(self, ids, **kwargs):
        return "".join(self.pieces[number] for number in ids)


def test_subwords_get_pieces_that_end_with_a_line(corpus_of, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", 10)
    text = "one\ntwo\n\nthree four five six seven\neight" + " " * 5
    recorder = Recorder()
    splits = tokenize_corpus(corpus_of(text), recorder, cache_dir=tmp_path)
    train = recorder.pieces[: len(flat(splits["train"]))]
    assert "".join(train) == text[: int(0.9 * len(text))]
    assert "".join(recorder.pieces) == text
    assert train[0] == "one\ntwo\n\n"
    assert all(piece.endswith("\n") or len(piece) >= 10 for piece in train[:-1])


def test_what_a_tokenizer_of_unknown_inside_gives_is_not_kept(corpus, tmp_path):
    tokenize_corpus(corpus, Recorder(), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_subwords_that_know_a_text_only_as_unknown_are_refused(corpus, tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "abc": 1}, unk_token="<unk>"))
    with pytest.raises(CorpusError, match=r"between the characters 0 and 901 .* only as '<unk>'"):
        tokenize_corpus(corpus, TokenizersBackend(tokenizer_object=words, unk_token="<unk>"), cache_dir=tmp_path)


def drop_spaces(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), backend.pre_tokenizer])


def lower_case(backend):
    backend.normalizer = normalizers.Lowercase()


def compose(backend):
    backend.normalizer = normalizers.NFC()


@pytest.mark.parametrize(
    ("change", "text", "loss"),
    [
        (drop_spaces, "so far\n", "from character 2,006 on, ' far\\n' comes back as 'far\\n'"),
        (lower_case, "so Far\n", "from character 2,007 on, 'Far\\n' comes back as 'far\\n'"),
        (compose, "so fa\u0308r\n", "from character 2,008 on, 'a\u0308r\\n' comes back as '\u00e4r\\n'"),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused_wherever_it_does(corpus_of, tmp_path, monkeypatch, change, text, loss):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", 500)
    tokenizer = subwords(special_tokens=["<|endoftext|>"], eos_token="<|endoftext|>")
    corpus = corpus_of("line\n" * 400 + "end\n" + text)
    assert sum(map(len, tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path / "kept").values())) > 0
    change(tokenizer.backend_tokenizer)
    with pytest.raises(CorpusError, match=re.escape(loss)):
        tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path / "lost")


def test_a_space_that_a_tokenizer_adds_before_a_text_is_no_loss(corpus_of, tmp_path):
    tokenizer = subwords()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokens = tokenize_corpus(corpus_of(" two\nlines\n" * 20), tokenizer, cache_dir=tmp_path)
    assert tokenizer.decode(flat(tokens["train"])) == (" two\nlines\n" * 20)[:198]


def test_padding_left_by_an_earlier_call_does_not_change_the_cache_key(corpus, tmp_path):
    tokenizer = subwords(["<pad>"], pad_token="<pad>")
    tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    tokenizer(["a", "a longer text"], padding="max_length", truncation=True, max_length=4)
    tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    assert len(list((tmp_path / "minigpt-tokens").iterdir())) == 1


@pytest.fixture(params=[1, 7, 64, 10**6], ids="rows of {}".format)
def stream(corpus, tmp_path, request):
    return TokenStream(tokenize_corpus(corpus, cache_dir=tmp_path, row_tokens=request.param)["train"])


def test_crops_read_across_rows(stream):
    expected = ids_of(TEXT[:CUT])
    assert len(stream) == CUT
    for length in (0, 1, 2, 7, 33, 150, CUT):
        starts = np.random.default_rng(length).permutation(CUT - length + 1)
        crops = stream.crops(starts, length)
        assert crops.dtype == np.int64
        assert crops.tolist() == [expected[start : start + length] for start in starts]


def test_crops_read_across_the_record_batches_and_slices_of_any_dataset(tmp_path):
    rows = [[1, 2, 3], [], [4], [5, 6], [7, 8, 9, 10]]
    dataset = datasets.Dataset.from_dict(
        {"tokens": rows}, features=datasets.Features({"tokens": datasets.List(datasets.Value("uint16"))})
    )
    parts = datasets.concatenate_datasets([dataset, dataset.select(range(1, 4)), dataset])
    expected = [*range(1, 11), 4, 5, 6, *range(1, 11)]
    stream = TokenStream(parts)
    assert stream.crops(range(len(expected) - 4), 5).tolist() == [
        expected[start : start + 5] for start in range(len(expected) - 4)
    ]


@pytest.mark.parametrize("starts", [[-1], [0, CUT - 9], [CUT]])
def test_crops_outside_the_stream_are_refused(stream, starts):
    with pytest.raises(IndexError, match=r"the train split, which has 902; .*at 892 or before"):
        stream.crops(starts, 10)


def test_a_stream_does_not_copy_the_memory_map(stream):
    assert all(not segment.flags.owndata and not segment.flags.writeable for segment in stream.segments)


def test_a_stream_is_pickled_as_a_path_and_not_as_its_tokens(corpus_of, tmp_path):
    stream = TokenStream(tokenize_corpus(corpus_of("ab" * 100_000), cache_dir=tmp_path)["train"])
    pickled = pickle.dumps(stream)
    assert len(pickled) < 5_000 < len(stream)
    assert (pickle.loads(pickled).crops([0, 5], 20) == stream.crops([0, 5], 20)).all()


def test_a_stream_of_selected_rows_is_refused(corpus, tmp_path):
    train = tokenize_corpus(corpus, cache_dir=tmp_path, row_tokens=64)["train"]
    with pytest.raises(ValueError, match="flatten_indices"):
        TokenStream(train.select([3, 1]))


def test_a_stream_of_another_column_is_refused():
    with pytest.raises(ValueError, match=r"'tokens', and this dataset has .*'text'"):
        TokenStream(datasets.Dataset.from_dict({"text": ["a"]}))
