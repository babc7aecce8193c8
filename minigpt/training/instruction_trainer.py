"""TRL's SFTTrainer with what our Trainer adds: it is watched, staged, resumed to the last digit, and published."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from minigpt.errors import UsageError
from minigpt.hub.json_files import read_object, understanding
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.data.batches import IGNORED
from minigpt.training.evaluation import Evaluation, sum_of_losses
from minigpt.training.instruction import InstructionData, learn_to_stop, prefer_the_likely
from minigpt.training.sample import write_answer
from minigpt.training.trainer import MiniGPTTrainer

_METRICS = "metrics.json"
# What TRL's loss needs of a model's forward pass, as TRL itself asks for it.
_FUSED_OUTPUTS = ("log_probs", "entropy", "is_top1")


@dataclass
class InstructionArguments(MiniGPTTrainingArguments, SFTConfig):
    """Our arguments, with our defaults, and those of TRL's `SFTConfig`.

    The rows come with their labels, so that what TRL does to make labels has no effect: `assistant_only_loss`,
    `completion_only_loss`, `max_length`, `packing` and the like.
    """

    dataset_kwargs: dict[str, Any] | str | None = field(default_factory=lambda: {"skip_prepare_dataset": True})


class InstructionTrainer(MiniGPTTrainer, SFTTrainer):
    """Trains on conversations, as TRL does, and is watched as a MiniGPT is.

    The loss is TRL's, over the labelled tokens of all rows of a step, however they are cut into batches. Estimates are
    means over the labelled tokens of always the same rows, and samples are answers to held-back prompts. The model is
    let end its text (`learn_to_stop`) and answers at a lower temperature (`prefer_the_likely`), in its checkpoints
    already.

    Args:
        model: A causal language model, or one with an adapter.
        args: The arguments of the run.
        data: The rows, from `prepare_instruction`.
        processing_class: The tokenizer that they were made with.
        **kwargs: As for `MiniGPTTrainer`.

    Raises:
        UsageError: The model has an adapter on its head, or the tokenizer has no end of text.
        FloatingPointError: In `train`: the training diverged.
    """

    def __init__(
        self,
        model: Any,
        args: InstructionArguments,
        data: InstructionData,
        *,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        if is_peft_model(model):
            _refuse_adapter_on_head(model)
        learn_to_stop(model, processing_class)
        prefer_the_likely(model)
        self.data = data
        self.block_size = data.block_size
        base = model.get_base_model() if is_peft_model(model) else model
        self._own_forward = base.__dict__.get("forward")
        self._is_fused = True
        weights = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
        super().__init__(
            model,
            args,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=processing_class,
            characters_per_token=data.validation_characters / data.num_targets,
            **{"text_sha256": data.sha256, **kwargs},
        )
        # TRL rounds the adapter of a quantized model to bfloat16, in which small steps are lost.
        for name, weight in model.named_parameters():
            if name in weights:
                weight.data = weights[name]

    @property
    def estimates(self) -> bool:
        """Always."""
        return True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, as `MiniGPTTrainer` does; the model is then as it was, but for its weights."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._put_forward_back()

    def estimate(self) -> dict[str, float]:
        """Estimates the loss on `train` and `validation`, in nats a labelled token, always from the same rows."""
        number = self.args.eval_iters * self.args.per_device_train_batch_size
        splits = {"train": self.data.train, "validation": self.data.validation}
        losses = {}
        for split, rows in splits.items():
            chosen = (
                [place * len(rows) // number for place in range(number)] if len(rows) > number else range(len(rows))
            )
            mine = chosen[self.args.process_index :: self.args.world_size]
            sums = sum_of_losses(self.model, self._batches(rows, mine))
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(
                    torch.tensor(sums, dtype=torch.float64, device=self.args.device)
                ).tolist()
            losses[split] = sums[0] / sums[1]
        return losses

    def score(self, model: nn.Module) -> Evaluation:
        """Scores a model on all held-back rows."""
        rows = self.data.validation
        nats, targets = sum_of_losses(model, self._batches(rows, range(len(rows))))
        return Evaluation(nats / targets, targets, self.data.validation_characters)

    def sample(self, length: int) -> str:
        """Lets the model answer held-back prompts, in about `length` tokens together."""
        written, parts = 0, []
        for number, prompt in enumerate(self.data.prompts):
            room = min(length - written, self.block_size - len(prompt))
            answer = write_answer(self.model, prompt, room, seed=self.args.seed + number)
            written += len(answer)
            parts.append(self.processing_class.decode([*prompt, *answer], skip_special_tokens=True).rstrip("\n"))
            if written >= length:
                break
        return "\n".join(parts) if parts else super().sample(length)

    def tokens_seen(self) -> int:
        """How many tokens the model was trained on so far, those that only give context included."""
        return int(self._total_train_tokens)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL computes it, before a training, in it and after it."""
        if not self._is_fused:
            add_fused_lm_head(self._base, outputs=_FUSED_OUTPUTS)
            self._is_fused = True
        return super().compute_loss(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL does, which adds its metrics of the steps since the last log; but not to an estimate."""
        if "eval_loss" in logs:
            super(SFTTrainer, self).log(logs, start_time)
        else:
            super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as `MiniGPTTrainer` does; TRL's own card, a draft at every checkpoint, is not written."""
        if self._staging is None:
            super().create_model_card(*args, **kwargs)

    def restore_run(self) -> None:
        """Restore TRL's metrics too."""
        super().restore_run()
        file = self._resumed_from and self._resumed_from / _METRICS
        if file and file.is_file():
            kept = read_object(file)
            with understanding(file):
                self._total_train_tokens = kept["num_tokens"]
                self._metrics["train"].update(kept["since_last_log"])

    def write_run_state(self, folder: Path) -> None:
        """Write TRL's metrics too."""
        super().write_run_state(folder)
        if self.args.should_save:  # all processes have gathered the same
            kept = {"num_tokens": self._total_train_tokens, "since_last_log": self._metrics["train"]}
            (folder / _METRICS).write_text(json.dumps(kept), encoding="utf-8")

    def _save_unchanged(self, folder: Path) -> None:
        super()._save_unchanged(folder)
        if self.args.should_save and is_peft_model(self.model):
            # Its base may still suppress the end of text.
            self.model.generation_config.save_pretrained(folder)

    def _send_telemetry(self) -> None:
        pass  # nobody was asked

    @property
    def _base(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    def _put_forward_back(self) -> None:
        """Takes TRL's forward pass from the model again: a copy of the model would go on computing with this one."""
        base = self._base
        for name in ("forward", "_original_forward"):
            base.__dict__.pop(name, None)
        if self._own_forward is not None:
            base.forward = self._own_forward
        self._is_fused = False

    def _batches(self, rows: datasets.Dataset, places: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Rows as `collate` makes them of crops; padded on the right, which no token before it sees."""
        chosen = rows.select(places)
        examples = sorted(zip(chosen["input_ids"], chosen["labels"], strict=True), key=lambda row: len(row[0]))
        size = self.args.per_device_eval_batch_size
        for first in range(0, len(examples), size):
            ids, labels = zip(*examples[first : first + size], strict=True)
            yield {
                "input_ids": pad_sequence([torch.tensor(row[:-1]) for row in ids], batch_first=True),
                "shift_labels": pad_sequence([torch.tensor(row[1:]) for row in labels], True, IGNORED),
            }


def _refuse_adapter_on_head(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UsageError(
            "the adapter is on the model's output head too, of which TRL's loss reads the weights alone; leave the "
            "head out of lora_targets, as all-linear does."
        )
