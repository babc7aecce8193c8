"""A model in another format: what `minigpt export` does."""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import CONFIG, base_of, is_adapter
from minigpt.hub.extras import require_extra
from minigpt.hub.folders import check_output, staged_folder
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.loading import open_trained
from minigpt.hub.loading_bars import no_progress_bars
from minigpt.hub.stock.conversion import ARCHITECTURES, refuse_what_is_no_minigpt, save_stock, to_stock
from minigpt.hub.unfinished import refuse_unfinished

# What has no stock architecture's limits: a bigram becomes a graph as well.
GRAPHS = ("torch", "onnx")
# Asked for before a model is fetched from the Hub.
EXTRAS = {
    "onnx": ("onnx", "an ONNX file", "onnx", "onnxruntime", "onnxscript"),
    "gguf": ("gguf", "the export to GGUF", "gguf"),
}


def export_model(source: str | Path, to: str, output: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Writes a model in another format.

    Args:
        source: A folder, or a Hub repository's id, of a model or of an adapter.
        to: `torch` (an exported program), `onnx`, `gguf`, a stock architecture: `gpt2`, `llama`, `qwen3`, `nanochat`;
            or `merged`, the plain model that an adapter and the model that it is for are together. In the other
            formats an adapter is merged too.
        output: The folder to write. By default it is called MODEL-FORMAT, and stands beside a local model and in the
            current folder for one from the Hub.
        overwrite: Whether to replace the model that the output folder holds; other files stay.

    Returns:
        The folder written.

    Raises:
        UsageError: The format cannot express the model, an adapter cannot be merged or there is none to merge, an
            extra is not installed, or the output cannot be written.
        OSError: There is no model under that name, or it cannot be read.
    """
    target = _default_output(source, to) if output is None else Path(output)
    _refuse_to_replace(source, target)
    check_output(target, overwrite=overwrite)
    if to in EXTRAS:
        require_extra(*EXTRAS[to])
    if to == "merged":
        _refuse_what_is_no_adapter(source)
    model, tokenizer = open_trained(source, "cpu")
    if not isinstance(model, PreTrainedModel):
        raise UsageError(f"the adapter in {source} cannot be merged into weights; use it as it is.")
    if to not in (*GRAPHS, "merged"):
        refuse_what_is_no_minigpt(model, to)
    with staged_folder(target, overwrite=overwrite) as folder:
        if to in ARCHITECTURES:
            save_stock(to_stock(model, to), tokenizer, folder)
        elif to == "merged":
            with no_progress_bars():
                model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            _carry_run_over(source, folder)
        elif to == "gguf":
            from minigpt.hub.exporting.gguf_file import export_gguf

            export_gguf(model, tokenizer, folder)
        else:
            from minigpt.hub.exporting import graphs

            {"torch": graphs.export_torch, "onnx": graphs.export_onnx}[to](model, tokenizer, folder)
    return target


def _default_output(source: str | Path, to: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        return Path(f"{folder.name}-{to}")
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f"{folder.name}-{to}")


def _refuse_what_is_no_adapter(source: str | Path) -> None:
    refuse_unfinished(Path(source))
    if not is_adapter(source, local_files_only=Path(source).is_dir() or not hub_has(str(source))):
        raise UsageError(f"{source} is no adapter, and there is nothing to merge; use it as it is.")


def _refuse_to_replace(source: str | Path, output: Path) -> None:
    model = Path(source).resolve()
    if Path(source).is_dir() and output.resolve() in (model, *model.parents):
        raise UsageError(f"{output} holds the model itself; name another --output_dir.")
    if (Path(source) / CONFIG).is_file():
        base = base_of(Path(source))
        whole = Path(base.name).resolve()
        if base.is_folder and output.resolve() in (whole, *whole.parents):
            raise UsageError(f"{output} holds the model that {source} is an adapter for; name another --output_dir.")


def _carry_run_over(adapter: str | Path, folder: Path) -> None:
    """Leaves what is known of an adapter's run beside the plain model that has been made of it."""
    file = Path(adapter) / "run.json"
    if not Path(adapter).is_dir():
        cached = try_to_load_from_cache(str(adapter), "run.json")  # where opening the adapter has put it
        file = Path(cached) if isinstance(cached, str) else file
    if not file.is_file():
        return
    run = read_object(file)
    with understanding(file):
        if described := run.get("adapter"):
            described["merged"] = True
            run["model"]["parameters"] -= described["trainable"]
    (folder / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
