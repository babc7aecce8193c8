"""The JSON files that transformers reads of a model's folder, checked for what it takes silently or stumbles over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt.errors import UsageError
from minigpt.hub.json_files import AS_SAVED, kind_of, read_object

CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# transformers takes a generation_config.json that is cut short for none.
READ = (*CONFIGS, INDEX, TOKENIZER, "special_tokens_map.json", "added_tokens.json")

# Fields of a generation config that `generate()` first uses when all is loaded, by what they hold.
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
_INTEGERS = ("top_k", "max_new_tokens", "max_length", "min_new_tokens", "min_length", "num_beams", "pad_token_id")
_FLAGS = ("do_sample", "use_cache")
_ID_LISTS = ("eos_token_id", "bos_token_id", "suppress_tokens", "begin_suppress_tokens")
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys((*_INTEGERS, *_ID_LISTS), (int,)),
    **dict.fromkeys(_FLAGS, (bool,)),
}


def check_json(folder: Path) -> None:
    """Refuse a folder with a JSON file that is damaged, or says what cannot be.

    Raises:
        UsageError: A file is not JSON or not an object, an index names files that are not there, two tokens have the
            same id, or a generation setting is of a wrong type.
    """
    checks = {INDEX: _check_index, TOKENIZER: _check_ids, "generation_config.json": _check_generation}
    for name in READ:
        if (folder / name).is_file():
            content = read_object(folder / name)
            if name in checks:
                checks[name](folder / name, content)


def _check_index(file: Path, index: dict[str, Any]) -> None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UsageError(f"{file} maps no weights to files (its weight_map is {kind_of(shards)}); {AS_SAVED}.")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or not (file.parent / shard).is_file():
            raise UsageError(f"{file} names {shard!r}, and there is no such file beside it; {AS_SAVED}.")


def _check_ids(file: Path, tokenizer: dict[str, Any]) -> None:
    """Refuse a tokenizer that reads two tokens as one id: what it decodes is then another text."""
    if not isinstance(tokenizer.get("added_tokens"), list):
        raise UsageError(f"{file} lists no added_tokens; {AS_SAVED}.")
    known: dict[int, str] = {}
    for token, index in _tokens(tokenizer):
        if known.setdefault(index, token) != token:
            raise UsageError(f"{file} gives both {known[index]!r} and {token!r} the id {index}; {AS_SAVED}.")


def _tokens(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the tokens of a `tokenizer.json` and their ids; what is of a wrong type is left to its reader."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # The ids of a Unigram model are places in a list.
    if isinstance(vocabulary, dict):
        yield from ((token, index) for token, index in vocabulary.items() if isinstance(index, int))
    for entry in tokenizer["added_tokens"]:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("content"), str):
            yield entry["content"], entry["id"]


def _check_generation(file: Path, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        listed = value if name in _ID_LISTS and isinstance(value, list) else [value]
        allowed = _KINDS.get(name, ())
        if value is not None and allowed and any(type(one) not in allowed for one in listed):
            raise UsageError(f"{file} has a {name} that is {_wrong_kind(value, listed, allowed)}; {AS_SAVED}.")


def _wrong_kind(value: Any, listed: list[Any], allowed: tuple[type, ...]) -> str:
    wrong = next(one for one in listed if type(one) not in allowed)
    kind = "a fraction" if isinstance(wrong, float) else kind_of(wrong)
    return f"a list with {kind} in it" if isinstance(value, list) and wrong is not value else kind
