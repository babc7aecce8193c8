"""MiniGPT: the smallest GPT that is a complete Hugging Face citizen."""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` imports when it is asked for
    from minigpt.hub.exporting.formats import export_model as export_model
    from minigpt.hub.importing.sources import import_model as import_model
    from minigpt.hub.publishing.push import push_folder as push_folder
    from minigpt.modeling_minigpt.configuration_bigram import BigramConfig as BigramConfig
    from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig as MiniGPTConfig
    from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM as BigramForCausalLM
    from minigpt.modeling_minigpt.modeling_bigram import BigramModel as BigramModel
    from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM as MiniGPTForCausalLM
    from minigpt.modeling_minigpt.modeling_minigpt import (
        MiniGPTForSequenceClassification as MiniGPTForSequenceClassification,
    )
    from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForTokenClassification as MiniGPTForTokenClassification
    from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTModel as MiniGPTModel
    from minigpt.modeling_minigpt.textbook import TextbookGPT as TextbookGPT
    from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer as MiniGPTTokenizer
    from minigpt.training.arguments import MiniGPTTrainingArguments as MiniGPTTrainingArguments
    from minigpt.training.data.batches import get_batch as get_batch
    from minigpt.training.data.corpus import SplitSettings as SplitSettings
    from minigpt.training.data.corpus import load_text as load_text
    from minigpt.training.data.read_settings import ReadSettings as ReadSettings
    from minigpt.training.data.token_stream import TokenStream as TokenStream
    from minigpt.training.data.tokens import tokenize_corpus as tokenize_corpus
    from minigpt.training.finetune import finetune as finetune
    from minigpt.training.instruction import InstructionSettings as InstructionSettings
    from minigpt.training.lora import LoraSettings as LoraSettings
    from minigpt.training.train import train as train
    from minigpt.training.trainer import MiniGPTTrainer as MiniGPTTrainer

from minigpt.hub.auto_classes import register

__version__ = version("minigpt-hf")

_PUBLIC = {
    "BigramConfig": "modeling_minigpt.configuration_bigram",
    "BigramForCausalLM": "modeling_minigpt.modeling_bigram",
    "BigramModel": "modeling_minigpt.modeling_bigram",
    "InstructionSettings": "training.instruction",
    "LoraSettings": "training.lora",
    "MiniGPTConfig": "modeling_minigpt.configuration_minigpt",
    "MiniGPTForCausalLM": "modeling_minigpt.modeling_minigpt",
    "MiniGPTForSequenceClassification": "modeling_minigpt.modeling_minigpt",
    "MiniGPTForTokenClassification": "modeling_minigpt.modeling_minigpt",
    "MiniGPTModel": "modeling_minigpt.modeling_minigpt",
    "MiniGPTTokenizer": "tokenization.tokenization_minigpt",
    "MiniGPTTrainer": "training.trainer",
    "MiniGPTTrainingArguments": "training.arguments",
    "ReadSettings": "training.data.read_settings",
    "SplitSettings": "training.data.corpus",
    "TextbookGPT": "modeling_minigpt.textbook",
    "TokenStream": "training.data.token_stream",
    "finetune": "training.finetune",
    "export_model": "hub.exporting.formats",
    "get_batch": "training.data.batches",
    "import_model": "hub.importing.sources",
    "load_text": "training.data.corpus",
    "push_folder": "hub.publishing.push",
    "tokenize_corpus": "training.data.tokens",
    "train": "training.train",
}
__all__ = [*_PUBLIC, "__version__", "register"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    return getattr(import_module(f"minigpt.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command_line() -> bool:
    program = getattr(sys, "argv", [""])[0]
    if program == "-m":  # while packages load, all that says which module is to run
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["minigpt"]
    return Path(program).stem == "minigpt"


# Importing torch takes seconds. The command line registers when a command needs models, so that its help is instant.
if not _is_command_line():
    register()
