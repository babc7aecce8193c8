"""Samples of text: several in a batch, or one that is streamed, each up to its first stop string."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from minigpt.errors import UsageError
from minigpt.hub.chatting.streaming import TokenStreamer
from minigpt.hub.context import generation_errors
from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError

# Tokens of all rows of a batch together, which bounds the memory of their keys and values.
_TOKENS_AT_ONCE = 2**14


def check_stops(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
    """Refuse a stop string that can never be written.

    Raises:
        UsageError: The character vocabulary lacks one of its characters.
    """
    for stop in stops if hasattr(tokenizer, "encode_array") else ():
        try:
            tokenizer.encode_array(stop, errors="strict")
        except UnknownCharacterError as error:
            raise UsageError(f"--stop {stop!r} never occurs in a text of this model: {error}.") from error


def write_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: torch.Tensor,
    *,
    count: int = 1,
    stops: Sequence[str] = (),
    max_new_tokens: int,
    **sampling: Any,
) -> Iterator[tuple[str, str]]:
    """Yield texts that continue a prompt, made in batches of as many as fit.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Ids of shape (1, seq).
        count: Number of texts.
        stops: Stop strings. A text ends before the first one in it.
        max_new_tokens: Most tokens of each.
        **sampling: Arguments of `generate()`.

    Yields:
        The prompt, and what continues it.
    """
    start, config = prompt.shape[1], model.generation_config
    ends = set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    # transformers ends a text after these, and several texts only once all of them have ended.
    kept = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    most = max(1, _TOKENS_AT_ONCE // (start + max_new_tokens))
    for done in range(0, count, most):
        rows = prompt.repeat(min(most, count - done), 1)  # (batch, seq)
        output = _generate(model, tokenizer, rows, stops, max_new_tokens=max_new_tokens, **sampling)
        for row in output.tolist():
            shown, text = _decode(tokenizer, row, start, ends)
            yield shown, text[: _end_of(text, stops, kept if count > 1 else [])]


def stream_sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: torch.Tensor,
    *,
    stops: Sequence[str] = (),
    **sampling: Any,
) -> None:
    """Print the text that continues a prompt while it is made; the arguments are those of `write_samples`."""
    streamer = _StoppingStreamer(tokenizer, stops)
    _generate(model, tokenizer, prompt, stops, streamer=streamer, **sampling)


class StopTexts(StoppingCriteria):
    """End a text once one of some strings occurs in what was written.

    It compares texts. The stop strings of transformers compare tokens, and fail in a vocabulary that lacks the
    characters by which they find out what a token spells.

    Args:
        tokenizer: The tokenizer of the tokens.
        stops: The strings.
        start: Number of tokens of the prompt, in which nothing is looked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], start: int) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.start = start
        # A token is at least one byte; a few more, for those that need others around them or are not shown.
        self.tail = max(len(stop.encode()) for stop in stops) + 8

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Return for each row of ids (batch, seq) whether it ends, as (batch,)."""
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.tail) :].tolist()
        texts = [self.tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class _StoppingStreamer(TokenStreamer):
    """Prints a text up to its first stop string, and holds back what may be the beginning of one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.stops = stops
        self.held = ""
        self.is_prompt = True
        self.has_ended = False

    def put(self, value: torch.Tensor) -> None:
        self.is_prompt = self.next_tokens_are_prompt
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self.is_prompt:
            text = "" if self.has_ended else self.held + text
            end = _end_of(text, self.stops)
            self.has_ended |= end is not None
            safe = len(text) if stream_end else len(text) - _length_of_beginning(text, self.stops)
            text, self.held = (text[:safe], text[safe:]) if end is None else (text[:end], "")
        super().on_finalized_text(text, stream_end=stream_end)


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor, stops: Sequence[str], **how: Any
) -> torch.Tensor:
    criteria = [StopTexts(tokenizer, stops, rows.shape[1])] if stops else []
    with generation_errors(model):
        output: torch.Tensor = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            num_return_sequences=1,
            stopping_criteria=criteria,
            tokenizer=tokenizer,  # for stop strings, should the generation config have any
            **how,
        )
    return output


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, ends: set[int]) -> tuple[str, str]:
    """Return the text of a prompt of `start` tokens, and of what follows until its EOS token."""
    last = next((place for place in range(start, len(ids)) if ids[place] in ends), len(ids))
    prompt, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:start], ids[: last + 1]))
    seam = len(prompt) if text.startswith(prompt) else 0
    return text[:seam], text[seam:]


def _end_of(text: str, stops: Sequence[str], kept: Sequence[str] = ()) -> int | None:
    """Return where a text ends: before the stop string that is complete first, after one that is kept, or nowhere."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    found += [(place + len(stop), place + len(stop)) for stop in kept if (place := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _length_of_beginning(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may begin a stop string."""
    lengths = (length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return max(lengths, default=0)
