"""The character tokenizer: one character, one token, in an order that anybody can compute with `sorted(set(text))`.

It has two doors. `tokenizer(text)` is the one of every tokenizer on the Hub: special tokens, offsets, padding, chat
templates, computed in Rust and saved as a `tokenizer.json` that loads without this package. `encode_array` and
`decode_array` are the fast one, for whole corpora: a table look-up over code points, where everything is characters.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from transformers import BatchEncoding, TokenizersBackend

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
PADDING = "<|pad|>"

KEPT_SETTINGS = ("chat_template", "model_max_length", "padding_side", "split_special_tokens", "truncation_side")
NAMED_IN_MESSAGES = 5
WARNED_OF_UNKNOWN = "unknown-characters"
NOT_ONE_CHARACTER = 0xFFFFFFFF  # beyond every code point

logger = logging.getLogger(__name__)

Derived = TypeVar("Derived")


class UnknownCharacterError(ValueError):
    """Characters that the vocabulary does not have.

    Args:
        first_positions: Each unknown character and where in the text it is first seen, in characters from 0. Whoever
            reads a text in chunks can raise again with the chunk's start added.
        remedy: What to do, where more is known about the text.
    """

    def __init__(self, first_positions: Mapping[str, int], remedy: str | None = None) -> None:
        super().__init__(first_positions, remedy)
        self.first_positions = first_positions
        self.remedy = remedy or "take out what is missing, or train on text that has it"

    def __str__(self) -> str:
        named = (f"{_name(character)} first at position {at}" for character, at in self.first_positions.items())
        return f"the vocabulary lacks {_shorten(named)}; {self.remedy}"


class LongTextTokenizer(TokenizersBackend):
    """A tokenizer for models that crop their own context, so that a text longer than the block is no mistake."""

    # Private in transformers 5.23. The warning predicts "indexing errors", which these models do not have.
    def _eventual_warn_about_too_long_sequence(self, ids: list[int], max_length: int | None, verbose: bool) -> None:
        pass


def _derived(
    derive: "Callable[[MiniGPTTokenizer], Derived]",
) -> "Callable[[MiniGPTTokenizer], Derived]":
    """Keep what is derived from the vocabulary until tokens are added."""

    @wraps(derive)
    def look_up(self: "MiniGPTTokenizer") -> Derived:
        if derive.__name__ not in self.cache:
            self.cache[derive.__name__] = derive(self)
        found: Derived = self.cache[derive.__name__]
        return found

    return look_up


class MiniGPTTokenizer(LongTextTokenizer):
    """One character, one token.

    Characters have the ids 0, 1, 2, … in the order of their code points, as `sorted(set(text))` lists them. Three
    special tokens follow, each with its own id: `<|endoftext|>` (`eos_token`), `<|unk|>` (`unk_token`) and `<|pad|>`
    (`pad_token`). There is no beginning-of-text token, and nothing is added, stripped or cleaned up on the way.

    Build one with `from_text` or `from_iterator`, or with `from_characters` where ids were given out in an order of
    their own; load one with `from_pretrained`.
    """

    cache: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "MiniGPTTokenizer":
        """Make a tokenizer that has derived nothing yet.

        Use must not change the hash by which `datasets` finds the result of a `map` again. It leaves out two of a
        tokenizer's attributes: `cache` and `deprecation_warnings`. A class with an `__init__` is not loaded from the
        `tokenizer.json` as it is (transformers 5.23).
        """
        tokenizer = super().__new__(cls)
        tokenizer.cache = {}
        return tokenizer

    @classmethod
    def from_text(cls, text: str, **kwargs: Any) -> "MiniGPTTokenizer":
        """Makes a tokenizer whose vocabulary is the characters of `text`, in any order and any number of times.

        Args:
            text: At least one character.
            **kwargs: Settings that every tokenizer has, such as `model_max_length` or `chat_template`; they are saved.

        Raises:
            ValueError: `text` is empty or has half a surrogate pair.
        """
        return cls.from_iterator([text], **kwargs)

    @classmethod
    def from_iterator(cls, chunks: Iterable[str], **kwargs: Any) -> "MiniGPTTokenizer":
        """Like `from_text`, for a text that comes in pieces and need not fit in memory."""
        characters: set[str] = set()
        for chunk in chunks:
            if not isinstance(chunk, str):
                raise TypeError(f"a vocabulary is made from str, not {type(chunk).__name__}; decode the text first")
            characters.update(chunk)
        if not characters:
            raise ValueError("a vocabulary needs at least one character and the text is empty; give it some text")
        return cls.from_characters(sorted(characters), **kwargs)

    @classmethod
    def from_characters(cls, characters: Sequence[str], **kwargs: Any) -> "MiniGPTTokenizer":
        """Makes a tokenizer that gives each character its place in `characters` as its id, whatever their order.

        Args:
            characters: The characters of the ids 0, 1, 2, …, at least one, each once.
            **kwargs: As for `from_text`.

        Raises:
            ValueError: There is none, or one is not a single character, or is half a surrogate pair, or comes twice.
        """
        if not characters:
            raise ValueError("a vocabulary needs at least one character and got none; give it some")
        for index, character in enumerate(characters):
            if len(character) != 1:
                raise ValueError(
                    f"{character!r} at place {index} is not one character; {cls.__name__} knows only single ones"
                )
        _refuse_surrogates(characters)
        if len(set(characters)) < len(characters):
            twice = next(c for index, c in enumerate(characters) if c in characters[:index])
            raise ValueError(f"{_name(twice)} comes twice and can have only one id; list it once")

        special = {
            name: kwargs.pop(name, token)
            for name, token in (("eos_token", END_OF_TEXT), ("unk_token", UNKNOWN), ("pad_token", PADDING))
        }
        vocabulary = [*characters, *map(str, special.values())]
        # Byte pair encoding that merges no pair leaves single characters, and is the quickest of the Rust models.
        ids = {token: index for index, token in enumerate(vocabulary)}
        backend = Tokenizer(BPE(ids, merges=[], unk_token=str(special["unk_token"])))
        # The default decoder puts spaces between tokens. This one does not, and libraries for constrained decoding know
        # it. No character is spelled like a byte.
        backend.decoder = decoders.ByteFallback()
        # Libraries in JavaScript remove spaces before punctuation unless told not to. Given here rather than as a class
        # attribute, it is saved and holds for those who load without this class.
        settings = {"clean_up_tokenization_spaces": False}
        return cls(tokenizer_object=backend, **(settings | special | kwargs))

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str | Sequence[str]],
        vocab_size: int | None = None,
        length: int | None = None,
        new_special_tokens: Sequence[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
    ) -> "MiniGPTTokenizer":
        """Makes a tokenizer of the characters of other texts, with the settings and special tokens of this one.

        Args:
            text_iterator: Texts, or batches of texts.
            vocab_size: The most tokens to accept. Every character of the texts is one, whatever this is.
            length: Ignored; trainers of subwords use it to show their progress.
            new_special_tokens: Special tokens to add.
            special_tokens_map: New names for special tokens of this tokenizer.

        Raises:
            ValueError: The texts have no characters, or too many for `vocab_size`.
        """
        renamed = special_tokens_map or {}
        named = {name: renamed.get(token, token) for name, token in self.special_tokens_map.items()}
        settings = {name: getattr(self, name) for name in KEPT_SETTINGS}
        extra = [*self.extra_special_tokens, *(new_special_tokens or ())]
        tokenizer = type(self).from_iterator(
            (text for batch in text_iterator for text in ([batch] if isinstance(batch, str) else batch)),
            **settings,
            **named,
            extra_special_tokens=extra,
        )
        if vocab_size is not None and len(tokenizer) > vocab_size:
            raise ValueError(
                f"the texts have {len(tokenizer.stoi)} different characters, which make a vocabulary of"
                f" {len(tokenizer)} tokens, and vocab_size is {vocab_size}; raise it or leave it out"
            )
        return tokenizer

    @property
    @_derived
    def stoi(self) -> dict[str, int]:
        """Every character and its id, in the order of the ids; special tokens are not among them."""
        whole = set(self.added_tokens_encoder)
        pieces = [token for token in self.backend_tokenizer.get_vocab(False) if len(token) > 1 and token not in whole]
        if pieces:
            raise ValueError(
                f"{min(pieces)!r} is one token of this vocabulary and {type(self).__name__} knows only single"
                " characters; load it with AutoTokenizer or TokenizersBackend"
            )
        return {token: i for token, i in sorted(self.get_vocab().items(), key=lambda item: item[1]) if len(token) == 1}

    @property
    @_derived
    def itos(self) -> dict[int, str]:
        """Every id of a character and the character: `stoi` the other way round."""
        return {index: character for character, index in self.stoi.items()}

    def encode_array(self, text: str, errors: Literal["strict", "unk"] = "strict") -> NDArray[np.unsignedinteger]:
        """Encodes a text of any length, fast, reading everything in it as characters: `<|endoftext|>` is thirteen.

        Args:
            text: The text.
            errors: What to do about a character outside the vocabulary: `"strict"` raises, `"unk"` gives the unknown
                token's id.

        Returns:
            One id per character, shape `(len(text),)`, `uint16` if every id of the vocabulary fits, else `uint32`.

        Raises:
            UnknownCharacterError: A character is outside the vocabulary and `errors` is `"strict"`.
        """
        _check_errors(errors)
        codes = _code_points(text)
        ids = self._id_of_code.take(codes, mode="clip")
        if errors == "strict":
            unknown = np.flatnonzero(ids == self.unk_token_id)
            if unknown.size:
                first = np.sort(unknown[np.unique(codes[unknown], return_index=True)[1]])
                raise UnknownCharacterError({text[at]: at for at in first.tolist()})
        return ids

    def decode_array(self, ids: ArrayLike) -> str:
        """Turns ids back into text, fast. Special and added tokens give their own text.

        Args:
            ids: Integers in a row, shape `(length,)`.

        Raises:
            ValueError: `ids` has another shape or type, or an id that the vocabulary does not have.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"ids are integers in one row, not {ids.dtype} of shape {ids.shape}; decode row by row")
        if not ids.size:
            return ""
        if ids.min() < 0 or ids.max() >= len(self):
            at = int(np.flatnonzero((ids < 0) | (ids >= len(self)))[0])
            raise ValueError(
                f"id {ids[at]} at position {at} is outside the vocabulary, which ends at {len(self) - 1};"
                " decode with the tokenizer that the ids were made with"
            )
        codes = self._code_of_id[ids]
        text, start = [], 0
        for at in np.flatnonzero(codes == NOT_ONE_CHARACTER).tolist():
            text += [_text(codes[start:at]), str(self.backend_tokenizer.id_to_token(int(ids[at])))]
            start = at + 1
        return "".join([*text, _text(codes[start:])])

    @property
    @_derived
    def _id_of_code(self) -> NDArray[np.unsignedinteger]:
        """The id of each code point up to the largest known one; the last entry stands for all beyond."""
        codes = _code_points("".join(self.stoi))
        table = np.full(codes.max() + 2, self.unk_token_id, np.uint16 if len(self) <= 2**16 else np.uint32)
        table[codes] = list(self.stoi.values())
        return table

    @property
    @_derived
    def _code_of_id(self) -> NDArray[np.uint32]:
        """The code point of each id, or `NOT_ONE_CHARACTER`."""
        table = np.full(len(self), NOT_ONE_CHARACTER, "<u4")
        table[list(self.itos)] = _code_points("".join(self.stoi))
        return table

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        self.cache.clear()
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _encode_plus(
        self, text: Any, text_pair: Any = None, *args: Any, errors: Literal["strict", "unk"] = "unk", **kwargs: Any
    ) -> BatchEncoding:
        _check_errors(errors)
        # A chat with its control tokens marked comes back here piece by piece, without the marks.
        if not kwargs.get("sanitize_control_tokens"):
            texts = [*_strings(text), *_strings(text_pair)]
            self._notice_unknown(texts, kwargs.get("split_special_tokens"), errors)
        return super()._encode_plus(text, text_pair, *args, **kwargs)

    def _notice_unknown(self, texts: list[str], split_special_tokens: bool | None, errors: str) -> None:
        """Warns, the first time only, of characters that become the unknown token; raises where that is not wanted."""
        unknown = set().union(*texts).difference(self.stoi)
        if not unknown:
            return
        _refuse_surrogates(unknown)
        has_warned = self.deprecation_warnings.get(WARNED_OF_UNKNOWN, False)
        if has_warned and errors == "unk":
            return
        # `<|endoftext|>` may be made of characters that the vocabulary lacks and is known all the same.
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        whole = [token.content for token in self.added_tokens_decoder.values() if not (split and token.special)]
        between = re.compile("|".join(map(re.escape, whole)))
        unknown = set().union(*(between.sub("", text) for text in texts)).difference(self.stoi)
        if unknown and errors == "strict":
            raise UnknownCharacterError({c: next(t.index(c) for t in texts if c in t) for c in sorted(unknown)})
        if unknown:
            self.deprecation_warnings[WARNED_OF_UNKNOWN] = True
            logger.warning(
                "the vocabulary lacks %s; each becomes %s, and this is said only once",
                _shorten(map(_name, sorted(unknown))),
                self.unk_token,
            )


def _check_errors(errors: str) -> None:
    if errors not in ("strict", "unk"):
        raise ValueError(f'errors is {errors!r} and can only be "strict" or "unk"')


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _text(codes: NDArray[np.uint32]) -> str:
    return codes.tobytes().decode("utf-32-le")


def _strings(text: Any) -> Iterator[str]:
    """The strings in what a tokenizer accepts: one, a list of them, pairs, or lists of words."""
    if isinstance(text, str):
        yield text
    elif isinstance(text, (list, tuple)):
        for part in text:
            yield from _strings(part)


def _name(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMED_IN_MESSAGES
    return ", ".join(names[:NAMED_IN_MESSAGES]) + (f" and {more} more" if more > 0 else "")


def _refuse_surrogates(characters: Iterable[str]) -> None:
    halves = sorted(character for character in characters if "\ud800" <= character <= "\udfff")
    if halves:
        raise ValueError(
            f"{_name(halves[0])} is half of a surrogate pair, which no file can hold as UTF-8;"
            ' read the text with encoding="utf-8"'
        )
