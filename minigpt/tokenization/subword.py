"""Subword vocabularies, trained on a text: byte-level BPE and SentencePiece. Neither loses a character of any text.

Both are saved as a `tokenizer.json` that plain `AutoTokenizer` loads, without this package. SentencePiece's own
`tokenizer.model` is saved beside it, for programs that read nothing else.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT, PADDING, LongTextTokenizer

SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
NUM_BYTES = 256

_SPACE = "\u2581"  # how SentencePiece writes a space in its pieces
_UNKNOWN = "<unk>"
# SentencePiece skips longer sentences, 4192 bytes by default: no character has more than 4.
_LONGEST_SENTENCE = 1024
# Byte-level BPE takes time quadratic in the length of a pre-token, and text without spaces (DNA, Chinese, chess moves)
# is a single one. No word of a language is as long as this.
_LONGEST_PRE_TOKEN = 1024


class SubwordTokenizer(LongTextTokenizer):
    """A vocabulary of subwords on the Rust backend."""


class SentencePieceTokenizer(SubwordTokenizer):
    """A SentencePiece vocabulary on the Rust backend, which keeps SentencePiece's own file and saves it again.

    Attributes:
        sentencepiece_model: The content of `tokenizer.model`, None if there was none to load.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}
    sentencepiece_model: bytes | None = None

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "SentencePieceTokenizer":
        """Loads a tokenizer, as every tokenizer does, with its SentencePiece model."""
        tokenizer = super().from_pretrained(*args, **kwargs)
        file = getattr(tokenizer, "vocab_file", None)
        tokenizer.sentencepiece_model = Path(file).read_bytes() if file else None
        return tokenizer

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str | Sequence[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[str | AddedToken] | None = None,
    ) -> "SentencePieceTokenizer":
        """Trains a vocabulary of the same model type on other texts, with SentencePiece.

        The trainers of the Rust backend would leave out the bytes, and with them what the new texts lack.

        Args:
            text_iterator: Texts, or batches of texts.
            vocab_size: As for `train_sentencepiece`.
            length: Ignored.
            new_special_tokens: Special tokens to add beyond `vocab_size`.

        Raises:
            ValueError: As for `train_sentencepiece`.
            ImportError: `sentencepiece` is not installed.
        """
        tokenizer = train_sentencepiece(
            (text for batch in text_iterator for text in ([batch] if isinstance(batch, str) else batch)),
            vocab_size,
            type(self.backend_tokenizer.model).__name__.lower(),
            chat_template=self.chat_template,
            model_max_length=self.model_max_length,
        )
        extra = [*self.extra_special_tokens, *(new_special_tokens or ())]
        tokenizer.add_special_tokens({"extra_special_tokens": extra})
        return tokenizer

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        file_names = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        if self.sentencepiece_model is None:
            return file_names
        file = Path(save_directory) / self.vocab_files_names["vocab_file"]
        file.write_bytes(self.sentencepiece_model)
        return (*file_names, str(file))


