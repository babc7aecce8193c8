"""A Trainer that puts its run on the Hub: each checkpoint as it is saved, and at the end all that the run has made."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from minigpt.errors import UsageError
from minigpt.hub.file_names import CARD
from minigpt.hub.publishing.card import model_card
from minigpt.hub.publishing.ongoing import open_repository, push_checkpoint
from minigpt.hub.publishing.publish import Push, push_folder
from minigpt.hub.publishing.refusals import PushFailed, find_token
from minigpt.hub.publishing.saved_folder import ADAPTER, is_on_this_machine
from minigpt.training.progress import no_progress_bars
from minigpt.training.staging import StagedTrainer

logger = logging.getLogger(__name__)


class PublishingTrainer(StagedTrainer):
    """A staged Trainer whose `push_to_hub=True` publishes what a model needs to be used, and its card, at every save.

    The repository is made, or refused, before anything is trained. While it trains, whole checkpoints go up in the
    background, each in one commit that leaves no file of an earlier one behind; one that does not arrive is said in a
    line, and the training goes on. The token is written into no file.

    The arguments are those of `transformers.Trainer`, and so are their meanings: `hub_strategy` `every_save`,
    `checkpoint` (with the whole last checkpoint in `last-checkpoint`, to resume from), `all_checkpoints` or `end`,
    `hub_model_id`, `hub_private_repo`, `hub_revision`, `hub_always_push`, `hub_token`. Of a model with an adapter the
    adapter is pushed, for which the model has to be on the Hub already. Any other module is pushed as the stock Trainer
    does it.

    Raises:
        UsageError: The repository or the token will not do, or there is no `processing_class` to push.
        PushFailed: The Hub has refused, or cannot be reached.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._pushing: dict[Future[Push], Path] = {}
        self._waiting: Path | None = None
        self._has_warned = False
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, if there is none, and makes sure that this model can be pushed there."""
        token = find_token(token or self.args.hub_token)
        if not self._is_published_by_us:
            return super().init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return
        if self.processing_class is None:
            raise UsageError("a model is pushed with its tokenizer; give it as processing_class.")
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model):
            check_base_is_published(model.active_peft_config.base_model_name_or_path)
        self.hub_model_id = open_repository(
            self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            ADAPTER if is_peft_model(model) else model.config.model_type,
            token=token,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision,
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves the model and publishes the output folder, checkpoints aside, as `minigpt push` does.

        Args:
            commit_message: What the commit is called.
            blocking: Whether to wait until it is there.
            token: Instead of the arguments' own.
            revision: The branch, instead of the arguments' own.
            private: Whether a new repository is for its owner alone, instead of the arguments' own.
            **kwargs: As for `create_model_card`.

        Returns:
            What was pushed (`Push`), or without `blocking` its future; None in all processes but the first.
        """
        if not self._is_published_by_us:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        self.create_model_card(**kwargs)
        push = self._uploads.submit(
            _push_run,
            self.args.output_dir,
            self.hub_model_id,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
        )
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
        """Writes the run's card into the output folder, with this metadata; a person's own words there stay.

        Args:
            language: As in transformers, and so `license` and `tags`.
            license: Of the weights.
            tags: Beside our own.
            model_name: Without effect: a card is named for its repository.
            finetuned_from: The model on the Hub that this one began as.
            tasks: Without effect: the model's head says what it is for.
            dataset_tags: Ids of datasets on the Hub.
            dataset: Without effect, as `dataset_args`: the run says what it was trained on.
            dataset_args: See `dataset`.
        """
        if not self._is_published_by_us:
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
        folder = Path(self.args.output_dir)
        metadata = {key: value for key, value in chosen.items() if value}
        card = model_card(folder, self.hub_model_id, chosen=metadata)
        (folder / CARD).write_text(card.content, encoding="utf-8", newline="\n")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_published_by_us:
            return super()._push_from_checkpoint(checkpoint_folder)
        strategy = HubStrategy(self.args.hub_strategy)
        if self._staging is not None or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self._warn_of_failures()
        checkpoint = Path(checkpoint_folder)
        if self._pushing and not self.args.hub_always_push:
            self._waiting = checkpoint  # goes up at the end, if it is the last then
            return
        self._waiting = None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        whole = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        by_steps = self.args.save_strategy != SaveStrategy.EPOCH
        far = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        upload = self._uploads.submit(
            push_checkpoint,
            checkpoint,
            self.hub_model_id,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            commit_message=f"Training in progress, {far}",
            whole_as=whole.get(strategy),
        )
        self._pushing[upload] = checkpoint
        self.push_in_progress = PushInProgress(list(self._pushing))

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if not self._pushing:
            return
        self._warn_of_failures()
        # A Hub that has just failed is not waited for once more: the client takes minutes to give a full disk up.
        if self._waiting is not None and not self._has_warned:
            self._push_from_checkpoint(str(self._waiting))
            super()._finish_current_push()
            self._warn_of_failures()

    def _in_use(self) -> set[Path]:
        return set(self._pushing.values())

    def _warn_of_failures(self) -> None:
        """Forgets the uploads that are over, and says it once if they have begun to fail."""
        for upload in [upload for upload in self._pushing if upload.done()]:
            checkpoint = self._pushing.pop(upload)
            error = upload.exception()
            if error is not None and not self._has_warned:
                logger.warning("%s is not on the Hub, and the training goes on: %s", checkpoint, error)
            self._has_warned = error is not None

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        # It writes the arguments into a pickle, and whoever has that file would have the token.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, *args, **kwargs)
        finally:
            self.args.hub_token = token

    @property
    def _is_published_by_us(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        return isinstance(model, PreTrainedModel) or is_peft_model(model)


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
