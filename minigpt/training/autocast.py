"""Mixed precision is how a model trains, not what it is: afterwards it computes in the precision of its weights."""

from transformers import PreTrainedModel


def without_autocast(model: PreTrainedModel) -> PreTrainedModel:
    """Takes off the wrapper that makes a model's forward compute in half precision, and returns the model.

    Accelerate puts it on for the training and leaves it on. Its own way of taking it off takes the decorators of the
    forward with it.

    Args:
        model: One that may have been trained with `bf16` or `fp16`, changed in place.
    """
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        model.__dict__.pop("forward", None)
        if model.forward != original:
            model.forward = original  # a forward of its own, not its class's
    # Whoever trains it once more has it wrapped once more.
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model
