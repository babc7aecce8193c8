"""What a model learns of the task made from the plays: the share of its answers in the asked form, before and after.

    python -m benchmarks.chat [--before runs/chat --after runs/chat-sft] [--folder DIR]

Without models it trains them: preset `chat` on the plays, and that on the task. Every prompt is held out: its phrase
was learned with other names and its name with other phrases, and never the two together.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import set_seed

from benchmarks.side_by_side import markdown_table
from minigpt.hub.loading import open_trained
from minigpt.training.data.chat_template import give_chat_template
from minigpt.training.data.plays_task import Prompt, held_out_prompts
from minigpt.training.instruction import ANSWER_TEMPERATURE

BATCH = 64
ROUNDS = 3
Answer = tuple[str, bool]  # what was said, and whether it ended by itself
KINDS = {
    "speech": "`Speak as HAMLET.` and the like: a speech under that name",
    "name": "`Who answers HAMLET?`: `HORATIO answers HAMLET.`",
    "reply": "after a speech, `Who answers?`: another one's speech",
}


def main(argv: list[str] | None = None) -> None:
    """Trains what is not given, and prints the table."""
    parser = argparse.ArgumentParser(description="What a model learns of the task made from the plays.")
    parser.add_argument("--before", type=Path, help="a model trained on the plays (default: train one)")
    parser.add_argument("--after", type=Path, help="the same, taught to answer (default: teach it)")
    parser.add_argument("--folder", type=Path, help="where models are trained, and stay (default: nowhere)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        with contextlib.redirect_stdout(sys.stderr):
            before = arguments.before or _train(folder / "chat")
            after = arguments.after or _teach(before, folder / "chat-sft")
        print(compare(before, after))


def compare(before: Path, after: Path) -> str:
    """The table of what two models answer to the held-out prompts, and how long their training took."""
    prompts = held_out_prompts()
    plain, taught, warm = ask(before, prompts), ask(after, prompts), ask(after, prompts, temperature=1.0)
    shown = {
        "before": _shares(prompts, plain, Prompt.has_asked_form),
        "before, cut at the first blank line": _shares(prompts, _cut(plain), Prompt.has_asked_form),
        "after": _shares(prompts, taught, Prompt.has_asked_form),
        "after, and true to the plays": _shares(prompts, taught, Prompt.is_true),
        "after, at temperature 1": _shares(prompts, warm, Prompt.has_asked_form),
    }
    rows = []
    for kind, description in {**KINDS, "": "all"}.items():
        chosen = [at for at, prompt in enumerate(prompts) if kind in ("", prompt.kind)]
        means = (mean(shares[at] for at in chosen) for shares in shown.values())
        rows.append([description, str(len(chosen)), *(f"{share:.1%}" for share in means)])
    reports = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (before, after)]
    first, second = (report["training"]["seconds"] for report in reports)
    machine = reports[1]["hardware"]["name"]
    return (
        markdown_table(["asked", "prompts", *shown], rows)
        + f"\n\nShares of answers in the asked form; each prompt is answered {ROUNDS} times, where nothing else is "
        f"said at temperature {ANSWER_TEMPERATURE}, the tuned model's own. On {machine}, training on the plays took "
        f"{first:.0f} s, and on the task {second:.0f} s."
    )


def ask(folder: Path, prompts: Sequence[Prompt], temperature: float = ANSWER_TEMPERATURE) -> list[list[Answer]]:
    """Has a model answer each prompt `ROUNDS` times; gives the answers to each."""
    model, tokenizer = open_trained(folder)
    give_chat_template(tokenizer)
    rounds = []
    for seed in range(ROUNDS):
        set_seed(seed)
        rounds.append(answers(model, tokenizer, prompts, temperature))
    return [list(answered) for answered in zip(*rounds, strict=True)]


def _shares(prompts: Sequence[Prompt], said: Sequence[Sequence[Answer]], is_right: Callable[..., bool]) -> list[float]:
    return [
        mean(is_right(prompt, text, has_ended=has_ended) for text, has_ended in answered)
        for prompt, answered in zip(prompts, said, strict=True)
    ]


def _cut(said: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """Answers up to their first blank line, where a speech of the plays ends, as if they had ended there."""
    return [[(text.lstrip("\n").partition("\n\n")[0], True) for text, _ in answered] for answered in said]


def answers(model: Any, tokenizer: Any, prompts: Sequence[Prompt], temperature: float) -> list[Answer]:
    """What a model answers to each prompt, within its block."""
    encoded = [
        tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    found: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(encoded[at]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        inputs = tokenizer.pad(
            {"input_ids": [encoded[at] for at in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)  # (batch, seq)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = model.generate(
                **inputs, temperature=temperature, max_new_tokens=model.config.max_position_embeddings - length
            )
        for at, row in zip(batch, output[:, length:].tolist(), strict=True):
            has_ended = tokenizer.eos_token_id in row
            said = row[: row.index(tokenizer.eos_token_id)] if has_ended else row
            found[at] = (tokenizer.decode(said, skip_special_tokens=True), has_ended)
    return [found[at] for at in range(len(prompts))]


def _train(folder: Path) -> Path:
    from minigpt.training.train import train

    return train("chat", "plays", overwrite=True, training={"output_dir": str(folder)}).folder


def _teach(model: Path, folder: Path) -> Path:
    from minigpt.training.finetune import finetune
    from minigpt.training.instruction import InstructionSettings

    return finetune(
        str(model), "plays", overwrite=True, instruction=InstructionSettings(), training={"output_dir": str(folder)}
    ).folder


if __name__ == "__main__":
    main()
