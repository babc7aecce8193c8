"""Gradient checkpointing: a block's activations are computed once more when its gradients need them, and not kept."""

from transformers import PreTrainedModel

from minigpt.errors import UsageError


def check_recomputable(model: PreTrainedModel) -> None:
    """Refuses gradient checkpointing where it would do nothing.

    Raises:
        UsageError: The model has no blocks that could be recomputed.
    """
    # The model's own switch is no sign: one without blocks has it too, for the Trainer to turn.
    has_blocks = any(hasattr(module, "gradient_checkpointing") for module in model.modules() if module is not model)
    if not (model.supports_gradient_checkpointing and has_blocks):
        raise UsageError(
            f"gradient_checkpointing computes blocks twice to keep less of them, and a {model.config.model_type} has "
            "none that it could; leave it out."
        )
