"""What a text's tokens are: its characters, or subwords learned from it."""

from dataclasses import dataclass
from typing import Any

from minigpt.errors import UsageError
from minigpt.hub.extras import require_extra
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT, MiniGPTTokenizer
from minigpt.training.data.corpus import Corpus
from minigpt.training.data.tokens import training_text

KINDS = ("char", "bpe", "sentencepiece")
SENTENCEPIECE_TYPES = ("unigram", "bpe")
SUBWORDS = 512


@dataclass(frozen=True)
class Vocabulary:
    """What was asked for.

    Attributes:
        kind: `char`, `bpe` (byte-level, as GPT-2's) or `sentencepiece`.
        size: Tokens, special ones included; for subwords 512 by default, and for characters as many as the text has.
        sentencepiece_type: `unigram` or `bpe`, of a SentencePiece model.
    """

    kind: str = "char"
    size: int | None = None
    sentencepiece_type: str = "unigram"

    def check(self) -> None:
        """Refuses what no text could give.

        Raises:
            UsageError: There is no such kind, the size is none, or a package is missing.
        """
        if self.kind not in KINDS:
            raise UsageError(f"there is no tokenizer {self.kind!r}; choose from {', '.join(KINDS)}.")
        if self.sentencepiece_type not in SENTENCEPIECE_TYPES:
            raise UsageError(
                f"there is no SentencePiece model of type {self.sentencepiece_type!r}; choose from "
                f"{' and '.join(SENTENCEPIECE_TYPES)}."
            )
        if self.size is not None and self.size < 1:
            raise UsageError(f"vocab_size must be at least 1, got {self.size}.")
        if self.kind == "sentencepiece":
            require_extra("sentencepiece", "a SentencePiece vocabulary", "sentencepiece")

    def learn(self, corpus: Corpus) -> Any:
        """Makes the tokenizer of a text. The same text gives the same one.

        Subwords are learned from the training split alone: the words of the other one would have tokens of their own,
        that no model is trained on. Characters are those of both. EOS tokens between documents are not learned from.

        Raises:
            UsageError: The size is too small for the bytes and characters it must hold, or too large for the text.
        """
        separator = END_OF_TEXT if corpus.documents else None
        try:
            if self.kind == "char":
                return self._characters(corpus)
            if self.kind == "bpe":
                return train_bpe(training_text(corpus), self.size or SUBWORDS, separator=separator)
            return train_sentencepiece(
                training_text(corpus), self.size or SUBWORDS, self.sentencepiece_type, separator=separator
            )
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _characters(self, corpus: Corpus) -> MiniGPTTokenizer:
        tokenizer = MiniGPTTokenizer.from_characters(sorted(corpus.characters()))
        if self.size not in (None, len(tokenizer)):
            raise UsageError(
                f"{corpus.name} has {len(tokenizer.stoi)} different characters, so its character vocabulary has "
                f"{len(tokenizer)} tokens and vocab_size cannot be {self.size}; leave it out, or take --tokenizer bpe."
            )
        return tokenizer


def untrained_ids(tokenizer: Any, *, has_documents: bool = False) -> list[int]:
    """Return the ids that no text has, which a model trained on text only must not write; documents have EOS."""
    unknown = tokenizer.get_vocab().get("<unk>") if hasattr(tokenizer, "sentencepiece_model") else None
    ids = {*tokenizer.all_special_ids} | ({unknown} if unknown is not None else set())
    return sorted(ids - ({tokenizer.eos_token_id} if has_documents else set()))


def in_words(tokenizer: Any) -> str:
    """What a person is told of a vocabulary."""
    special = len(tokenizer.all_special_ids)
    if hasattr(tokenizer, "stoi"):
        return f"{len(tokenizer.stoi)} different characters and {special} special tokens"
    return f"{len(tokenizer) - special} subwords and {special} special tokens"
