"""Names of the files in a model's folder: what is published, and what `--overwrite` replaces."""

import fnmatch
from pathlib import Path

from minigpt.hub.adapter_folders import BASE_HASH, CONFIG, WEIGHTS
from minigpt.hub.unfinished import CHECKPOINT
from minigpt.modeling_minigpt import configuration_minigpt

CARD = "README.md"
MODEL_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
GRAPHS = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.pt2")
OTHER_FORMATS = (*GRAPHS, *(f"onnx/{name}" for name in GRAPHS if "onnx" in name), "export.json", "*.gguf")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt"),
)
TOKENIZER = (*_TOKENIZER, "additional_chat_templates/*.jinja", "*.model")
ADAPTER = (CONFIG, WEIGHTS, BASE_HASH)
# What a run says of itself, and a model card quotes.
RUN = ("run.json", "loss.png", "sample.txt")
# Model code that is copied into folders and repositories, now or by an earlier version.
OUR_CODE = frozenset(
    {*(file.name for file in Path(configuration_minigpt.__file__).parent.glob("[!_]*_*.py")), "layers_minigpt.py"}
)
# The folder in a run's folder in which files wait until all of them are written. Nothing in transformers takes it for
# a checkpoint, and the Hub's clients upload no name that begins with an underscore.
UNFINISHED = "_unfinished"

# Exact where a person may have put a file of their own.
_WRITTEN = (
    *("config.json", "generation_config.json", *ADAPTER, *_TOKENIZER, "tokenizer.model", *RUN),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("training_args.bin", "trainer_state.json"),
    *("model.pt2", "model.gguf", "onnx/model.onnx", "onnx/model.onnx.data"),
    # No command writes these, but transformers would open them in place of ours.
    *("pytorch_model*.bin", "pytorch_model*.json"),
    *sorted(OUR_CODE),
)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a name, with slashes between folders, fits one of the patterns."""
    # fnmatch's star matches a slash too.
    return any(name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def written_files(folder: Path) -> list[Path]:
    """List the files and checkpoints in a folder that the commands write; the model card is not among them."""
    files = {file for pattern in _WRITTEN for file in folder.glob(pattern) if file.is_file() or file.is_symlink()}
    folders = {path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name) or path.name == UNFINISHED}
    return sorted(files | {path for path in folders if path.is_dir() and not path.is_symlink()})
