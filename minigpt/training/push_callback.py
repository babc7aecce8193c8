"""Publishing a run while it trains: each checkpoint when it is saved, and the finished run at the end."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy

from minigpt.errors import PushFailed, UsageError
from minigpt.hub.file_names import CARD
from minigpt.hub.publishing.card import model_card
from minigpt.hub.publishing.hub_errors import find_token
from minigpt.hub.publishing.push import Push, push_folder
from minigpt.hub.publishing.push_checkpoints import open_repository, push_checkpoint
from minigpt.hub.publishing.saved_folder import ADAPTER, is_on_this_machine
from minigpt.training.progress import no_progress_bars

if TYPE_CHECKING:
    from minigpt.training.trainer import MiniGPTTrainer

logger = logging.getLogger(__name__)


class PushCallback(TrainerCallback):
    """Publish what a model needs to be used, and its card, at every save.

    While the run trains, whole checkpoints are pushed in the background. Each is one commit that leaves no file of an
    earlier one behind. If one does not arrive, a line says so and the training continues. The token is written into no
    file.

    The arguments are those of `transformers.Trainer`, with their meanings: `hub_strategy` `every_save`, `checkpoint`
    (with the whole last checkpoint in `last-checkpoint`, to resume from), `all_checkpoints` or `end`, `hub_model_id`,
    `hub_private_repo`, `hub_revision`, `hub_always_push`, `hub_token`. Of a model with an adapter, the adapter is
    pushed; its base model has to be on the Hub already.

    Args:
        trainer: The Trainer of the run.
    """

    def __init__(self, trainer: "MiniGPTTrainer") -> None:
        self.trainer = trainer
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._pushing: dict[Future[Push], Path] = {}
        self._waiting: Path | None = None
        self._has_warned = False

    def open_repository(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if there is none, and make sure that the model can be pushed there.

        Raises:
            UsageError: The repository or the token will not do, or there is no tokenizer to push.
            PushFailed: The Hub has refused, or cannot be reached.
        """
        trainer, args = self.trainer, self.trainer.args
        token = find_token(token or args.hub_token)
        if trainer.processing_class is None:
            raise UsageError("a model is pushed with its tokenizer; give it as processing_class.")
        model = trainer.accelerator.unwrap_model(trainer.model)
        if is_peft_model(model):
            check_base_is_published(model.active_peft_config.base_model_name_or_path)
        trainer.hub_model_id = open_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            ADAPTER if is_peft_model(model) else model.config.model_type,
            token=token,
            private=args.hub_private_repo if private is None else private,
            revision=args.hub_revision,
        )
        trainer.push_in_progress = None  # the stock Trainer waits for it

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Push the checkpoint that was just saved."""
        strategy = HubStrategy(args.hub_strategy)
        if not args.push_to_hub or not state.is_world_process_zero or strategy == HubStrategy.END:
            return
        self._warn_of_failures()
        checkpoint = self.trainer.last_checkpoint
        assert checkpoint is not None
        if self._pushing and not args.hub_always_push:
            self._waiting = checkpoint  # pushed at the end, if it is the last one then
            return
        self._push(checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the uploads, and push the last checkpoint if it had to wait."""
        self._wait()
        # Do not wait again for a Hub that has just failed: the client takes minutes to give up.
        if self._waiting is not None and not self._has_warned:
            self._push(self._waiting)
            self._wait()

    def push_run(self, commit_message: str | None, token: str | None, revision: str | None) -> Future[Push]:
        """Push the output folder of a finished run, after the uploads in progress."""
        self._wait()
        args = self.trainer.args
        return self._uploads.submit(
            _push_run,
            args.output_dir,
            self.trainer.hub_model_id,
            revision=revision or args.hub_revision,
            commit_message=commit_message,
            token=token or args.hub_token,
        )

    def write_card(self, chosen: Mapping[str, Any]) -> None:
        """Write the model card into the output folder, with the metadata that was chosen."""
        folder = Path(self.trainer.args.output_dir)
        card = model_card(folder, self.trainer.hub_model_id, chosen=chosen)
        (folder / CARD).write_text(card.content, encoding="utf-8", newline="\n")

    def in_use(self) -> set[Path]:
        """Return the checkpoints that are being uploaded."""
        return set(self._pushing.values())

    def _push(self, checkpoint: Path) -> None:
        trainer, args = self.trainer, self.trainer.args
        self._waiting = None
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        whole = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        by_steps = args.save_strategy != SaveStrategy.EPOCH
        far = f"step {trainer.state.global_step}" if by_steps else f"epoch {int(trainer.state.epoch or 0)}"
        upload = self._uploads.submit(
            push_checkpoint,
            checkpoint,
            trainer.hub_model_id,
            token=args.hub_token,
            revision=args.hub_revision,
            commit_message=f"Training in progress, {far}",
            whole_as=whole.get(HubStrategy(args.hub_strategy)),
        )
        self._pushing[upload] = checkpoint

    def _wait(self) -> None:
        wait(self._pushing)
        self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        """Forget the uploads that are over, and say once that they have begun to fail."""
        for upload in [upload for upload in self._pushing if upload.done()]:
            checkpoint = self._pushing.pop(upload)
            error = upload.exception()
            if error is not None and not self._has_warned:
                logger.warning("%s is not on the Hub, and the training goes on: %s", checkpoint, error)
            self._has_warned = error is not None


def check_base_is_published(base: str | None) -> None:
    """Refuses to publish an adapter for a model that is on this machine alone: nobody else could use it.

    Args:
        base: The model's folder or Hub id.

    Raises:
        UsageError: That.
    """
    if not base or is_on_this_machine(base):
        raise UsageError(
            f"the adapter is for {base or 'a model without a name'}, which is on this machine alone; push that first "
            f"(`minigpt push {base or 'FOLDER'} OWNER/NAME`), then train the adapter on OWNER/NAME."
        )


def _push_run(folder: str, repository: str, **how: Any) -> Push:
    """Pushes a run whose training is over; whatever goes wrong, the error says how to push it yet."""
    remedy = f"run `minigpt push {folder} {repository}`"
    try:
        with no_progress_bars():
            return push_folder(folder, repository, again=remedy, **how)
    except (UsageError, PushFailed) as error:
        if remedy in str(error):
            raise
        raise type(error)(f"{str(error).rstrip('.')}; then {remedy}.") from error
