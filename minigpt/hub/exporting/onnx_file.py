"""An ONNX file that others can read: dimensions with names, no trace of where it was made, and checked."""

import re
from pathlib import Path
from typing import Any

import onnx
from onnxscript import ir

# Protobuf holds no more than 2 GiB, and the graph needs some of it: from here on the weights get a file of their own.
LARGEST_SINGLE_FILE = 3 * 2**29


def save_onnx(model: Any, path: Path) -> None:
    """Writes a decoder's graph, as the exporter of transformers gives it.

    Args:
        model: An `onnx_ir.Model` with inputs named as Optimum names a decoder's.
        path: The file to write. Weights of 1.5 GiB and more go to `<name>.data` beside it.

    Raises:
        onnx.checker.ValidationError: If the graph is not valid ONNX.
    """
    _name_dimensions(model)
    _forget_origin(model)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size >= LARGEST_SINGLE_FILE else None)
    onnx.checker.check_model(path, full_check=True)


def _values(model: Any) -> list[Any]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]


def _name_dimensions(model: Any) -> None:
    """Calls them `sequence_length` and so on, where tracing called them `s43`, in sums of them as well."""
    meant = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {1: "total_sequence_length"},
        "past_key_values.0.key": {2: "past_sequence_length"},
    }
    names = {
        value.shape[axis].value: name
        for value in model.graph.inputs
        for axis, name in meant.get(value.name, {}).items()
    }
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dimension, names) for dimension in value.shape])


def _renamed(dimension: Any, names: dict[str, str]) -> Any:
    if isinstance(dimension, int) or dimension.value is None:
        return dimension
    return ir.SymbolicDim(re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dimension.value))


def _forget_origin(model: Any) -> None:
    """Takes out what tracing wrote beside the graph: paths of this machine, and most of a small file."""
    described = [model, model.graph, *model.graph, *_values(model), *model.graph.initializers.values()]
    for part in described:
        part.metadata_props.clear()
        part.doc_string = None
