"""Text that appears as it is made: each token's as soon as nothing that follows can change it."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

INCOMPLETE = "\ufffd"  # what bytes that are not yet a whole character decode to


class TokenStreamer(TextStreamer):
    """Prints a text while `generate()` makes it, token by token: a character model's, letter by letter.

    The stock `TextStreamer` holds every word back until the space after it, and decodes the whole line again for each
    token. This one decodes a token together with those just before it, on which its spaces may depend, and holds back
    only bytes that are not yet a whole character. What it prints adds up to what the tokenizer decodes at once.

    Args:
        tokenizer: The tokenizer of the tokens.
        skip_prompt: Whether only what is new is printed.
        **decode_kwargs: For the tokenizer's `decode`, such as `skip_special_tokens`. Spaces are not cleaned up unless
            that is asked for here: a space that is printed cannot be taken back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        super().__init__(tokenizer, skip_prompt, **{"clean_up_tokenization_spaces": False, **decode_kwargs})
        self.next_tokens_are_prompt = True
        self.token_cache: list[int] = []
        self.num_printed = 0  # of the tokens in the cache

    def put(self, value: torch.Tensor) -> None:
        """Receives tokens, int64 of shape (seq,) or (1, seq), and prints what is certain of their text.

        Raises:
            ValueError: There is more than one row: two texts cannot be printed at once.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"a streamer prints one text and got {value.shape[0]}; generate them one at a time.")
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.token_cache += value.flatten().tolist()
        text = self._text_to_print()
        if text and not text.endswith(INCOMPLETE):
            self.token_cache = self.token_cache[self.num_printed :]
            self.num_printed = len(self.token_cache)
            self.on_finalized_text(text)

    def end(self) -> None:
        """Prints what was held back, and a new line."""
        text = self._text_to_print()
        self.token_cache, self.num_printed, self.next_tokens_are_prompt = [], 0, True
        self.on_finalized_text(text, stream_end=True)

    def _text_to_print(self) -> str:
        printed = self.tokenizer.decode(self.token_cache[: self.num_printed], **self.decode_kwargs)
        return self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[len(printed) :]
