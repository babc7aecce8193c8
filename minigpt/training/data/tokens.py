"""A corpus as tokens: encoded once, in chunks of bounded size, and found again the next time."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from minigpt.tokenization.text_forms import suggest_option
from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT, MiniGPTTokenizer, UnknownCharacterError
from minigpt.training.data.corpus import Corpus, CorpusError
from minigpt.training.data.round_trip import describe_loss
from minigpt.training.data.token_files import open_splits, publish, writable_folder, write_rows
from minigpt.training.data.token_stream import TokenStream

__all__ = ["ROW_TOKENS", "TokenStream", "tokenize_corpus"]

ROW_TOKENS = 2**20  # one row for everything takes twenty times its size to build
FORMAT = 3  # goes up when this file encodes otherwise than before, so that what older versions kept is not read


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: Any = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    row_tokens: int = ROW_TOKENS,
) -> datasets.DatasetDict:
    """Encodes a text into memory-mapped splits, in little memory whatever the text's size.

    The first `corpus.train_characters` characters are `train` and the others `validation`. The splits are kept under a
    key made of the text and the tokenizer, where a second call finds them, and several processes may do so at the same
    time.

    Special tokens that the text spells are text, for every tokenizer. Only in a text of documents, `<|endoftext|>` is
    the tokenizer's EOS token.

    Args:
        corpus: The text, from `load_text`.
        tokenizer: What encodes it, by default a `MiniGPTTokenizer` of the text's own characters. Each split is encoded
            by itself. A tokenizer without `encode_array` gets pieces that end where a line ends, and adds no special
            tokens.
        cache_dir: Where to keep the splits, by default the cache of `datasets`. A temporary folder takes the place of
            one that cannot be written.
        row_tokens: Tokens in a row; the last row of a split has what is left.

    Returns:
        `train` and `validation`, each with one column `tokens`: lists of `uint16`, or of `uint32` where the tokenizer
        has more than 65,536 tokens.

    Raises:
        UnknownCharacterError: The text has characters that the tokenizer lacks.
        CorpusError: The text has parts that the tokenizer cannot express or does not give back, has changed since it
            was loaded, or there is no room for its tokens.
    """
    if tokenizer is None:
        tokenizer = MiniGPTTokenizer.from_characters(sorted(corpus.characters()))
    if corpus.documents and tokenizer.eos_token_id is None:
        raise CorpusError(
            f"the tokenizer ({type(tokenizer).__name__}) has no EOS token to end documents with; give it an eos_token, "
            "or leave documents out."
        )
    key = _cache_key(corpus, tokenizer, row_tokens)
    home = writable_folder(Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "minigpt-tokens" if key else None)
    folder = home / (key or "tokens")
    cached = open_splits(folder)
    if cached is not None:
        return cached
    staged = Path(tempfile.mkdtemp(dir=home, prefix="unfinished-"))
    try:
        digest = hashlib.sha256()
        cut = corpus.train_characters
        for split, start, stop in (("train", 0, cut), ("validation", cut, corpus.num_characters)):
            encoded = _encode(corpus, start, stop, tokenizer, digest)
            write_rows(staged / f"{split}.arrow", encoded, _dtype(tokenizer), row_tokens)
        if digest.hexdigest() != corpus.sha256:
            raise CorpusError(f"{corpus.name} has changed since it was loaded; load it again.")
        return publish(staged, folder)
    except OSError as error:
        raise CorpusError(
            f"The tokens of {corpus.name} cannot be written to {home} ({error.strerror or error}); make room for"
            f" {corpus.num_characters * _dtype(tokenizer).itemsize:,} bytes or set HF_DATASETS_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def training_text(corpus: Corpus) -> Iterator[str]:
    """Yields what the split `train` is made of, a chunk at a time: what may be known before anything is measured."""
    return _part(corpus, 0, corpus.train_characters)


def characters_per_token(corpus: Corpus, split: datasets.Dataset) -> float:
    """How many characters a token of a split stands for on average: 1 in a character vocabulary.

    An EOS token between documents counts as one character.

    Args:
        corpus: The text that was encoded.
        split: `train` or `validation`, from `tokenize_corpus`.
    """
    return corpus.count_characters("train" if str(split.split) == "train" else "validation") / len(TokenStream(split))


def _encode(
    corpus: Corpus, start: int, stop: int, tokenizer: Any, digest: "hashlib._Hash"
) -> Iterator[NDArray[np.unsignedinteger]]:
    """Yields the tokens of the characters from `start` up to `stop`, and adds these characters to the digest."""
    by_character = hasattr(tokenizer, "encode_array")
    pieces = _part(corpus, start, stop)
    marker = END_OF_TEXT if corpus.documents else None
    for text in pieces if by_character else _whole_lines(pieces, marker):
        digest.update(text.encode())
        if by_character:
            yield _encode_characters(corpus, start, text, tokenizer)
        elif corpus.documents:
            yield _encode_documents(corpus, start, text, tokenizer)
        else:
            yield _encode_subwords(corpus, start, text, tokenizer)
        start += len(text)


def _encode_characters(
    corpus: Corpus, start: int, text: str, tokenizer: MiniGPTTokenizer
) -> NDArray[np.unsignedinteger]:
    documents = text.split(END_OF_TEXT) if corpus.documents else [text]
    ends = np.cumsum([len(document) for document in documents[:-1]], dtype=np.int64)
    try:
        ids = tokenizer.encode_array("".join(documents), errors="strict")
    except UnknownCharacterError as error:
        markers = {at: int(np.searchsorted(ends, at, side="right")) for at in error.first_positions.values()}
        places = {c: start + at + markers[at] * len(END_OF_TEXT) for c, at in error.first_positions.items()}
        known = tokenizer.stoi.keys()
        found = suggest_option(lambda newlines, form: corpus.characters(newlines, form) - known)
        raise UnknownCharacterError(places, found and f"add {found[0]}, {found[1]}") from None
    return np.insert(ids, ends, tokenizer.eos_token_id) if len(ends) else ids


def _encode_documents(corpus: Corpus, start: int, text: str, tokenizer: Any) -> NDArray[np.unsignedinteger]:
    """Returns the tokens of each document, and EOS wherever the text has the marker."""
    eos = np.array([tokenizer.eos_token_id], _dtype(tokenizer))
    parts: list[NDArray[np.unsignedinteger]] = []
    for number, document in enumerate(text.split(END_OF_TEXT)):
        parts += [eos] if number else []
        parts += [_encode_subwords(corpus, start, document, tokenizer)] if document else []
        start += len(document) + len(END_OF_TEXT)
    return np.concatenate(parts)


def _encode_subwords(corpus: Corpus, start: int, text: str, tokenizer: Any) -> NDArray[np.unsignedinteger]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids = np.array(encoded["input_ids"], _dtype(tokenizer))
    # Where the unknown token is the end of text as well, as in GPT-2, a text may hold it.
    if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id) and (ids == tokenizer.unk_token_id).any():
        raise CorpusError(
            f"{corpus.name} has text between the characters {start:,} and {start + len(text):,} that the tokenizer"
            f" knows only as {tokenizer.unk_token!r}; take one that was trained on such text."
        )
    if loss := describe_loss(text, ids.tolist(), tokenizer, start):
        raise CorpusError(
            f"the tokenizer ({type(tokenizer).__name__}) loses text of {corpus.name}: {loss}; take a tokenizer that"
            " keeps every character, or a text that this one keeps."
        )
    return ids


def _part(corpus: Corpus, start: int, stop: int) -> Iterator[str]:
    """Yields the characters from `start` up to `stop`, a chunk at a time."""
    for chunk in corpus.chunks():
        if stop <= 0:
            return
        if start < len(chunk):
            yield chunk[max(start, 0) : stop]
        start, stop = start - len(chunk), stop - len(chunk)


def _whole_lines(pieces: Iterable[str], marker: str | None = None) -> Iterator[str]:
    """Yields the same text cut at line ends; only a line that fills a whole piece is cut elsewhere.

    Given a marker, the text is cut after markers instead, and at a line end where a piece has none.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        last = rest.rfind(marker) if marker else -1
        end = last + len(marker or "") if last >= 0 else rest.rfind("\n") + 1 or len(rest)
        yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def _dtype(tokenizer: Any) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def _cache_key(corpus: Corpus, tokenizer: Any, row_tokens: int) -> str | None:
    """Returns a name that calls share if they give the same tokens, or None if the tokenizer does not tell."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    for left_by_the_last_call in ("truncation", "padding"):
        vocabulary.pop(left_by_the_last_call, None)
    by_character = hasattr(tokenizer, "encode_array")
    eos = tokenizer.eos_token_id if corpus.documents else None
    parts = [FORMAT, corpus.sha256, vocabulary, by_character, row_tokens, corpus.train_characters, eos]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
