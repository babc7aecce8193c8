"""Open a saved tokenizer, or refuse it in one sentence."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.json_files import AS_SAVED
from minigpt.hub.loading_errors import opening

# The flag under which transformers notes that it has warned of a long text (5.23).
_WARNED_OF_LENGTH = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(
    source: str | Path, *, remedy: str = "save it there with tokenizer.save_pretrained", **loading: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can be saved again without a trace of how it was loaded.

    Args:
        source: A folder, or a Hub repository's id.
        remedy: What to do if there is none.
        **loading: Arguments of `AutoTokenizer.from_pretrained`.

    Raises:
        UsageError: There is none (transformers would invent one that knows no text), or a file of it cannot be used.
        OSError: There is no such repository.
    """
    none = UsageError(f"{source} holds no tokenizer; {remedy}.")
    with opening(source, loading.get("revision"), what="tokenizer", remedy=remedy):
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **loading)
        except ValueError as error:
            if "instantiate the backend tokenizer" in str(error):  # what it says of a type that it cannot invent for
                raise none from error
            raise
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        # Libraries in JavaScript remove spaces before punctuation unless the saved tokenizer forbids it.
        tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
        # A command encodes whole texts and cuts them itself where the model needs it.
        tokenizer.deprecation_warnings[_WARNED_OF_LENGTH] = True
        if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
            raise none
        if hasattr(tokenizer, "stoi") and tokenizer.unk_token_id is None:
            raise UsageError(
                f"{Path(source) / 'tokenizer_config.json'} names no unk_token, which a vocabulary of characters needs; "
                f"{AS_SAVED}."
            )
    return tokenizer
