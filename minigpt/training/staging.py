"""A Trainer whose checkpoints appear whole or not at all, and continue a run to the last digit.

On a CPU the last digits also depend on the number of threads and on the CPU: sums of floats depend on their order.
"""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState

from minigpt.hub.adapters import BASE_HASH, refuse_unfit_adapter
from minigpt.hub.adapters import CONFIG as ADAPTER_CONFIG
from minigpt.hub.disk import force_to_disk, plain_save_errors
from minigpt.hub.file_names import CARD, RUN, UNFINISHED
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.run_lock import hold_folder
from minigpt.hub.weights import check_files
from minigpt.training.checkpoints import (
    SETTINGS,
    TEXT_HASH,
    CheckpointError,
    checkpoint_fault,
    delete_surplus,
    find_checkpoint,
    last_whole_checkpoint,
    remove_unfinished,
    step_of,
)
from minigpt.training.checksums import write_checksums
from minigpt.training.progress import no_progress_bars
from minigpt.training.segments import Segment, overrides_checkpoint, threads_of, training_segments, write_segments

logger = logging.getLogger(__name__)

# What an optimizer keeps of the arguments, beside its state.
_ARGUMENTS = {"initial_lr", "betas", "eps", "weight_decay"}


class StagedTrainer(Trainer):
    """The stock Trainer with staged checkpoints.

    A checkpoint is written into a folder that nothing takes for one, forced to the disk, and renamed to
    `checkpoint-<step>` when all of it is there. A checkpoint is therefore whole, whenever the process died. Beside the
    stock state it holds the running loss, so that a resumed run logs the losses of an uninterrupted one.

    `train(resume_from_checkpoint=True)` takes the last whole checkpoint of the output folder. While it trains, no other
    run can write to that folder. `save_model()` stages what it writes there as well.

    Args:
        *args: As for `transformers.Trainer`.
        text_sha256: Hash of the text that is trained on, kept in every checkpoint, so that whoever goes on from one
            can tell whether it is still the same text; None to keep nothing.
        base_sha256: Hash of the weights that a fine-tuning began with, kept likewise, and beside the saved model.
        settings: What else must be the same when the run goes on, kept likewise, as JSON.
        **kwargs: As for `transformers.Trainer`.

    Attributes:
        segments: The parts of the run that were trained with different arguments, the last one by `train`.
    """

    def __init__(
        self,
        *args: Any,
        text_sha256: str | None = None,
        base_sha256: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._text_sha256 = text_sha256
        self._base_sha256 = base_sha256
        self._settings = settings
        self._staging: Path | None = None
        self._resumed_from: Path | None = None
        self._resumed_step = 0
        self._kept: set[Path] = set()
        self.segments: list[Segment] = []
        super().__init__(*args, **kwargs)
        self.add_callback(_RunningLoss(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, as in transformers; a damaged checkpoint is refused, or passed over if none was named.

        Raises:
            ValueError: There is no whole checkpoint to resume from.
            UsageError: It was trained with other arguments, and nothing says that they may change.
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
            return super().train(str(self._resumed_from) if self._resumed_from else None, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, as in transformers; into the run's own folder whole or not at all."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            return super().save_model(output_dir, _internal_call)
        with self.staged_files() as staged:
            super().save_model(str(staged), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def staged_files(self) -> Iterator[Path]:
        """Gives a folder whose files replace those in the run's folder when the block ends well in all processes.

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
                    _publish_files(staged, run_dir)
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

    def _refuse_unfit(self, checkpoint: Path) -> None:
        """Refuse weights that are not this model's, which the stock Trainer would load as far as they go."""
        network = self.accelerator.unwrap_model(self.model)
        if is_peft_model(network):
            refuse_unfit_adapter(network, checkpoint)
        else:
            tied = getattr(network, "all_tied_weights_keys", {})
            check_files(checkpoint, "model*.safetensors", network.state_dict(), optional=tied)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        with no_progress_bars(), _same_card(folder, is_ours=self.args.should_save):
            super()._save(output_dir, state_dict)
        if self._base_sha256 and self.args.should_save:  # else another process writes it
            (folder / BASE_HASH).write_text(f"{self._base_sha256}\n", encoding="utf-8")

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        started = super()._init_training_state(*args, **kwargs)
        if self.state.global_step != self._resumed_step:  # its weights are loaded by now
            raise CheckpointError(
                f"{self._resumed_from} is at step {self._resumed_step} and its state was gone when it was to be read; "
                "name another checkpoint."
            )
        # The checkpoint knows nothing of callbacks added since, and the stock Trainer expects an entry for each.
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
        return started

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

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _show_averaged_weights(self) -> None:
        """Give the model the weights that a schedule-free optimizer averages; the next step takes them back.

        The stock Trainer does so only in its own evaluation. Other optimizers have no such mode.
        """
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._show_averaged_weights()
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        with self._plain_save_errors(final):
            self._stage_checkpoint(model, trial, final, best)
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
                _publish(staged, final)
        except BaseException:
            if self.args.should_save:
                remove_unfinished(run_dir)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero() and staged.is_dir():
            # A machine with a disk of its own that does not save: only its generators' states are here.
            _publish(staged, final)

    def _delete_surplus(self) -> None:
        """Deletes checkpoints beyond the limit, but never the last, the best, or one that is still needed."""
        if self.args.should_save and self._kept:
            (run_dir,) = {checkpoint.parent for checkpoint in self._kept}
            delete_surplus(run_dir, self.args.save_total_limit, self._kept | self._in_use())

    def _in_use(self) -> set[Path]:
        """Checkpoints that somebody else is reading."""
        return set()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else it is called again when the folder has its name
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        running = {
            "loss": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "seconds": time.monotonic() - self._started,
        }
        (Path(output_dir) / self._running_loss_file).write_text(json.dumps(running), encoding="utf-8")

    def restore_running_loss(self) -> None:
        """Goes on with the losses since the last one logged, and with all losses for their mean at the end."""
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

    @property
    def _running_loss_file(self) -> str:
        return f"running_loss_{self.args.process_index}.json" if self.args.world_size > 1 else "running_loss.json"


@contextmanager
def _same_card(folder: Path, *, is_ours: bool) -> Iterator[None]:
    """Leaves the card as it is: PEFT writes a form beside each adapter that it saves, or changes what stands there.

    Args:
        folder: Where a model is saved.
        is_ours: Whether this process writes there.
    """
    card = folder / CARD
    before = card.read_bytes() if card.is_file() else None
    chatty = logging.getLogger("huggingface_hub")
    level = chatty.level
    chatty.setLevel(logging.ERROR)  # of a card without metadata
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")
            yield
    finally:
        chatty.setLevel(level)
        if is_ours and before is not None:
            card.write_bytes(before)
        elif is_ours:
            card.unlink(missing_ok=True)


class _RunningLoss(TrainerCallback):
    """Restores the running loss at the one moment that is after the Trainer has reset it and before it adds to it."""

    def __init__(self, trainer: StagedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.restore_running_loss()


def _publish(staged: Path, final: Path) -> None:
    """Gives a finished checkpoint its name; from then on it is there, also after a power failure."""
    write_checksums(staged, but=(TRAINING_ARGS_NAME,))  # nothing reads it, and it is not pushed
    for path in (*staged.rglob("*"), staged):
        force_to_disk(path)
    if final.exists():  # a damaged one, or one of another run in the same folder
        final.rename(staged.parent / "replaced")
    staged.rename(final)
    force_to_disk(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def _publish_files(staged: Path, folder: Path) -> None:
    """Move files into a folder, in an order that never pairs results with another model's weights.

    Old results are deleted first. The config is moved after the weights, and the new results last.
    """
    for path in (*staged.rglob("*"), staged):
        force_to_disk(path)
    late = ("config.json", ADAPTER_CONFIG, *reversed(RUN))
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: late.index(name) if name in late else -1)
    for name in set(RUN) & set(names):
        (folder / name).unlink(missing_ok=True)
    force_to_disk(folder)
    for name in names:
        if (folder / name).is_dir():  # of DeepSpeed
            shutil.rmtree(folder / name)
        (staged / name).replace(folder / name)
    force_to_disk(folder)
