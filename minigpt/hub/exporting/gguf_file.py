"""GGUF, the file of llama.cpp: weights, settings and vocabulary in one, of the stock architecture that the model is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.exporting.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from minigpt.hub.extras import require_extra
from minigpt.hub.stock.architecture import NO_WINDOW, Need, exactly, name_switches
from minigpt.hub.stock.conversion import ARCHITECTURES, refuse_what_is_no_minigpt, save_stock, to_stock

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"


@dataclass(frozen=True)
class _Format:
    """How a stock architecture is written as GGUF.

    Attributes:
        needs: What a MiniGPT's config has to be beyond what the architecture needs: what the file has no word for, or
            transformers does not read.
        settings: Writes the architecture's own settings.
        tensor: From a tensor's GGUF name, the stock weight and the stock config to the weight as GGUF keeps it.
    """

    needs: tuple[Need, ...]
    settings: Callable[["GGUFWriter", Any], None]
    tensor: Callable[[str, torch.Tensor, Any], torch.Tensor]


def export_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `model.gguf`, and beside it what the stock model's folder holds but for its weights.

    The architecture is the one that can express the model, `gpt2`, `llama` or `qwen3`; the weights are float32.

    Args:
        model: A `MiniGPTForCausalLM`.
        tokenizer: Its tokenizer, of characters or of GPT-2's byte-level BPE.
        folder: Where to write; it exists.

    Raises:
        UsageError: GGUF cannot express the model or the tokenizer, and the sentence says what of it; or the `gguf`
            package is not installed.
    """
    require_extra("gguf", "the export to GGUF", "gguf")
    refuse_what_is_no_minigpt(model, "GGUF")
    architecture = _choose_architecture(model.config)
    vocabulary = gguf_vocabulary(tokenizer, model.config.vocab_size)
    stock = to_stock(model, architecture)
    writer = _writer(folder / FILE, architecture)
    writer.add_name(Path(model.name_or_path).name or "MiniGPT")
    _write_settings(writer, architecture, stock.config)
    _write_vocabulary(writer, vocabulary, tokenizer, model.generation_config.suppress_tokens)
    _write_weights(writer, architecture, stock)
    save_stock(stock, tokenizer, folder, weights=False)


def _choose_architecture(config: Any) -> str:
    obstacles = {
        name: [need for need in (*ARCHITECTURES[name].needs, *form.needs) if not need.is_met(config)]
        for name, form in _FORMATS.items()
    }
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    if obstacles[nearest]:
        switches = name_switches(config, obstacles[nearest])
        raise UsageError(
            f"{nearest} in a GGUF file cannot express {switches}; train a model that fits it, say "
            "--preset nano-cpu or nano with --hidden_act gelu_new."
        )
    return nearest


def _writer(path: Path, architecture: str) -> "GGUFWriter":
    from gguf import GGUFValueType, GGUFWriter

    class Writer(GGUFWriter):
        """A writer of empty lists too: llama.cpp wants a list of merges, and a vocabulary of characters has none."""

        def _pack_val(self, val: Any, vtype: GGUFValueType, *args: Any, **kwargs: Any) -> bytes:
            if vtype == GGUFValueType.ARRAY and not val:
                # Its type, the type of what it would hold, and their number, as the writer packs them.
                return self._pack("I", vtype) + self._pack("I", GGUFValueType.STRING) + self._pack("Q", 0)
            return super()._pack_val(val, vtype, *args, **kwargs)

    return Writer(path, architecture)


def _write_settings(writer: "GGUFWriter", architecture: str, config: Any) -> None:
    from gguf import LlamaFileType

    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    _FORMATS[architecture].settings(writer, config)


def _write_vocabulary(
    writer: "GGUFWriter",
    vocabulary: GgufVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    suppress_tokens: list[int] | None,
) -> None:
    from gguf import GGUFValueType, Keys

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_key_value(Keys.Tokenizer.MERGES, vocabulary.merges, GGUFValueType.ARRAY)
    for add_id, index in (
        # Without one of its own llama.cpp would take token 11, whatever that is.
        (writer.add_bos_token_id, tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add_id(index)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if suppress_tokens:
        # llama.cpp has the key and the package, so far, no name for it.
        writer.add_array("tokenizer.ggml.suppress_tokens", list(suppress_tokens))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write_weights(writer: "GGUFWriter", architecture: str, stock: PreTrainedModel) -> None:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, stock.config.num_hidden_layers)
    is_tied = stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    for stock_name, weight in stock.state_dict().items():
        if stock_name == "lm_head.weight" and is_tied:
            continue  # its absence is what says so
        name = names.get_name(stock_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise AssertionError(f"GGUF has no name for {stock_name}")
        tensor = _FORMATS[architecture].tensor(name, weight.float(), stock.config)
        writer.add_tensor(name, tensor.contiguous().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gpt2_settings(writer: "GGUFWriter", config: Any) -> None:
    writer.add_feed_forward_length(config.n_inner)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    # transformers reads a GPT-2's number of positions from no key of GPT-2's; any architecture's that it does will do.
    writer.add_uint32("t5.context_length", config.n_positions)


def _gpt2_tensor(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    is_conv = weight.ndim == 2 and any(part in name for part in (".attn_qkv.", ".attn_output.", ".ffn_"))
    return weight.T if is_conv else weight


def _llama_settings(writer: "GGUFWriter", config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _llama_tensor(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """GGUF's Llama turns the pairs (2i, 2i + 1) of a head where transformers turns (i, i + head_dim / 2)."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return weight
    halves = weight.unflatten(0, (-1, 2, config.head_dim // 2))  # (heads, 2, head_dim / 2, hidden)
    return halves.transpose(1, 2).flatten(0, 2)  # (heads * head_dim, hidden)


def _qwen3_settings(writer: "GGUFWriter", config: Any) -> None:
    _llama_settings(writer, config)
    # As with GPT-2's positions: transformers reads the width of a head from no key of Qwen3's.
    writer.add_uint32("qwen3_moe.attention.key_length", config.head_dim)


def _same_tensor(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    return weight


_PLAIN_ROTATION = Need(
    "rope_parameters",
    "the default type",
    lambda config: (config.rope_parameters or {}).get("rope_type", "default") == "default",
)
_LLAMA_NEEDS = (
    exactly("attention_bias", False),
    exactly("attention_output_bias", False),
    exactly("mlp_bias", False),
    _PLAIN_ROTATION,
)
_FORMATS = {
    "gpt2": _Format(
        needs=(
            exactly("hidden_act", "gelu_new"),
            Need(
                "intermediate_size",
                "4 * hidden_size",
                lambda config: config.intermediate_size == 4 * config.hidden_size,
            ),
        ),
        settings=_gpt2_settings,
        tensor=_gpt2_tensor,
    ),
    "llama": _Format(needs=_LLAMA_NEEDS, settings=_llama_settings, tensor=_llama_tensor),
    "qwen3": _Format(needs=(*_LLAMA_NEEDS, NO_WINDOW), settings=_qwen3_settings, tensor=_same_tensor),
}
