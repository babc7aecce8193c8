"""A model as a graph: a file that computes its logits where neither this package nor transformers is there."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer
from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter

from minigpt.errors import UsageError
from minigpt.hub.exporting.graph_card import graph_card
from minigpt.hub.extras import require_extra

# Where tools that read ONNX files from the Hub look for them.
ONNX_FILE = Path("onnx", "model.onnx")
TORCH_FILE = Path("model.pt2")

Past = list[dict[str, torch.Tensor]]


class DecodingStep(nn.Module):
    """One step of decoding, with everything that it needs and gives as plain tensors.

    Args:
        model: A MiniGPT with a language-model head, in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        block = None if model.config.rolls_past_block else torch.arange(model.config.max_position_embeddings)
        self.register_buffer("block", block, persistent=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Past,
    ) -> dict[str, Any]:
        """Continues a past by some tokens.

        Args:
            input_ids: The new tokens, int64 (batch, seq).
            attention_mask: int64 (batch, past + seq), 0 for padding.
            position_ids: The new tokens' positions, int64 (batch, seq).
            past_key_values: For each layer `key` and `value`, (batch, key-value heads, past, head_dim); past may be 0.

        Returns:
            `logits` (batch, seq, vocab), and as `present` the past of the next step.
        """
        total = past_key_values[0]["key"].shape[2] + input_ids.shape[1]
        # Picked by column and not compared: a comparison would hold the file to lengths like those of its example.
        columns = torch.arange(total, device=attention_mask.device)
        attention_mask = attention_mask.index_select(1, columns)  # (batch, total)
        if self.block is not None:
            # Looked up for the sake of the error: no runtime goes on past the block as if there were something there.
            position_ids = self.block[position_ids]  # (batch, seq)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=_cache_of(past_key_values),
            use_cache=True,
        )
        present = [{"key": layer.keys, "value": layer.values} for layer in outputs.past_key_values.layers]
        return {"logits": outputs.logits, "present": present}

    def example(self) -> dict[str, Any]:
        """Inputs to trace with."""
        config = self.model.config
        batch, seq, past = 2, 3, 4
        states = torch.zeros(batch, config.num_key_value_heads, past, config.head_dim, dtype=self.model.dtype)
        return {
            "input_ids": torch.zeros(batch, seq, dtype=torch.long),
            "attention_mask": torch.ones(batch, past + seq, dtype=torch.long),
            "position_ids": torch.zeros(batch, seq, dtype=torch.long),
            "past_key_values": [
                {"key": states.clone(), "value": states.clone()} for _ in range(config.num_hidden_layers)
            ],
        }

    def free_dimensions(self) -> dict[str, Any]:
        """The dimensions of each input that are not fixed by the example's."""
        batch, seq = Dim("batch_size", min=1), Dim("sequence_length", min=1)
        past, total = Dim("past_sequence_length", min=0), Dim("total_sequence_length", min=1)
        states = {0: batch, 2: past}
        return {
            "input_ids": {0: batch, 1: seq},
            "attention_mask": {0: batch, 1: total},
            "position_ids": {0: batch, 1: seq},
            "past_key_values": [{"key": states, "value": states} for _ in self.model.model.layers],
        }


class BigramStep(nn.Module):
    """The bigram has no past, no positions and nothing to mask: tokens in, logits out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The `logits` (batch, seq, vocab) of `input_ids`, int64 (batch, seq)."""
        return {"logits": self.model(input_ids=input_ids).logits}

    def example(self) -> dict[str, Any]:
        """Inputs to trace with."""
        return {"input_ids": torch.zeros(2, 3, dtype=torch.long)}

    def free_dimensions(self) -> dict[str, Any]:
        """The dimensions of each input that are not fixed by the example's."""
        return {"input_ids": {0: Dim("batch_size", min=1), 1: Dim("sequence_length", min=1)}}


STEPS: dict[str, type[DecodingStep] | type[BigramStep]] = {"minigpt": DecodingStep, "minigpt_bigram": BigramStep}


def export_torch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `model.pt2`, a program that `torch.export.load` opens with torch alone.

    Args:
        model: A MiniGPT or a bigram on the CPU; it stays as it is.
        tokenizer: Saved beside the program, with the configurations.
        folder: A folder to write into.

    Raises:
        UsageError: The model is neither.
    """
    step = _step_of(model)
    with _quiet():
        exported = DynamoExporter().export(
            step, step.example(), DynamoConfig(dynamic=True, dynamic_shapes=step.free_dimensions())
        )
        _forget_origin(exported.program)
        exported.save_pretrained(folder)
    _save_beside(step.model, tokenizer, folder, TORCH_FILE)


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `onnx/model.onnx` in float32, its inputs and outputs named as Optimum names them.

    Args:
        model: A MiniGPT or a bigram on the CPU; it stays as it is.
        tokenizer: Saved beside the file, with the configurations.
        folder: A folder to write into.

    Raises:
        UsageError: The model is neither, or the packages of the extra `onnx` are missing.
    """
    # Half precision is for accelerators: onnxruntime computes no bfloat16 on a CPU.
    step = _step_of(model, torch.float32)
    require_extra("onnx", "an ONNX file", "onnx", "onnxruntime", "onnxscript")
    from minigpt.hub.exporting.onnx_file import save_onnx

    with _quiet():
        exported = OnnxExporter().export(
            step, step.example(), OnnxConfig(dynamic=True, dynamic_shapes=step.free_dimensions())
        )
        (folder / ONNX_FILE).parent.mkdir(exist_ok=True)
        save_onnx(exported.program, folder / ONNX_FILE)
    _save_beside(step.model, tokenizer, folder, ONNX_FILE)


def _step_of(model: PreTrainedModel, dtype: torch.dtype | None = None) -> DecodingStep | BigramStep:
    step = STEPS.get(model.config.model_type)
    if step is None:
        raise UsageError(
            f"the model is a {type(model).__name__}, and only a MiniGPT or a bigram becomes a graph here; "
            "export it with transformers.exporters."
        )
    # The exporter sets switches of what it traces.
    model = copy.deepcopy(model).eval()
    if dtype is not None:
        model.to(dtype).config.dtype = dtype
    return step(model).eval()


def _cache_of(past: Past) -> DynamicCache:
    """A cache that holds a past, and keeps all of it: what a window hides, the mask hides."""
    cache = DynamicCache()
    for states in past:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = states["key"], states["value"], True
        cache.layers.append(layer)
    return cache


def _forget_origin(program: ExportedProgram) -> None:
    """Takes out of each operation where it was traced: paths of this machine, and most of a small file."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)


def _save_beside(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, file: Path) -> None:
    """What a program needs that runs the file: the tokenizer and the numbers, and no code."""
    tokenizer.save_pretrained(folder)
    model.generation_config.to_json_file(folder / "generation_config.json")
    config = json.loads(model.config.to_json_string())
    config.pop("auto_map", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(graph_card(model.config, file), encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' reports of their progress, and their warnings about their own insides, to themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
