"""The same model under a name that everybody knows, GPT-2, Llama, Qwen3 or nanochat, and the way back."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)

from minigpt.errors import UsageError
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.json_files import AS_SAVED
from minigpt.hub.loading import check_vocabulary
from minigpt.hub.loading_errors import opening
from minigpt.hub.stock.architecture import NO_HEAD_BIAS, Architecture, Need, Weights, name_switches
from minigpt.hub.stock.gpt2 import GPT2
from minigpt.hub.stock.llama import LLAMA, NANOCHAT, QWEN3
from minigpt.hub.tokenizer_loading import load_tokenizer
from minigpt.hub.weights import load_whole
from minigpt.modeling_minigpt.generation_minigpt import hold_eos_back, let_eos_through
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

ARCHITECTURES: dict[str, Architecture] = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "nanochat": NANOCHAT}


def to_stock(model: PreTrainedModel, architecture: str) -> PreTrainedModel:
    """Makes a stock transformers model of a MiniGPT.

    The logits are equal: the stock model does the same arithmetic, and no more than its rounding is its own. Beyond
    the block it is not a MiniGPT: it crops no context.

    Args:
        model: A `MiniGPTForCausalLM`.
        architecture: A key of `ARCHITECTURES`: `gpt2`, `llama`, `qwen3` or `nanochat`.

    Returns:
        A model with copies of the weights, in their dtype, training or not as the other one. Its `generation_config`
        is the MiniGPT's, except that a length beyond the block becomes the block's, and that a suppressed EOS token
        becomes the last choice.

    Raises:
        UsageError: The architecture cannot express the model; the sentence names the switches in the way.
    """
    refuse_what_is_no_minigpt(model, architecture)
    target = ARCHITECTURES[architecture]
    if obstacles := target.obstacles(model.config):
        raise UsageError(_name_obstacles(model.config, architecture, obstacles))
    config = target.stock_config(model.config)
    stock = _load(target.model_class, config, target.stock_weights(model), model)
    stock.generation_config = _inside_the_block(model.generation_config, model.config)
    return stock


def from_stock(stock: PreTrainedModel) -> MiniGPTForCausalLM:
    """Makes a MiniGPT of a stock GPT-2, Llama, Qwen3 or nanochat.

    The logits are equal, but for rounding.

    Args:
        stock: A `GPT2LMHeadModel`, `LlamaForCausalLM`, `Qwen3ForCausalLM` or `NanoChatForCausalLM`.

    Returns:
        A model with copies of the weights, in their dtype, training or not as the other one, with a copy of the
        `generation_config`.

    Raises:
        UsageError: It is another model, or has a switch that a MiniGPT has not.
        StrictDataclassError: A value of its config is impossible for a MiniGPT, which the message names.
    """
    source = _architecture_of(stock.config)
    if type(stock) is not source.model_class:
        raise UsageError(f"a {type(stock).__name__} cannot become a MiniGPT; load it as {source.model_class.__name__}.")
    model = _load(MiniGPTForCausalLM, source.our_config(stock.config), source.our_weights(stock), stock)
    model.generation_config = copy.deepcopy(stock.generation_config)
    hold_eos_back(model.generation_config)
    return model


def import_stock(
    source: str | Path, tokenizer: str | Path | None = None
) -> tuple[MiniGPTForCausalLM, PreTrainedTokenizerBase]:
    """Loads a stock model and its tokenizer, and makes a MiniGPT of the model; the tokenizer stays as it is.

    Args:
        source: A folder, or a Hub repository's id.
        tokenizer: Where the tokenizer is, if it is not beside the model.

    Raises:
        UsageError: The model is none that can become a MiniGPT, its weights are quantized or not all of them are
            there, or there is no tokenizer.
        StrictDataclassError: A value of its config is impossible for a MiniGPT, which the message names.
        OSError: There is no such model, or it cannot be read.
        ValueError: The tokenizer does not fit the model.
    """
    local_only = Path(source).is_dir() or not hub_has(str(source))
    with opening(source):
        settings, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local_only)
        if settings.get("quantization_config"):
            raise UsageError(f"the weights of {source} are quantized; import the model that they were made of.")
        if not isinstance(settings.get("model_type"), str):
            raise UsageError(f"{Path(source) / 'config.json'} names no model_type; {AS_SAVED}.")
        model_class = _named_architecture(settings.get("model_type")).model_class
        config = model_class.config_class.from_dict(settings)
        _architecture_of(config).our_config(config)  # before the weights are loaded, which takes its time
    home = tokenizer or source
    loaded_tokenizer = load_tokenizer(
        home,
        remedy="give --tokenizer with the folder or Hub id of its own",
        config=config,
        trust_remote_code=False,
        local_files_only=Path(home).is_dir() or not hub_has(str(home)),
    )
    with opening(source):
        stock = load_whole(model_class.from_pretrained, source, config=config, local_files_only=local_only)
    check_vocabulary(stock, loaded_tokenizer)
    return from_stock(stock.eval()), loaded_tokenizer


def refuse_what_is_no_minigpt(model: PreTrainedModel, target: str) -> None:
    """Refuses a model that is not exported.

    Raises:
        UsageError: It is a bigram, or another library's model.
    """
    if model.config.model_type == "minigpt_bigram":
        raise UsageError(
            f"a bigram is one table of what follows what, and {target} is for a GPT; train one, --preset nano-cpu say."
        )
    if not isinstance(model, MiniGPTForCausalLM):
        raise UsageError(
            f"{target} is made of a MiniGPT, and this is a {type(model).__name__}; make it one with `minigpt import`."
        )


def save_stock(
    stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, weights: bool = True
) -> None:
    """Writes a stock model and its tokenizer as a repository that needs no code of ours.

    A tokenizer without a BOS or unknown token gets the EOS token as both, as GPT-2's own has it: programs that know
    stock models expect them. Texts are encoded as before, without a BOS token.

    Args:
        stock: What `to_stock` made.
        tokenizer: The model's tokenizer.
        folder: Where to write; it exists.
        weights: Whether to write the weights too, or only all that describes them.
    """
    tokenizer = copy.deepcopy(tokenizer)
    for name in ("bos_token", "unk_token"):
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, tokenizer.eos_token)
    stock.config.bos_token_id = stock.generation_config.bos_token_id = tokenizer.bos_token_id
    if weights:
        stock.save_pretrained(folder)
    else:
        stock.config.architectures = [type(stock).__name__]
        stock.config.save_pretrained(folder)
        stock.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if type(tokenizer).__module__.split(".")[0] != "transformers":
        # The tokenizer.json says it all: a class that transformers has reads it as well as ours.
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": TokenizersBackend.__name__}
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _architecture_of(config: PreTrainedConfig) -> Architecture:
    architecture = _named_architecture(config.model_type)
    if wrong := [need for need in architecture.needs_of_stock if not need.is_met(config)]:
        raise UsageError(f"a MiniGPT cannot express {name_switches(config, wrong)}; import a model that fits it.")
    return architecture


def _named_architecture(model_type: str | None) -> Architecture:
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"a model of the type {model_type} cannot become a MiniGPT; one of {known} can.")
    return ARCHITECTURES[model_type]


def _name_obstacles(config: PreTrainedConfig, architecture: str, obstacles: list[Need]) -> str:
    all_obstacles = {name: candidate.obstacles(config) for name, candidate in ARCHITECTURES.items()}
    able = [name for name, needs in all_obstacles.items() if not needs]
    able_without_bias = [name for name, needs in all_obstacles.items() if needs == [NO_HEAD_BIAS]]
    if able:
        remedy = f"--to {' or '.join(able)} can"
    elif able_without_bias:
        presets = "--preset nano-cpu or nano, or " if "gpt2" in able_without_bias else ""
        remedy = (
            "no stock architecture has a bias in its head, so train "
            f"{presets}this model with --lm_head_bias False, and export that --to {able_without_bias[0]}"
        )
    else:
        remedy = "train a model that fits it"
    return f"{architecture} cannot express {name_switches(config, obstacles)}; {remedy}."


def _load(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: Weights, like: PreTrainedModel
) -> PreTrainedModel:
    """A model with copies of these weights; biases and norms that they lack do nothing."""
    with torch.device("meta"):
        parameters = model_class(config).state_dict()
    for name, parameter in parameters.items():
        if name not in weights and parameter.ndim == 1:
            weights[name] = torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
    if weights.keys() != parameters.keys():
        raise AssertionError(f"weights without a place: {sorted(weights.keys() ^ parameters.keys())}")
    copies = {
        name: tensor.detach().to(like.device, like.dtype, copy=True).contiguous() for name, tensor in weights.items()
    }
    # Nothing is drawn at random on the way: the generator of whoever calls is left as it is.
    model = model_class.from_pretrained(None, config=config, state_dict=copies, dtype=like.dtype)
    model.name_or_path = model.config.name_or_path = like.config.name_or_path
    return model.to(like.device).train(like.training)


def _inside_the_block(generation_config: GenerationConfig, config: Any) -> GenerationConfig:
    """A length that a stock model can write: it has no positions beyond the block, or was never trained on them."""
    inside = copy.deepcopy(generation_config)
    let_eos_through(inside, config.vocab_size)  # ours do it while they generate, and a stock model has no code of ours
    block_size = config.max_position_embeddings
    if not config.rolls_past_block and (inside.max_new_tokens or 0) >= block_size:
        inside.max_new_tokens, inside.max_length = None, block_size
    return inside
