"""The Trainer with what the stock one lacks: random crops, estimates of the loss on both splits, samples of text."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, is_peft_model
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, ProgressCallback, TrainerControl
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from minigpt.hub.adapters import refuse_unfit_adapter
from minigpt.hub.weights import load_whole
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.batches import RandomCrops, Windows, collate
from minigpt.training.evaluation import Evaluation, estimate_loss, validation_loss
from minigpt.training.progress import ProgressLines, no_progress_bars
from minigpt.training.publishing import PublishingTrainer
from minigpt.training.recomputation import check_recomputable
from minigpt.training.sample import write_sample
from minigpt.training.segments import rows_trained
from minigpt.training.stream import TokenStream

# Away from the seeds 0, 1, 2, ... that people give: an estimate on the training split draws crops of its own.
_ESTIMATE_SEED = 2**32


class MiniGPTTrainer(PublishingTrainer):
    """Trains on random crops of a tokenized text, and watches itself as the lecture does.

    Every `eval_interval` steps it estimates the loss on both splits (`eval_loss` is the validation split's,
    `eval_train_loss`, `eval_bits_per_character`, `eval_perplexity`) and writes a sample (`eval_sample`, in
    `state.log_history` only). Neither draws from the training's randomness. Checkpoints are staged
    (`StagedTrainer`), and a resumed run gives the weights and losses of an uninterrupted one. With `push_to_hub` they
    are on the Hub at every save (`PublishingTrainer`).

    Args:
        model: A causal language model.
        args: The arguments of the run.
        tokens: The splits `train` and `validation`, from `tokenize_corpus`; or give `train_dataset` and `eval_dataset`
            as to the stock Trainer, and it trains and evaluates as that one does.
        characters_per_token: For bits a character; 1 for a character vocabulary.
        block_size: Tokens of input in a crop; by default as many as the model takes.
        has_documents: True if EOS ends documents in the tokens; samples then begin with it.
        **kwargs: As for `transformers.Trainer`; `processing_class` is the tokenizer that samples are decoded with.

    Raises:
        CorpusError: A split is shorter than a block and its target.
        UsageError: Gradient checkpointing would do nothing for this model.
        FloatingPointError: In `train`: the training diverged, and an estimate of the loss is no longer a finite number.
    """

    control: TrainerControl
    optimizer: Any
    compute_loss_func: Any

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: MiniGPTTrainingArguments | None = None,
        tokens: datasets.DatasetDict | None = None,
        *,
        characters_per_token: float = 1.0,
        block_size: int | None = None,
        has_documents: bool = False,
        **kwargs: Any,
    ) -> None:
        args = args or MiniGPTTrainingArguments()
        if not isinstance(args, MiniGPTTrainingArguments):
            raise TypeError(f"args must be MiniGPTTrainingArguments, got {type(args).__name__}.")
        self.streams: dict[str, TokenStream] = {}
        self.characters_per_token = characters_per_token
        self.has_documents = has_documents
        self._flos_per_token: int | None = None
        if tokens is not None:
            if model is None:
                raise TypeError("training on tokens needs the model itself: its block size decides about the crops.")
            self.streams = {split: TokenStream(tokens[split]) for split in ("train", "validation")}
            self.block_size = block_size or model.config.max_position_embeddings
            kwargs["train_dataset"] = RandomCrops(
                self.streams["train"],
                self.block_size,
                seed=_data_seed(args),
                length=crops_of_an_epoch(args, len(self.streams["train"]), self.block_size),
            )
            RandomCrops(self.streams["validation"], self.block_size)  # refuses a split that is too short to estimate on
            kwargs["eval_dataset"] = Windows(self.streams["validation"], self.block_size)
            kwargs["data_collator"] = collate
        if model is not None and args.activation_checkpointing:
            check_recomputable(model)  # before the stock Trainer makes a folder
        super().__init__(model, args, **kwargs)
        for chatty in (PrinterCallback, ProgressCallback):
            self.remove_callback(chatty)
        self._progress = ProgressLines()
        self.add_callback(self._progress)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, as `StagedTrainer` does; whatever ends it, no bar stays on the terminal."""
        # A step looks at the outermost module alone, and an adapter's is in training mode above a model that is not.
        self.model.train()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Estimates the loss on both splits and writes a sample; given a dataset, does as transformers does."""
        if eval_dataset is not None or not self.estimates:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._show_averaged_weights()
        losses = self.estimate()
        validation = Evaluation(losses["validation"], targets=1, characters=self.characters_per_token)
        metrics = {
            f"{metric_key_prefix}_loss": validation.loss,
            f"{metric_key_prefix}_train_loss": losses["train"],
            f"{metric_key_prefix}_bits_per_character": validation.bits_per_character,
            f"{metric_key_prefix}_perplexity": validation.perplexity,
        }
        self.log(metrics)
        # After the log: reporting integrations take numbers only. Nothing can be drawn from a model that has diverged.
        in_pieces = self.is_fsdp_enabled or self.is_deepspeed_enabled
        is_wanted = self.args.sample_length and self.args.should_save and not in_pieces
        sample = ""
        if is_wanted and self.processing_class is not None and all(math.isfinite(loss) for loss in losses.values()):
            sample = self.sample(self.args.sample_length)
        self.state.log_history[-1][f"{metric_key_prefix}_sample"] = sample
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def estimates(self) -> bool:
        """Whether it is watched by estimates of its own, and not by what the stock Trainer does."""
        return bool(self.streams)

    def estimate(self) -> dict[str, float]:
        """Estimates the loss on `train` and `validation`, in nats a token, always from the same crops."""
        return estimate_loss(
            self.model,
            self.streams,
            self.block_size,
            num_crops=self.args.eval_iters * self.args.per_device_train_batch_size,
            batch_size=self.args.per_device_eval_batch_size,
            seed=_ESTIMATE_SEED + _data_seed(self.args),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            total=self.accelerator.reduce if self.args.world_size > 1 else None,
        )

    def score(self, model: nn.Module) -> Evaluation:
        """Scores a model on the whole validation split."""
        return validation_loss(
            model,
            self.streams["validation"],
            self.block_size,
            self.args.per_device_eval_batch_size,
            characters_per_token=self.characters_per_token,
        )

    def score_checkpoint(self, checkpoint: Path) -> Evaluation:
        """Scores the model of a checkpoint likewise, and leaves the one in training as it is."""
        network = self.accelerator.unwrap_model(self.model)
        with no_progress_bars():
            if isinstance(network, PreTrainedModel):
                return self.score(load_whole(type(network).from_pretrained, checkpoint).to(network.device))
            refuse_unfit_adapter(network, checkpoint)
            network.load_adapter(str(checkpoint), adapter_name="checkpoint")
        network.set_adapter("checkpoint")
        try:
            return self.score(network)
        finally:
            network.set_adapter("default")
            network.delete_adapter("checkpoint")

    def sample(self, length: int) -> str:
        """Lets the model write `length` tokens, drawing nothing from the training's randomness."""
        return write_sample(
            self.model, self.processing_class, length, seed=self.args.seed, has_documents=self.has_documents
        )

    def tokens_seen(self) -> int:
        """How many tokens the model was trained on so far, counted as often as it saw them."""
        return rows_trained(self.segments, self.state.global_step) * self.block_size

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:
            return {}  # `eval_on_start` of a resumed run, which has been evaluated where it stopped
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        for name in ("eval_train_loss", "eval_loss"):
            self.refuse_divergence(metrics.get(name, 0.0))
        return metrics

    def refuse_divergence(self, loss: float) -> None:
        """Ends a run that can't recover, before its checkpoints replace those from before it diverged.

        Raises:
            FloatingPointError: The loss is infinite or not a number.
        """
        if not math.isfinite(loss):
            best = self.state.best_model_checkpoint
            raise FloatingPointError(
                f"the training has diverged: after step {self.state.global_step} the loss is {loss}, most likely "
                f"because a learning_rate of {self.args.learning_rate:g} is too high for this model; try a lower one"
                + (f" (the best checkpoint from before is {best})." if best else ".")
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.keep_best and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = True
        return is_best

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return _FreshCrops(dataset) if isinstance(dataset, RandomCrops) else super()._get_train_sampler(train_dataset)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in transformers; in the plain case without what only other cases need.

        For a model of a few milliseconds a step it matters that the stock method walks through all modules to put them
        in training mode, each time.
        """
        if not self._is_plain or num_items_in_batch is not None or self.loss_is_scaled_for_ga is not None:
            return super().training_step(model, inputs, num_items_in_batch)
        if not model.training:
            model.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        if self.compute_loss_func is None:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as transformers does, but smooth `shift_labels` where a batch has them.

        The stock label smoothing reads only `labels`, and shifts them for some classes of models and not for others.
        """
        if self.label_smoother is None or "shift_labels" not in inputs or self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.compute_loss_func = lambda outputs, labels, num_items_in_batch: self.label_smoother(
            outputs, inputs["shift_labels"], num_items_in_batch=num_items_in_batch
        )
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.compute_loss_func = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As in transformers; the optimizer is ready by now, and in the plain case loses a wrapper that is of no use.

        At every step that wrapper searches the disk for an optimizer that is not installed.
        """
        if self._is_plain and isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = self.optimizer.optimizer
        return super().create_scheduler(num_training_steps, optimizer)

    @property
    def _is_plain(self) -> bool:
        """Whether one process trains on one device, without loss scaling and without an optimizer of special needs."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return (
            not hasattr(optimizer, "train")
            and self.accelerator.distributed_type == DistributedType.NO
            and self.accelerator.scaler is None
            and self.args.n_gpu <= 1
            and self.args.torch_empty_cache_steps is None
            and self.args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Crops are all of one length: a mean of their batches' means is exact, and nothing needs to be counted.
        if isinstance(self.train_dataset, RandomCrops):
            return None
        return super()._get_num_items_in_batch(batch_samples, device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Without clipping, the stock Trainer computes the norm at every step for the few that are logged.
        return None if self.args.max_grad_norm == 0 else super()._get_grad_norm(model, grad_norm)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in transformers, but the parameters are counted once and not at every step."""
        tokens = inputs.get(self.model.main_input_name)
        if not isinstance(tokens, Tensor):
            return 0
        if self._flos_per_token is None:
            self._flos_per_token = 6 * self.model.num_parameters(exclude_embeddings=True)
        return self._flos_per_token * tokens.numel()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # The Trainer turns the cache off while it trains; who loads the model has it on.
        config = getattr(self.model, "config", None)
        if config is None:
            return super()._save(output_dir, state_dict)
        trains_with_cache, config.use_cache = config.use_cache, True
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = trains_with_cache
        if self.has_documents and self.args.should_save and is_peft_model(self.model):
            # The adapter's base may suppress EOS.
            self.model.generation_config.save_pretrained(output_dir or self.args.output_dir)


class _FreshCrops(Sampler[int]):
    """Counts on from epoch to epoch: crops are random by themselves, and a new index is a new crop."""

    def __init__(self, crops: RandomCrops) -> None:
        self.length = len(crops)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))

    def __len__(self) -> int:
        return self.length


def crops_of_an_epoch(args: MiniGPTTrainingArguments, num_tokens: int, block_size: int) -> int:
    """How many crops count as an epoch: all of the run's, or where epochs are asked for, the text's worth of blocks."""
    crops_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps > 0:
        return args.max_steps * crops_a_step
    return max(num_tokens // block_size // crops_a_step, 1) * crops_a_step


def _data_seed(args: MiniGPTTrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed
