"""Weights that fit their model: none is missing, left over, of another shape or not finite."""

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from minigpt.errors import UsageError
from minigpt.hub.quantized import keep_weights_unpacked

Shape = tuple[int, ...]
_NAMED = 3


def load_whole(load: Callable[..., Any], source: str | Path, **loading: Any) -> PreTrainedModel:
    """Load a model, each of whose weights comes from its files.

    transformers itself draws missing weights at random and drops those that are left over, and only logs it.

    Args:
        load: `from_pretrained` of a model's class.
        source: A folder, or a Hub repository's id.
        **loading: More arguments for `load`.

    Raises:
        UsageError: Weights are missing, left over, of another shape or not finite; the sentence names them.
    """
    model, report = load(source, output_loading_info=True, ignore_mismatched_sizes=True, **loading)
    # What the model computes by itself, such as a causal mask, older versions of transformers saved.
    computed = {name for name, _ in model.named_buffers()}
    left_over = {name for name in report["unexpected_keys"] if not _is_among(name, computed)}
    mismatched = {name: (tuple(saved), tuple(own)) for name, saved, own in report["mismatched_keys"]}
    refuse_unfit(source, report["missing_keys"], left_over, mismatched, revision=loading.get("revision"))
    refuse_not_finite(model.state_dict().items(), source)
    keep_weights_unpacked(model)
    return model


def check_files(source: Path, pattern: str, expected: Mapping[str, Tensor], optional: Container[str] = ()) -> None:
    """Refuse safetensors files that hold other weights than a model has, without loading them into it.

    Args:
        source: The folder of the files.
        pattern: Their names.
        expected: The model's weights.
        optional: Names of weights that may be missing or left over.

    Raises:
        UsageError: Weights are missing, left over, of another shape or not finite; the sentence names them.
    """
    saved: dict[str, Shape] = {}
    for file in sorted(source.glob(pattern)):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                saved[name] = tuple(weights.get_slice(name).get_shape())
                refuse_not_finite([(name, weights.get_tensor(name))], source)
    if not saved:
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    refuse_unfit(
        source,
        {name for name in shapes.keys() - saved.keys() if name not in optional},
        {name for name in saved.keys() - shapes.keys() if name not in optional},
        {name: (shape, shapes[name]) for name, shape in saved.items() if shapes.get(name, shape) != shape},
    )


def refuse_unfit(
    source: str | Path,
    missing: Iterable[str],
    left_over: Iterable[str],
    mismatched: Mapping[str, tuple[Shape, Shape]],
    *,
    revision: str | None = None,
) -> None:
    """Refuse weights that are not the model's.

    Args:
        source: Where they are from.
        missing: Names of weights that the files lack.
        left_over: Names of weights in the files for which the model has no place.
        mismatched: Shape in the file and in the model of each weight where the two differ.
        revision: Of the Hub repository.

    Raises:
        UsageError: There are any.
    """
    faults = []
    for name, (saved, own) in sorted(mismatched.items())[:1]:
        more = f", and {len(mismatched) - 1} more do not fit" if mismatched.keys() - {name} else ""
        where = _file_of(name, source, revision)
        faults.append(f"{name} in {where} has the shape {list(saved)} where {list(own)} belongs{more}")
    faults += [f"{some(names)} {what}" for names, what in ((missing, "missing"), (left_over, "left over")) if names]
    if faults:
        raise UsageError(
            f"the weights of {source} are not those that its configuration describes ({'; '.join(faults)}); "
            "save the model again."
        )


def refuse_not_finite(weights: Iterable[tuple[str, Tensor]], source: str | Path) -> None:
    """Refuse weights with which nothing can be computed.

    Raises:
        UsageError: One of them is infinite or not a number.
    """
    for name, tensor in weights:
        # Weights in 8 bits cannot be infinite, and torch does not compare them.
        if not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel() or tensor.is_meta:
            continue
        # Neither a copy of the tensor nor one of booleans is made: the extremes of what holds NaN are NaN.
        if not torch.stack(tensor.detach().aminmax()).isfinite().all():
            raise UsageError(
                f"{source} holds weights that are not finite ({name}), as a training that diverged leaves them; use a "
                "checkpoint from before."
            )


def some(names: Iterable[str]) -> str:
    """Return the first few names of a sentence's subject, how many more there are, and the verb."""
    listed = sorted(names)
    shown = ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")
    return f"{shown} {'is' if len(listed) == 1 else 'are'}"


def _is_among(name: str, others: Iterable[str]) -> bool:
    """Return True if a name, with or without the base model's prefix, is one of the others."""
    return any(name == other or name.endswith(f".{other}") or other.endswith(f".{name}") for other in others)


def _file_of(name: str, source: str | Path, revision: str | None) -> str:
    """Return the weights file that holds a tensor, or where it may be."""
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(source), "config.json", revision=revision)
        folder = Path(cached).parent if isinstance(cached, str) else folder
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if any(_is_among(name, [key]) for key in weights.keys()):  # noqa: SIM118 - not a mapping
                return str(file)
    return str(source)