def train_bpe(
    chunks: Iterable[str], vocab_size: int, *, separator: str | None = None, **kwargs: Any
) -> SubwordTokenizer:
    """Trains a byte-level BPE vocabulary, GPT-2's kind: 256 bytes, then the pairs that the text has most of.

    The idea is Sennrich et al. 2016 (arXiv:1508.07909); bytes in the place of characters are GPT-2's. The two special
    tokens, end of text and padding, come last. A pre-token longer than 1,024 bytes is cut, in training and in encoding,
    so that the time is linear in the length of a text without spaces.

    Args:
        chunks: The text, in pieces of any size.
        vocab_size: Tokens of the vocabulary, special ones included.
        separator: What stands between documents; no token is learned from it. No chunk ends inside it.
        **kwargs: Settings that every tokenizer has, such as `chat_template`; they are saved.

    Raises:
        ValueError: The vocabulary is too small for the bytes, or the text has too few pairs to fill it.
    """
    least = NUM_BYTES + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(
            f"a byte-level vocabulary holds {NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens, so vocab_size "
            f"must be at least {least}, got {vocab_size}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Split(Regex(f".{{{_LONGEST_PRE_TOKEN}}}"), "isolated"),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_lines(chunks, separator), trainer)
    _refuse_too_many(vocab_size, backend.get_vocab_size() + len(SPECIAL_TOKENS))
    return SubwordTokenizer(tokenizer_object=_with_special_tokens(backend), **_settings(kwargs))


def train_sentencepiece(
    chunks: Iterable[str],
    vocab_size: int,
    model_type: str = "unigram",
    *,
    separator: str | None = None,
    **kwargs: Any,
) -> SentencePieceTokenizer:
    """Trains a SentencePiece vocabulary with the `sentencepiece` library, bytes standing in for what the text lacks.

    Spaces and line ends are kept as they are, and nothing is normalised. A line end is a token of its own. The tokens
    of a line are those that SentencePiece's own model gives, but for what that one loses: its mark for a space (U+2581)
    in the text itself.

    Source: Kudo and Richardson 2018 (arXiv:1808.06226); the unigram model is Kudo 2018 (arXiv:1804.10959).

    Args:
        chunks: The text, in pieces of any size.
        vocab_size: Tokens of the vocabulary, special ones included.
        model_type: `unigram` or `bpe`.
        separator: As for `train_bpe`.
        **kwargs: Settings that every tokenizer has, such as `chat_template`; they are saved.

    Raises:
        ValueError: There is no such model type, or the vocabulary is too small for the bytes and the text's
            characters, or the text has too few pieces to fill it.
        ImportError: `sentencepiece` is not installed.
    """
    import sentencepiece

    if model_type not in ("unigram", "bpe"):
        raise ValueError(f"model_type is {model_type!r} and can only be 'unigram' or 'bpe'.")
    text = list(_sentences(chunks, separator))
    # What every model holds: the bytes, the text's characters, the unknown token, the line end, the special ones.
    least = NUM_BYTES + len(set().union(*text) - {"\n"}) + 2 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(
            f"the text's characters, {NUM_BYTES} bytes and the special tokens are {least} tokens, so vocab_size must "
            f"be at least {least}, got {vocab_size}."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            unk_piece=_UNKNOWN,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the same text gives the same vocabulary
            minloglevel=2,
        )
    except RuntimeError as error:
        if most := re.search(r"set it to a value <= (\d+)", str(error)):
            _refuse_too_many(vocab_size, int(most[1]) + len(SPECIAL_TOKENS))
        raise ValueError(
            f"SentencePiece cannot make {vocab_size} tokens of this text ({_reason(error)}); lower vocab_size or give "
            "it more text."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    backend = _convert(processor, model_type)
    tokenizer = SentencePieceTokenizer(
        tokenizer_object=_with_special_tokens(backend), unk_token=None, **_settings(kwargs)
    )
    tokenizer.sentencepiece_model = model.getvalue()
    return tokenizer


def _convert(processor: Any, model_type: str) -> Tokenizer:
    """Gives a SentencePiece model's own tokens, ids and segmentation to the Rust backend."""
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    # Spaces as they are in the text, so that the text may hold SentencePiece's mark for them too.
    texts = [piece.replace(_SPACE, " ") for piece in pieces]
    if model_type == "unigram":
        scores = [processor.get_score(index) for index in range(len(pieces))]
        model: Any = models.Unigram(list(zip(texts, scores, strict=True)), unk_id=0, byte_fallback=True)
    else:
        model = models.BPE(
            {text: index for index, text in enumerate(texts)},
            _merges(processor, texts),
            unk_token=_UNKNOWN,
            byte_fallback=True,
            fuse_unk=True,
        )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # No piece goes beyond the word that it begins; cut up, words are found again in the backend's cache. Not
            # "merged_with_next", which the library in JavaScript takes for "isolated".
            pre_tokenizers.Split(Regex(" [^ ]*|[^ ]+"), "isolated"),
            # "<0x41>" in a text is six characters, not the byte of that name.
            pre_tokenizers.Split(Regex("<(?=0x|unk>)"), "isolated"),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _merges(processor: Any, texts: list[str]) -> list[tuple[str, str]]:
    """The pairs that SentencePiece's BPE joins, in its order: a piece joins any two pieces that make it up."""
    known = {text for index, text in enumerate(texts) if not processor.is_byte(index)}
    joined = [index for index, text in enumerate(texts) if len(text) > 1 and text in known - {_UNKNOWN}]
    joined.sort(key=processor.get_score, reverse=True)
    pairs = []
    for index in joined:
        text = texts[index]
        pairs += [(text[:at], text[at:]) for at in range(1, len(text)) if {text[:at], text[at:]} <= known]
    return pairs


def _with_special_tokens(backend: Tokenizer) -> Tokenizer:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def _settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    settings = {"eos_token": END_OF_TEXT, "pad_token": PADDING}
    # Libraries in JavaScript remove spaces before punctuation unless told not to.
    return settings | {"clean_up_tokenization_spaces": False} | kwargs


def _lines(chunks: Iterable[str], separator: str | None = None) -> Iterator[str]:
    """The same text cut at line ends, which stay with their lines, and at separators, which are left out."""
    rest = ""
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
        for document in documents:
            yield from re.findall(r"[^\n]*\n|[^\n]+", document)
        *lines, rest = rest.split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _sentences(chunks: Iterable[str], separator: str | None) -> Iterator[str]:
    """The lines without their ends, in pieces that SentencePiece does not pass over for their length."""
    for line in _lines(chunks, separator):
        sentence = line.removesuffix("\n")
        yield from (sentence[at : at + _LONGEST_SENTENCE] for at in range(0, len(sentence), _LONGEST_SENTENCE))


def _refuse_too_many(asked: int, found: int) -> None:
    if found < asked:
        raise ValueError(
            f"the text has pieces for a vocabulary of {found} tokens and vocab_size is {asked}; lower it or give it "
            "more text."
        )


def _reason(error: RuntimeError) -> str:
    return " ".join(str(error).split("]")[-1].split()) or "it does not say why"
