"""The Trainer with random crops, loss estimates on both splits, samples, and checkpoints that continue a run exactly.

On a CPU the last digits also depend on the number of threads and on the CPU: sums of floats depend on their order.

These methods of `Trainer` are private and overridden here. They were read in transformers 5.23.0:

- `_get_train_sampler`: crops are random by themselves, so indices only count up.
- `_get_grad_norm`: without clipping, the norm is not needed.
- `_get_output_dir`, `_save_checkpoint`: a checkpoint is staged, and renamed when it is whole.
- `_load_optimizer_and_scheduler`: changed arguments win over those in a checkpoint.
- `_push_from_checkpoint`: a checkpoint is pushed under its final name.
- `_finalize_training`: no checkpoint is deleted that the run may continue from.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, is_peft_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from minigpt.errors import CheckpointError
from minigpt.hub.adapter_folders import BASE_HASH, refuse_unfit_adapter
from minigpt.hub.disk import plain_save_errors
from minigpt.hub.file_names import UNFINISHED
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.run_lock import hold_folder
from minigpt.hub.weights import check_files, load_whole
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.checkpoints import (
    SETTINGS,
    TEXT_HASH,
    checkpoint_fault,
    delete_surplus,
    find_checkpoint,
    last_whole_checkpoint,
    remove_unfinished,
    step_of,
)
from minigpt.training.data.batches import RandomCrops, Windows, collate
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.evaluation import Evaluation, estimate_loss, validation_loss
from minigpt.training.gradient_checkpointing import check_recomputable
from minigpt.training.progress import ProgressLines, no_progress_bars
from minigpt.training.sample import write_sample
from minigpt.training.segments import (
    Segment,
    overrides_checkpoint,
    rows_trained,
    threads_of,
    training_segments,
    write_segments,
)
from minigpt.training.staged_files import publish_checkpoint, publish_files, unchanged_card

if TYPE_CHECKING:
    from minigpt.training.push_callback import PushCallback

logger = logging.getLogger(__name__)

# What an optimizer keeps of the arguments, beside its state.
_ARGUMENTS = {"initial_lr", "betas", "eps", "weight_decay"}
# Away from the seeds 0, 1, 2, ... that people give: an estimate on the training split draws crops of its own.
_ESTIMATE_SEED = 2**32


class MiniGPTTrainer(Trainer):
    """Train on random crops of a tokenized text, and report estimates and samples as the lecture does.

    Every `eval_interval` steps it estimates the loss on both splits (`eval_loss` is the validation split's,
    `eval_train_loss`, `eval_bits_per_character`, `eval_perplexity`) and writes a sample (`eval_sample`, in
    `state.log_history` only). Neither draws from the training's randomness.

    A checkpoint is written into another folder, forced to the disk, and renamed to `checkpoint-<step>` when all of it
    is there, so it is whole whenever the process dies. Besides the stock state it holds the running loss: a resumed run
    gives the weights and losses of an uninterrupted one. `train(resume_from_checkpoint=True)` takes the last whole
    checkpoint of the output folder. While it trains, no other run can write to that folder. `save_model()` stages what
    it writes there as well. With `push_to_hub`, `PushCallback` publishes each checkpoint and the finished run.

    Args:
        model: A causal language model.
        args: The arguments of the run.
        tokens: The splits `train` and `validation`, from `tokenize_corpus`; or give `train_dataset` and `eval_dataset`
            as to the stock Trainer, and it trains and evaluates as that one does.
        characters_per_token: For bits per character; 1 for a character vocabulary.
        block_size: Tokens of input in a crop; by default as many as the model takes.
        has_documents: True if EOS ends documents in the tokens; samples then begin with it.
        text_sha256: Hash of the text that is trained on, kept in every checkpoint and compared on resume; None to keep
            nothing.
        base_sha256: Hash of the weights that a fine-tuning began with, kept likewise, and beside the saved model.
        settings: Other values that must be the same on resume, kept likewise, as JSON.
        **kwargs: As for `transformers.Trainer`; `processing_class` is the tokenizer that samples are decoded with.

    Attributes:
        segments: Parts of the run that were trained with different arguments; the last one is trained by `train`.
        last_checkpoint: The checkpoint that was saved last, if any.

    Raises:
        CorpusError: A split is shorter than a block and its target.
        UsageError: Gradient checkpointing would do nothing for this model; or with `push_to_hub`, the repository or the
            token will not do, or there is no `processing_class` to push.
        PushFailed: With `push_to_hub`: the Hub has refused, or cannot be reached.
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
        text_sha256: str | None = None,
        base_sha256: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or MiniGPTTrainingArguments()
        if not isinstance(args, MiniGPTTrainingArguments):
            raise TypeError(f"args must be MiniGPTTrainingArguments, got {type(args).__name__}.")
        self.streams: dict[str, TokenStream] = {}
        self.characters_per_token = characters_per_token
        self.has_documents = has_documents
        self._flos_per_token: int | None = None
        self._text_sha256 = text_sha256
        self._base_sha256 = base_sha256
        self._settings = settings
        self._staging: Path | None = None
        self._resumed_from: Path | None = None
        self._resumed_step = 0
        self._kept: set[Path] = set()
        self.last_checkpoint: Path | None = None
        self._skips_evaluation = False
        self._publisher: PushCallback | None = None
        self.segments: list[Segment] = []
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
        if isinstance(self.train_dataset, RandomCrops):
            # Crops have one length: the mean of their batches' means is exact, and no labels need to be counted.
            self.model_accepts_loss_kwargs = False
        self.add_callback(_RestoreRun(self))
        for chatty in (PrinterCallback, ProgressCallback):
            self.remove_callback(chatty)
        self._progress = ProgressLines()
        self.add_callback(self._progress)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        # After the others: the end of the run is reported before its uploads are waited for.
        if self._publisher is not None:
            self.remove_callback(self._publisher)
            self.add_callback(self._publisher)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does; a damaged checkpoint is refused, or skipped if none was named.

        Raises:
            ValueError: There is no whole checkpoint to resume from.
            UsageError: It was trained with other arguments, and `resume_with_changes` is not set.
        """
        run_dir = Path(self.args.output_dir)
        is_trial = bool(args and args[0]) or bool(kwargs.get("trial"))  # each has a folder of its own
        with hold_folder(run_dir) if self.is_world_process_zero() and not is_trial else nullcontext():
            self._resumed_from = find_checkpoint(run_dir, resume_from_checkpoint) if resume_from_checkpoint else None
            self._resumed_step = 0
            if self._resumed_from:
                self._refuse_unfit(self._resumed_from)
                self._resumed_step = step_of(self._resumed_from)
            self.segments = training_segments(self._resumed_from, self.args)
            if len(threads := threads_of(self.segments)) > 1 and self.is_world_process_zero():
                logger.warning(
                    "The parts of this run compute with %s threads, so the last digits of its weights will differ from "
                    "those of a run that was never stopped; set OMP_NUM_THREADS=%d to resume with as many as before.",
                    " and then ".join(map(str, threads)),
                    threads[0],
                )
            if self.args.should_save:
                remove_unfinished(run_dir)
            # A step looks only at the outermost module: an adapter may be in training mode above a model that is not.
            self.model.train()
            try:
                return super().train(str(self._resumed_from) if self._resumed_from else None, *args, **kwargs)
            finally:
                self.is_in_train = self._skips_evaluation = False
                self._progress.close()

    def _refuse_unfit(self, checkpoint: Path) -> None:
        """Refuse weights that are not this model's, which the stock Trainer would load as far as they go."""
        network = self.accelerator.unwrap_model(self.model)
        if is_peft_model(network):
            refuse_unfit_adapter(network, checkpoint)
        else:
            tied = getattr(network, "all_tied_weights_keys", {})
            check_files(checkpoint, "model*.safetensors", network.state_dict(), optional=tied)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Estimate the loss on both splits and write a sample; with a dataset, evaluate as transformers does."""
        if self._skips_evaluation:
            self._skips_evaluation = False
            return {}
        if eval_dataset is not None or not self.estimates:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        else:
            metrics = self._report_estimates(metric_key_prefix)
        if self.is_in_train and eval_dataset is None:
            for name in ("eval_train_loss", "eval_loss"):
                self.refuse_divergence(metrics.get(name, 0.0))
            if self.args.keep_best and self.args.save_strategy != SaveStrategy.NO and self._is_best(metrics):
                self.control.should_save = True
        return metrics

    def _report_estimates(self, prefix: str) -> dict[str, float]:
        self._show_averaged_weights()
        losses = self.estimate()
        validation = Evaluation(losses["validation"], targets=1, characters=self.characters_per_token)
        metrics = {
            f"{prefix}_loss": validation.loss,
            f"{prefix}_train_loss": losses["train"],
            f"{prefix}_bits_per_character": validation.bits_per_character,
            f"{prefix}_perplexity": validation.perplexity,
        }
        self.log(metrics)
        # After the log: reporting integrations take only numbers. Nothing can be drawn from a model that has diverged.
        in_pieces = self.is_fsdp_enabled or self.is_deepspeed_enabled
        is_wanted = self.args.sample_length and self.args.should_save and not in_pieces
        sample = ""
        if is_wanted and self.processing_class is not None and all(math.isfinite(loss) for loss in losses.values()):
            sample = self.sample(self.args.sample_length)
        self.state.log_history[-1][f"{prefix}_sample"] = sample
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Return True if the run keeps the best checkpoint and no estimate was as good as this one."""
        if self.args.metric_for_best_model is None:
            return False
        value = metrics.get(f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}")
        if value is None or self.state.best_metric is None:
            return value is not None and not math.isnan(value)
        return value > self.state.best_metric if self.args.greater_is_better else value < self.state.best_metric

    @property
    def estimates(self) -> bool:
        """True if `evaluate` estimates the loss on crops, False if it evaluates as the stock Trainer does."""
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
        """True for one process on one device, without loss scaling and without `train()`/`eval()` on the optimizer."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return (
            not hasattr(optimizer, "train")
            and self.accelerator.distributed_type == DistributedType.NO
            and self.accelerator.scaler is None
            and self.args.n_gpu <= 1
            and self.args.torch_empty_cache_steps is None
            and self.args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)
        )

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does; into the run's own folder whole or not at all."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            self._save_unchanged(Path(output_dir))
        else:
            with self.staged_files() as staged:
                self._save_unchanged(staged)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_unchanged(self, folder: Path) -> None:
        """Save the model without what only the training needs: its cache turned off, and the token of the Hub."""
        config = getattr(self.model, "config", None)
        use_cache, token = getattr(config, "use_cache", None), self.args.hub_token
        if config is not None:
            config.use_cache = True
        self.args.hub_token = None  # the arguments are saved as a pickle
        try:
            with no_progress_bars(), unchanged_card(folder, is_ours=self.args.should_save):
                super().save_model(str(folder), _internal_call=True)
        finally:
            self.args.hub_token = token
            if config is not None:
                config.use_cache = use_cache
        if self._base_sha256 and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)  # sharded weights are saved later
            (folder / BASE_HASH).write_text(f"{self._base_sha256}\n", encoding="utf-8")
        if self.has_documents and self.args.should_save and is_peft_model(self.model):
            # The adapter's base may suppress EOS.
            self.model.generation_config.save_pretrained(folder)

    @contextmanager
    def staged_files(self) -> Iterator[Path]:
        """Yield a folder whose files replace those in the run's folder when the block ends well in all processes.

        Raises:
            SaveError: The disk is full; the files in the run's folder are as they were.
        """
        run_dir = Path(self.args.output_dir)
        staged = run_dir / UNFINISHED / "model"
        with self._plain_save_errors(run_dir):
            try:
                if self.args.should_save:
                    staged.mkdir(parents=True, exist_ok=True)
                yield staged
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    publish_files(staged, run_dir)
            finally:
                if self.args.should_save:
                    remove_unfinished(run_dir)

    def _plain_save_errors(self, name: Path) -> AbstractContextManager[None]:
        def remedy() -> str:
            last = last_whole_checkpoint(Path(self.args.output_dir))
            if last is None:
                return "make room on that disk, then start again; no checkpoint is whole yet"
            return (
                f"make room on that disk, then use the same command and --resume_from_checkpoint; {last} is whole and "
                "the run goes on from there"
            )

        return plain_save_errors(name, remedy)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._show_averaged_weights()
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        with self._plain_save_errors(final):
            self._stage_checkpoint(model, trial, final, best)
        self.last_checkpoint = final
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        self._kept = {final, best} if best.is_dir() else {final}
        self._delete_surplus()

    def _stage_checkpoint(self, model: Any, trial: Any, final: Path, best: Path) -> None:
        run_dir = final.parent
        staged = run_dir / UNFINISHED / final.name
        self._staging = staged.parent
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                self.write_run_state(staged)
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                write_segments(staged, self.segments)
                if self._text_sha256:
                    (staged / TEXT_HASH).write_text(f"{self._text_sha256}\n", encoding="utf-8")
                if self._settings:
                    (staged / SETTINGS).write_text(json.dumps(dict(self._settings)) + "\n", encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_checkpoint(staged, final)
        except BaseException:
            if self.args.should_save:
                remove_unfinished(run_dir)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero() and staged.is_dir():
            # A machine with a disk of its own that does not save: only its generators' states are here.
            publish_checkpoint(staged, final)

    def _delete_surplus(self) -> None:
        """Delete checkpoints beyond the limit, but never the last, the best, or one that is still needed."""
        if self.args.should_save and self._kept:
            (run_dir,) = {checkpoint.parent for checkpoint in self._kept}
            uploading = self._publisher.in_use() if self._publisher else set()
            delete_surplus(run_dir, self.args.save_total_limit, self._kept | uploading)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in transformers, but the checkpoint's hyperparameters do not replace those that the run has changed."""
        if not overrides_checkpoint(self.segments, self.state.global_step):
            return super()._load_optimizer_and_scheduler(checkpoint)
        ours = [{name: group[name] for name in _ARGUMENTS & {*group}} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        for number, (group, arguments) in enumerate(zip(self.optimizer.param_groups, ours, strict=True)):
            group |= arguments
            if isinstance(schedule, LambdaLR):
                schedule.base_lrs[number] = group["initial_lr"]
                group["lr"] = group["initial_lr"] * schedule.lr_lambdas[number](schedule.last_epoch)
                schedule._last_lr[number] = group["lr"]  # what is logged

    def restore_run(self) -> None:
        """Restore what a checkpoint holds besides the stock state, after the Trainer has loaded that.

        Raises:
            CheckpointError: The checkpoint's state was gone when it was to be read.
        """
        if self.state.global_step != self._resumed_step:
            raise CheckpointError(
                f"{self._resumed_from} is at step {self._resumed_step} and its state was gone when it was to be read; "
                "name another checkpoint."
            )
        # It was evaluated where it stopped.
        self._skips_evaluation = self.args.eval_on_start and self._resumed_step > 0
        # The checkpoint has no entry for callbacks added since, and the stock Trainer expects one for each.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        if self.state.best_global_step:
            # The folder may have been moved since, and a checkpoint in it may have been damaged.
            best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
            fault = checkpoint_fault(best)
            self.state.best_model_checkpoint = None if fault else str(best)
            if fault:
                logger.warning("%s, the best checkpoint, is lost: %s.", best, fault)
        self._started = time.monotonic()
        file = self._resumed_from and self._resumed_from / self._running_loss_file
        if not file or not file.is_file():
            return
        running = read_object(file)
        with understanding(file):
            self._tr_loss.fill_(running["loss"])
            self._total_loss_scalar = float(running["loss_logged"])
            self._globalstep_last_logged = int(running["last_logged_step"])
            # The mean, the time and the speed at the end are those of the whole run.
            self._started -= running["seconds"]
        self._initial_global_step = 0

    def write_run_state(self, folder: Path) -> None:
        """Write what `restore_run` reads; each process writes its own file."""
        running = {
            "loss": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "seconds": time.monotonic() - self._started,
        }
        (folder / self._running_loss_file).write_text(json.dumps(running), encoding="utf-8")

    @property
    def _running_loss_file(self) -> str:
        return f"running_loss_{self.args.process_index}.json" if self.args.world_size > 1 else "running_loss.json"

    @property
    def _start_time(self) -> float:
        """Start of the run on the system clock, shifted so that resumed runs and clock changes do not matter."""
        return time.time() - (time.monotonic() - self._started)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as in transformers, with times from a monotonic clock."""
        super().log(logs, start_time and self._start_time)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        self._show_averaged_weights()  # before the best weights may be loaded in their place
        # At a limit of one, the stock Trainer deletes here whatever is not the best: what a run has just announced to
        # go on from among it.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, num_train_samples, self._start_time)
        finally:
            self.args.save_total_limit = limit
            self._delete_surplus()

    def _show_averaged_weights(self) -> None:
        """Give the model the weights that a schedule-free optimizer averages; the next step takes them back.

        The stock Trainer does so only in its own evaluation. Other optimizers have no such mode.
        """
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `PushCallback` has its own way. What is staged is not whole yet.
        if self._publisher is None and self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _find_publisher(self) -> "PushCallback | None":
        """Return the callback that publishes the model, or None for a module that only the stock Trainer can push."""
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel) and not is_peft_model(model):
            return None
        if self._publisher is None:
            from minigpt.training.push_callback import PushCallback

            self._publisher = PushCallback(self)
            self.add_callback(self._publisher)
        return self._publisher

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if there is none, and make sure that this model can be pushed there."""
        if (publisher := self._find_publisher()) is None:
            super().init_hf_repo(token, private)
        elif self.is_world_process_zero():
            publisher.open_repository(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and publish the output folder, without checkpoints, as `minigpt push` does.

        Args:
            commit_message: Subject of the commit.
            blocking: Wait until it is there.
            token: Token in place of the arguments' own.
            revision: Branch in place of the arguments' own.
            private: Make a new repository private, in place of the arguments' own.
            **kwargs: As for `create_model_card`.

        Returns:
            What was pushed (`Push`), or without `blocking` its future; None in all processes but the first.
        """
        if (publisher := self._find_publisher()) is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        push = publisher.push_run(commit_message, token=token, revision=revision)
        return push.result() if blocking else push

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the run's model card into the output folder, with this metadata; a person's own words there stay.

        Args:
            language: As in transformers, and so `license` and `tags`.
            license: License of the weights.
            tags: Tags besides our own.
            model_name: Without effect: a card has the name of its repository.
            finetuned_from: Base model on the Hub.
            tasks: Without effect: the model's head decides the task.
            dataset_tags: Ids of datasets on the Hub.
            dataset: Without effect, as `dataset_args`: the run knows what it was trained on.
            dataset_args: See `dataset`.
        """
        if (publisher := self._find_publisher()) is None:
            return super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )
        if not self.is_world_process_zero():
            return
        chosen = {
            "language": language,
            "license": license,
            "tags": [tags] if isinstance(tags, str) else tags,
            "base_model": finetuned_from,
            "datasets": [dataset_tags] if isinstance(dataset_tags, str) else dataset_tags,
        }
        publisher.write_card({key: value for key, value in chosen.items() if value})


class _RestoreRun(TrainerCallback):
    """Restores a run at the one moment that is after the Trainer has reset its losses and before it adds to them."""

    def __init__(self, trainer: MiniGPTTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.restore_run()


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
