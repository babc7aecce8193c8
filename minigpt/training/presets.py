"""Whole configurations by name: what the model is and how it is trained, together."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model_class.config_class.model_type: model_class for model_class in (MiniGPTForCausalLM, BigramForCausalLM)
}


@dataclass(frozen=True)
class Preset:
    """A model and its training.

    Attributes:
        name: What `--preset` calls it.
        description: One line for a person choosing.
        model_type: A key of `MODEL_CLASSES`.
        model: Arguments of the model's config.
        training: Arguments of `MiniGPTTrainingArguments`.
    """

    name: str
    description: str
    model_type: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]

    def build_config(self, **changes: Any) -> PreTrainedConfig:
        """Builds the model's config, with some fields changed.

        Raises:
            ValueError: A field has an impossible value; the message is one sentence.
            TypeError: There is no such field, or its value has another type.
        """
        config_class = MODEL_CLASSES[self.model_type].config_class
        try:
            return config_class(**{**self.model, **changes})
        except StrictDataclassError as error:
            raise (TypeError if isinstance(_cause(error), TypeError) else ValueError)(one_sentence(error)) from error


def one_sentence(error: BaseException) -> str:
    """What an error has to say, on one line and without the layers in which `@strict` wraps a config's own words."""
    return " ".join(str(_cause(error)).split()) or type(error).__name__


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return error


# The lecture's first model, its bigram.py: a table of what follows what.
BIGRAM = Preset(
    name="bigram",
    description="one table of what follows what: the baseline that a GPT must beat (seconds)",
    model_type="minigpt_bigram",
    model={"max_position_embeddings": 8},
    training={
        "max_steps": 3000,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 512,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
        "eval_interval": 300,
        "eval_iters": 200,
    },
)

# The lecture's notebook (gpt-dev.ipynb), "Full finished code, for reference". Its gpt.py is the same at six times the
# width.
SEED = Preset(
    name="seed",
    description="the lecture's GPT at a laptop's size: 0.2 M parameters (a minute or two on a CPU)",
    model_type="minigpt",
    model={
        "max_position_embeddings": 32,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "hidden_act": "relu",
        "dropout": 0.0,
    },
    training={
        "max_steps": 5000,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
    },
)

# nanoGPT's model, in our names: no biases, GELU, the head tied to the embedding, residual projections scaled.
_NANOGPT = {
    "hidden_act": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": True,
    "residual_init": "scaled",
}
# nanoGPT's optimiser and schedule (config/train_shakespeare_char.py on top of train.py's defaults).
_NANOGPT_TRAINING = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-4},
    "warmup_steps": 100,
    "adam_beta2": 0.99,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "eval_interval": 250,
}

# nanoGPT's README, "I only have a macbook", at twice its learning rate: `--learning_rate 1e-3` is the published run,
# which has learned less after these 2000 steps.
NANO_CPU = Preset(
    name="nano-cpu",
    description="nanoGPT's run for CPUs at twice its learning rate: 0.8 M parameters (about two minutes on a CPU)",
    model_type="minigpt",
    model={
        **_NANOGPT,
        "max_position_embeddings": 64,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
    },
    training={
        **_NANOGPT_TRAINING,
        "learning_rate": 2e-3,
        "max_steps": 2000,
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 32,
        "eval_iters": 100,
    },
)

# nanoGPT's config/train_shakespeare_char.py, "I have a GPU": published best validation loss 1.4697. It overfits, so the
# best checkpoint is the one that is kept.
NANO = Preset(
    name="nano",
    description="nanoGPT's Shakespeare run for GPUs: 10.7 M parameters (minutes on a GPU)",
    model_type="minigpt",
    model={
        **_NANOGPT,
        "max_position_embeddings": 256,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "num_hidden_layers": 6,
        "dropout": 0.2,
        "embedding_dropout": 0.2,
    },
    training={
        **_NANOGPT_TRAINING,
        "max_steps": 5000,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 64,
        "eval_iters": 200,
        "load_best_model_at_end": True,
    },
)

# A model to talk with: `minigpt finetune runs/chat --sft --data plays` teaches it to answer. Rotary positions, because
# to copy a name is to look a few places back, wherever in a conversation that is.
CHAT = Preset(
    name="chat",
    description="a rotary model to be taught conversations: 0.8 M parameters, block of 256 (a few minutes on a CPU)",
    model_type="minigpt",
    model={
        **_NANOGPT,
        "position_embedding_type": "rope",
        "max_position_embeddings": 256,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
    },
    training={
        **_NANOGPT_TRAINING,
        "learning_rate": 2e-3,
        "max_steps": 2000,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "eval_iters": 20,
    },
)

PRESETS = {preset.name: preset for preset in (BIGRAM, SEED, NANO_CPU, NANO, CHAT)}


def get_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        ValueError: There is none; the message names one like it and lists them all.
    """
    if name in PRESETS:
        return PRESETS[name]
    nearest = get_close_matches(name, PRESETS, n=1)
    question = f"did you mean {nearest[0]!r}? There are" if nearest else "there are"
    raise ValueError(f"there is no preset {name!r}; {question} {', '.join(PRESETS)}.")
