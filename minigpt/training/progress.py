"""What a person sees while a model trains: a bar with the time left on a terminal, and a line at each estimate."""

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from minigpt.hub.loading_bars import no_progress_bars as no_progress_bars


class ProgressLines(TrainerCallback):
    """Prints a line at each estimate of the loss, with its sample; on a terminal, under a bar with the time left.

    Only the main process prints. `disable_tqdm` takes the bar away.
    """

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.start_time = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Starts the clock, and the bar if somebody is watching."""
        self.start_time = time.monotonic()
        if state.is_world_process_zero and not args.disable_tqdm and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Moves the bar on."""
        if self.bar is not None:
            self.bar.update()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Prints the estimate."""
        if not state.is_world_process_zero or "eval_train_loss" not in metrics:
            return
        width = len(str(state.max_steps))
        self._print(
            f"step {state.global_step:{width}}/{state.max_steps}  train {metrics['eval_train_loss']:.4f}"
            f"  val {metrics['eval_loss']:.4f}  ({time.monotonic() - self.start_time:.0f} s)"
        )
        sample = state.log_history[-1].get("eval_sample")
        if sample:
            # Verse is quoted with strokes between its lines: a sample stays one line.
            self._print(f"    {' / '.join(line for line in str(sample).splitlines() if line)}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Takes the bar away."""
        self.close()

    def close(self) -> None:
        """Takes the bar away, also where an error has ended the training."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _print(self, line: str) -> None:
        # A console that cannot show a character gets a stand-in for it, not an error in the middle of a run.
        encoding = sys.stdout.encoding or "utf-8"
        tqdm.write(line.encode(encoding, "replace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()
