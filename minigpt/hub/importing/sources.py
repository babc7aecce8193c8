"""Models from elsewhere, made MiniGPT folders: what a source is, and who reads it."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.auto_classes import register
from minigpt.hub.folders import check_output, staged_folder
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.importing.lecture import (
    SCALES,
    AttentionScale,
    choose_scale,
    from_bigram,
    from_lecture,
    is_bigram,
    is_lecture,
    scale_matters,
)
from minigpt.hub.importing.nanogpt import from_nanogpt, is_nanogpt
from minigpt.hub.importing.pickles import load_checkpoint
from minigpt.hub.importing.state_dicts import Weights, find_weights
from minigpt.hub.importing.vocabularies import ForeignVocabulary, find_tokenizer, fit_tokens, read_text
from minigpt.hub.loading import limit_to_block, open_trained
from minigpt.hub.loading_errors import opening
from minigpt.hub.stock.conversion import import_stock
from minigpt.hub.unfinished import refuse_unfinished
from minigpt.hub.weights import refuse_not_finite
from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.tokenization.text_forms import NormalForm

CHECKPOINT = "ckpt.pt"
_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl"}
_OURS = {MiniGPTConfig.model_type, BigramConfig.model_type}


def import_model(
    source: str | Path,
    output: str | Path | None = None,
    *,
    meta: str | Path | None = None,
    text: str | Path | None = None,
    encoding: str | None = None,
    normalize: NormalForm | None = None,
    tokenizer: str | Path | None = None,
    n_head: int | None = None,
    hidden_act: str | None = None,
    attention_scale: AttentionScale | None = None,
    overwrite: bool = False,
) -> Path:
    """Makes a MiniGPT folder of a model from elsewhere, with equal logits on the ids that it had.

    Rows for the special tokens that its vocabulary lacks are added after them.

    Args:
        source: nanoGPT's checkpoint, or its folder; a state_dict of nanoGPT's or the lecture's models, as `torch.save`
            or safetensors wrote it; or a folder or Hub id of a stock transformers model.
        output: The folder to write; `runs/` and the source's name by default.
        meta: nanoGPT's `meta.pkl`, for what the ids stand for.
        text: Or the text that the model was trained on; every line end is read as a line feed, as the scripts read it.
        encoding: Encoding of the text; by default UTF-8.
        normalize: Unicode normal form, `nfc` or `nfd`, to bring the text to.
        tokenizer: Or a tokenizer, a folder or Hub id; of a stock model too, where it does not lie beside it.
        n_head: The number of heads, for nanoGPT's weights alone, which do not show it.
        hidden_act: The activation, where it is not nanoGPT's or the lecture's own.
        attention_scale: By the root of which width the lecture's script divides attention scores: `head_size` or
            `n_embd`. By default what suits the text, if there is one, and else `head_size`.
        overwrite: Whether the model that the folder holds is replaced; other files stay.

    Returns:
        The folder, which has been opened once to see that it can be.

    Raises:
        UsageError: The source is nothing that can be imported, something about it is missing, or the output cannot be
            written; nothing has been written.
        OSError: The Hub does not give out what is needed.
    """
    register()
    vocabulary = ForeignVocabulary(
        None if meta is None else Path(meta).expanduser(),
        None if text is None else Path(text).expanduser(),
        None if tokenizer is None else str(tokenizer),
        encoding,
        normalize,
    )
    if not str(source):
        raise UsageError("the model's name is empty; name a file, a folder or a Hub id.")
    path = Path(source).expanduser()
    source = str(path if path.exists() else source)
    file = _weights_file(path, source)
    if file is None:
        _refuse_ours(source)
    folder = Path("runs") / (path.stem if path.is_file() else path.resolve().name) if output is None else Path(output)
    for given in (path, meta, text, tokenizer):
        at = None if given is None else Path(given).expanduser()
        if at is not None and at.exists() and at.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{folder} holds {given} itself; name another --output_dir.")
    check_output(folder, overwrite=overwrite)
    unsaid = {"n_head": n_head, "hidden_act": hidden_act, "attention_scale": attention_scale}
    if file is None:
        _refuse_given({"meta": meta, "text": text} | unsaid, f"{source} is a stock model and says it itself")
        model, its_tokenizer = import_stock(source, vocabulary.tokenizer)
    else:
        with torch.random.fork_rng(devices=[]):  # models begin at random before they are filled
            model, its_tokenizer = _import_file(file, vocabulary, unsaid)
    limit_to_block(its_tokenizer, model)
    refuse_not_finite(model.state_dict().items(), str(source))
    with staged_folder(folder, overwrite=overwrite) as staging:
        model.save_pretrained(staging)
        its_tokenizer.save_pretrained(staging)
        _check_saved(model, staging)
    return folder


def _weights_file(path: Path, source: str) -> Path | None:
    """The file with the weights, or None where transformers has to look for them."""
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "config.json").is_file():
            return None
        if (path / CHECKPOINT).is_file():
            return path / CHECKPOINT
        refuse_unfinished(path)
        raise UsageError(f"the folder {source} holds neither a {CHECKPOINT} nor a config.json; name the file itself.")
    if path.suffix in _SUFFIXES or path.is_absolute() or len(path.parts) > 2:
        raise UsageError(f"there is no file {source}; check the name.")
    return None


def _refuse_ours(source: str) -> None:
    with suppress(OSError), opening(source):  # a missing source is refused when it is read
        local_only = Path(source).is_dir() or not hub_has(source)
        config, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local_only)
        if config.get("model_type") in _OURS:
            raise UsageError(f"{source} is a MiniGPT already; `minigpt generate {source}` opens it.")


def _import_file(
    file: Path, vocabulary: ForeignVocabulary, unsaid: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    content, source = _read(file), str(file)
    weights = find_weights(content)
    if weights is None:
        keys = ", ".join(repr(key)[:40] for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        raise UsageError(
            f"{source} holds no weights ({keys or type(content).__name__}); save them with "
            "torch.save(model.state_dict(), 'weights.pt') and import that."
        )
    metas = _metas(file, content)
    if is_bigram(weights):
        _refuse_given(unsaid, f"{source} is a bigram, which has no such thing")
        model: PreTrainedModel = from_bigram(weights)
        tokenizer = find_tokenizer(vocabulary, model.config.vocab_size, source, metas)
    elif is_lecture(weights):
        model, tokenizer = _import_lecture(weights, source, vocabulary, metas, unsaid)
    elif is_nanogpt(weights):
        _refuse_given(
            {"attention_scale": unsaid["attention_scale"]}, "nanoGPT divides attention scores by the root of head_size"
        )
        arguments = content.get("model_args", {})
        if not isinstance(arguments, Mapping):
            raise UsageError(f"{source} is damaged: its model_args are a {type(arguments).__name__}; save it again.")
        model = from_nanogpt(weights, arguments, source, n_head=unsaid["n_head"], hidden_act=unsaid["hidden_act"])
        tokenizer = find_tokenizer(vocabulary, model.config.vocab_size, source, metas)
    else:
        raise UsageError(
            f"{source} holds weights of another architecture ({next(iter(weights))} is one of them); what can be "
            "imported is nanoGPT's and the lecture's files, and folders of stock transformers models."
        )
    fit_tokens(model, tokenizer, source)
    return model, tokenizer


def _import_lecture(
    weights: Weights, source: str, vocabulary: ForeignVocabulary, metas: list[Path], unsaid: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    asked = unsaid["attention_scale"]
    if asked not in (None, *SCALES):
        raise UsageError(f"attention_scale is {asked!r} and can be {' or '.join(SCALES)}.")
    others = {name: unsaid[name] for name in ("n_head", "hidden_act")}
    model = from_lecture(weights, source, attention_scale=asked or "head_size", **others)
    tokenizer = find_tokenizer(vocabulary, model.config.vocab_size, source, metas)
    if asked or not scale_matters(weights):
        return model, tokenizer
    told = None
    if vocabulary.text is not None:
        ids = torch.from_numpy(tokenizer.encode_array(next(read_text(vocabulary))).astype("int64"))  # (length,)
        candidates = {"head_size": model, "n_embd": from_lecture(weights, source, attention_scale="n_embd", **others)}
        told = choose_scale(candidates, ids)
        model = candidates[told or "head_size"]
    why = f"as {vocabulary.text} fits best" if told else "which nothing could tell"
    print(
        f"Attention scores are divided by the root of {told or 'head_size'}, {why}; "
        "--attention_scale says what your script does.",
        file=sys.stderr,
    )
    return model, tokenizer


def _read(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return load_checkpoint(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is damaged, or no safetensors file ({error}); copy or save it again.") from error


def _metas(file: Path, content: Any) -> list[Path]:
    """Where a `meta.pkl` may lie: beside the checkpoint, and where nanoGPT keeps the data set that it names."""
    beside = [file.parent / "meta.pkl"]
    config = content.get("config") if isinstance(content, Mapping) else None
    dataset = config.get("dataset") if isinstance(config, Mapping) else None
    if not isinstance(dataset, str) or Path(dataset).name != dataset:
        return beside
    homes = (file.absolute().parent.parent, Path())
    return beside + [home / "data" / dataset / "meta.pkl" for home in homes]


def _refuse_given(given: Mapping[str, Any], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{why}; leave --{name} out.")


def _check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Refuses a folder from which another model comes back than was written."""
    saved, _ = open_trained(folder, "cpu")
    weights = saved.state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(weights[name], tensor):
            raise OSError(f"{name} was written and does not come back the same; check the disk and import again.")
