"""What the ids of weights from elsewhere stand for, and room for the special tokens that they lack."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.auto_classes import register
from minigpt.hub.file_kinds import HEAD, name_encoding, name_format
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.importing.pickles import load_meta
from minigpt.hub.tokenizer_loading import load_tokenizer
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.tokenization.text_forms import NormalForm, convert_pieces
from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT, PADDING, MiniGPTTokenizer

GPT2 = "openai-community/gpt2"
# As many tokens as GPT-2 has, and those rounded up to a multiple of 64, with which nanoGPT trains from scratch.
_GPT2_SIZES = (50257, 50304)
# Embedding tables are rounded up to a multiple of this, or twice this, which is quicker on a GPU.
_ROUNDED_TO = 64
_CHUNK_CHARACTERS = 2**20
_ASKED_TOKENS = 256


@dataclass(frozen=True)
class ForeignVocabulary:
    """Where to learn what the ids stand for: at most one of them is given.

    Attributes:
        meta: nanoGPT's `meta.pkl`.
        text: The text that the model was trained on; its characters, sorted, have the ids 0, 1, 2, …
        tokenizer: A folder or a Hub id.
        encoding: Encoding of the text; by default UTF-8.
        normalize: Unicode normal form to bring the text to.
    """

    meta: Path | None = None
    text: Path | None = None
    tokenizer: str | None = None
    encoding: str | None = None
    normalize: NormalForm | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("meta", "text", "tokenizer") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} both say what the ids stand for; give one of them.")
        for name in ("encoding", "normalize"):
            if getattr(self, name) is not None and self.text is None:
                raise UsageError(f"--{name} decides how --text is read, and no text is given; leave it out.")


def find_tokenizer(
    vocabulary: ForeignVocabulary, vocab_size: int, source: str, metas: list[Path]
) -> PreTrainedTokenizerBase:
    """The tokenizer of `vocab_size` ids, as asked for or else as nanoGPT would find it.

    Args:
        vocabulary: What was asked for.
        vocab_size: How many ids the weights know.
        source: Where the weights come from, for messages.
        metas: Where a `meta.pkl` may lie when nothing was asked for.

    Raises:
        UsageError: The vocabulary is of another size, or nothing says what it is.
        OSError: The Hub does not give out the tokenizer.
    """
    if vocabulary.meta is not None:
        return _of_characters(load_meta(vocabulary.meta), vocab_size, source, str(vocabulary.meta))
    if vocabulary.text is not None:
        characters = _characters(vocabulary)
        if len(characters) != vocab_size and not vocabulary.normalize:
            for form in get_args(NormalForm):
                if len(_characters(replace(vocabulary, normalize=form))) == vocab_size:
                    raise UsageError(
                        f"{vocabulary.text} has {len(characters):,} different characters and {source} {vocab_size:,} "
                        f"ids; add --normalize {form}, with which the text has as many."
                    )
        return _of_characters(sorted(characters), vocab_size, source, str(vocabulary.text))
    if vocabulary.tokenizer is not None:
        return _open_tokenizer(vocabulary.tokenizer)
    found = [path for path in metas if path.is_file()]
    for path in found:
        if len(listed := load_meta(path)) == vocab_size:
            print(f"The characters of the ids are those of {path}.", file=sys.stderr)
            return _of_characters(listed, vocab_size, source, str(path))
    if vocab_size in _GPT2_SIZES:
        print(f"{vocab_size:,} ids: taking GPT-2's tokenizer, {GPT2}.", file=sys.stderr)
        return _open_tokenizer(GPT2)
    other = f" ({found[0]} has another number)" if found else ""
    raise UsageError(
        f"{source} has {vocab_size:,} ids and does not say what they stand for{other}; give --meta meta.pkl, "
        "--text with the text that it was trained on, or --tokenizer."
    )


def read_text(vocabulary: ForeignVocabulary) -> Iterator[str]:
    """Yield the text of a vocabulary in pieces, read as the scripts read theirs: every line end a line feed.

    Raises:
        UsageError: It is no text in its encoding, or cannot be read.
    """
    path, encoding = vocabulary.text, vocabulary.encoding or "utf-8"
    assert path is not None
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file, and the text is read more than once; save it to one.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if named := name_format(head) or (None if vocabulary.encoding else name_encoding(head)):
            raise UsageError(f"{path} {named}.")
        with path.open(encoding=encoding) as text:
            pieces = iter(lambda: text.read(_CHUNK_CHARACTERS), "")
            yield from convert_pieces(pieces, "keep", vocabulary.normalize or "none")
    except LookupError as error:
        raise UsageError(f"there is no encoding {encoding!r}; use a name that Python knows, such as cp1252.") from error
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"{path} is not a text in {encoding.upper()} ({reason}); name its encoding with --encoding, or save it as "
            "UTF-8."
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _characters(vocabulary: ForeignVocabulary) -> set[str]:
    return set().union(*read_text(vocabulary))


def _of_characters(characters: list[str], vocab_size: int, source: str, name: str) -> MiniGPTTokenizer:
    if len(characters) != vocab_size:
        raise UsageError(
            f"{name} has {len(characters):,} different characters and {source} {vocab_size:,} ids; give the one that "
            "it was trained with."
        )
    return MiniGPTTokenizer.from_characters(characters)


def _open_tokenizer(source: str) -> PreTrainedTokenizerBase:
    register()
    # A tokenizer that is code is refused: nothing of what is imported is run.
    return load_tokenizer(
        source,
        remedy="give --tokenizer with the folder or Hub id of its own",
        local_files_only=Path(source).is_dir() or not hub_has(source),
        trust_remote_code=False,
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}


def fit_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Gives a model rows for the special tokens that it lacks, and keeps it from writing what it was not trained on.

    The ids that the model knows keep their rows. End of text and padding are added to a tokenizer that has none. A new
    token begins as unlikely as the rarest that the model knows, so that the loss on a text is what it was.

    Args:
        model: In evaluation mode; changed in place, its generation settings too.
        tokenizer: Changed in place.
        source: Where the weights come from, for messages.

    Raises:
        UsageError: The tokenizer has tokens that the model does not know, or too few for it.
    """
    vocab_size = model.config.vocab_size
    vocabulary = tokenizer.get_vocab()
    special = _special_ids(tokenizer)
    learned = max((i for i in vocabulary.values() if i not in special), default=-1) + 1
    known = max(vocabulary.values()) + 1
    is_rounded_up = vocab_size % _ROUNDED_TO == 0 and vocab_size - known < 2 * _ROUNDED_TO
    if learned > vocab_size or not (vocab_size <= known or is_rounded_up):
        raise UsageError(
            f"the tokenizer has {known:,} tokens and {source} {vocab_size:,} ids; give the one of its training."
        )
    missing = {"eos_token": END_OF_TEXT, "pad_token": PADDING}
    tokenizer.add_special_tokens({name: text for name, text in missing.items() if getattr(tokenizer, name) is None})

    rows = max(vocab_size, max(tokenizer.get_vocab().values()) + 1)
    if rows > vocab_size:
        _add_rows(model, rows)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = lecture_generation_config(range(min(vocab_size, known), rows), **ids)


@torch.no_grad()
def _add_rows(model: PreTrainedModel, rows: int) -> None:
    old = model.config.vocab_size
    rarest = _rarest(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    table[old:] = table[rarest]
    if head is None:  # a bigram's columns are its head
        table[:, old:] = table[:, [rarest]]
    else:
        head.weight[old:] = head.weight[rarest]
        if head.bias is not None:
            head.bias[old:] = head.bias[rarest]


def _rarest(model: PreTrainedModel) -> int:
    """The token that a model expects least, on average after ids that mean nothing."""
    block_size = model.config.block_size
    shape = (max(1, _ASKED_TOKENS // block_size), block_size)
    ids = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))  # (rows, block)
    return int(model(ids).logits.float().softmax(-1).mean((0, 1)).argmin())
