"""What a model card says, section by section: all of it read from the folder, and nothing said that is not known."""

import json
from pathlib import Path
from typing import Any

from minigpt.hub.publishing.markdown import block, code, plain, table
from minigpt.hub.publishing.saved_folder import SavedFolder

# Of a config, what says nothing about the model.
_NAMES = {
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
    "unweighted_rmsnorm": "RMSNorm without weights",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "gelu": "GELU",
    "gelu_new": "GELU by tanh",
    "swiglu": "SwiGLU",
}
_NOT_SHOWN = {"architectures", "auto_map", "model_type", "transformers_version"}
_PACKAGE = "minigpt-hf"


def card_text(saved: SavedFolder, name: str, source: str) -> str:
    """The card below its metadata, in Markdown.

    Args:
        saved: What is known of the model.
        name: What the model is called.
        source: What `from_pretrained` is to be given: the repository's id.

    Raises:
        KeyError: The run lacks one of the things that every run has.
        TypeError: One of them is of another kind.
    """
    sections = [f"# {plain(name)}", _summary(saved), "## How to use it", *_usage(saved, source)]
    if saved.run is not None:
        sections += ["## Results", *_results(saved.run, saved)]
    if saved.sample and saved.sample.strip():
        sections += ["## What it writes", *_sample(saved.sample, saved)]
    if saved.run is not None or saved.known_text:
        sections += ["## What it was trained on", *_data(saved)]
    sections += [
        "## How it was trained",
        *(_training(saved) if saved.run is not None else _unrecorded(saved)),
        _config(saved),
    ]
    sections += ["## Limits", _list(_limits(saved))]
    if saved.is_ours:
        sections += ["## Credit", _credit(saved)]
    return "\n\n".join(sections) + "\n"


def split_definition(saved: SavedFolder) -> str:
    """Which part of the text a run's results are from."""
    assert saved.run is not None
    counts = saved.run["data"]["split_rows" if saved.is_instructed else "split_tokens"]
    train, held_back = (counts[split] for split in ("train", "validation"))
    if saved.is_instructed:
        return f"the last {held_back:,} of {train + held_back:,} conversations, a tenth of them"
    data = saved.run["data"]
    split = data.get("split", {})
    end = int((1 - split.get("validation_fraction", 0.1)) * data["characters"])
    if (rule := _document_rule(saved)) is not None:
        number = data["split_documents"]
        total = number["train"] + number["validation"]
        where = f"{number['validation']:,} of its {total:,} documents ({rule}),"
        where += (
            f" shuffled with seed {split['split_seed']}"
            if data["is_shuffled"]
            else " which come from files of their own"
        )
    elif split.get("split_by") == "line":
        where = f"its lines shuffled with seed {split['split_seed']}"
    elif data.get("train_characters", end) != end:
        where = "which come from files of their own"
    else:
        fraction = split.get("validation_fraction", 0.1)
        where = "the text's last tenth" if fraction == 0.1 else f"the text's last {fraction:.3g}"
    return f"the last {held_back:,} of {train + held_back:,} {saved.unit}, {where}"


def _document_rule(saved: SavedFolder) -> str | None:
    """Return what the documents of the text are, None if it has none."""
    data = saved.run["data"] if saved.run is not None else {}
    rule = (data.get("reading") or {}).get("documents")
    return "parts between separators" if rule == "separator" else rule


def _summary(saved: SavedFolder) -> str:
    what = _model(saved) if saved.adapter is None else _adapter(saved)
    task = "" if saved.task in (None, "text-generation") else f" Its head is for {saved.task.replace('-', ' ')}."
    if saved.run is None:
        return what + task
    text = plain(saved.known_text.title) if saved.known_text else code(saved.run["data"]["name"])
    if "preset" in saved.run:
        return f"{what}{task} Trained on {text} with `minigpt train`, from the preset {code(saved.run['preset'])}."
    how = "Taught to answer by the conversations of" if saved.is_instructed else "Fine-tuned on"
    began = "" if saved.adapter is not None else f", beginning with {_base(saved)}"
    if ((saved.run or {}).get("adapter") or {}).get("merged"):
        began += ", by a LoRA adapter that has been merged into its weights"
    return f"{what}{task} {how} {text} with `minigpt finetune`{began}."


def _model(saved: SavedFolder) -> str:
    recorded = saved.run["model"]["parameters"] if saved.run is not None else saved.parameters
    if saved.adapter is not None:  # the run counts both together; without one, those of the base are not known
        described = (saved.run or {}).get("adapter")
        recorded = recorded - described["trainable"] if described else None
    size = f" with {recorded:,} parameters" if recorded is not None else ""
    by_character = saved.vocabulary is not None and saved.vocabulary.characters is not None
    kind = "character-level " if by_character and saved.is_ours else ""
    if saved.model_type == "minigpt":
        return f"A {kind}GPT{size}: {_shape(saved)}."
    if saved.model_type == "minigpt_bigram":
        return f"A {kind}bigram{size}: one table of which token follows which, the baseline that a GPT must beat."
    return f"A model of the type {code(saved.model_type)}{size}."


def _adapter(saved: SavedFolder) -> str:
    assert saved.adapter is not None
    kind, rank = str(saved.adapter.get("peft_type", "")), saved.adapter.get("r")
    called = {"LORA": "A LoRA adapter"}.get(kind, f"An adapter of the kind {code(kind)}")
    of_rank = f" of rank {rank}" if kind == "LORA" and rank else ""
    described = (saved.run or {}).get("adapter") or {}
    share = f", {described['share']:.1%} of all" if "share" in described else ""
    size = f" with {saved.parameters:,} parameters{share}," if saved.parameters else ""
    model = _model(saved)
    return f"{called}{of_rank}{size} for {_base(saved)}, {model[0].lower()}{model[1:]}"


def _base(saved: SavedFolder) -> str:
    base = saved.base
    if base is None:
        return "a model that is not recorded here"
    if saved.base_on_the_hub is None:
        return code(Path(base.name).name)  # where on somebody's machine it lies is nobody's business
    return f"[{base.name}](https://huggingface.co/{base.name})"


def _shape(saved: SavedFolder) -> str:
    config = saved.config
    parts = [
        f"{_counted(config['num_hidden_layers'], 'block')} of {_counted(config['num_attention_heads'], 'head')}",
        f"{config['hidden_size']} wide",
        f"a context of {config['max_position_embeddings']:,} {saved.unit}",
        f"{config['position_embedding_type']} positions",
        _NAMES.get(config["norm_type"], config["norm_type"]),
        _NAMES.get(config["hidden_act"], config["hidden_act"]),
    ]
    return ", ".join(parts)


def _usage(saved: SavedFolder, source: str) -> list[str]:
    if saved.adapter is not None:
        return _usage_of_adapter(saved, source)
    where = json.dumps(source, ensure_ascii=False)
    remote = ", trust_remote_code=True" if saved.carries_code else ""
    paragraphs = []
    if saved.task == "text-generation" and saved.vocabulary:
        length = f"max_new_tokens={_new_tokens(saved)}"
        asking = f'writer({_prompt(saved)}, {length})[0]["generated_text"]'
        if saved.is_instructed:
            asking = f'writer({_message(saved)}, {length})[0]["generated_text"][-1]["content"]'
        paragraphs += [
            block(
                "from transformers import pipeline\n\n"
                f'writer = pipeline("text-generation", model={where}{remote})\n'
                f"print({asking})",
                "python",
            )
        ]
    if saved.carries_code:
        also = " The tokenizer needs no code, and `trust_remote_code=False` says so:" if saved.vocabulary else ""
        paragraphs += [f"`trust_remote_code=True` runs the model's own code, the `.py` files beside this card.{also}"]
    paragraphs += [block(_loading(saved, where, remote), "python")]
    if saved.is_ours:
        paragraphs += [
            f"With the package `{_PACKAGE}` installed no remote code is run:",
            block(f"import minigpt\n{_loading(saved, where, '')}", "python"),
        ]
    return paragraphs


def _usage_of_adapter(saved: SavedFolder, source: str) -> list[str]:
    where = json.dumps(source, ensure_ascii=False)
    remote = ", trust_remote_code=True" if saved.carries_code else ""
    has_settings = (saved.path / "generation_config.json").is_file()
    names = ["AutoTokenizer", *(["GenerationConfig"] if has_settings else [])]
    settings = f", generation_config=GenerationConfig.from_pretrained({where})" if has_settings else ""
    opening = [
        "from peft import AutoPeftModelForCausalLM",
        f"from transformers import {', '.join(names)}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
    ]
    prompt = f'tokenizer({_prompt(saved)}, return_tensors="pt")'
    if saved.is_instructed:
        prompt = (
            f"tokenizer.apply_chat_template(\n    {_message(saved)},\n    add_generation_prompt=True,\n"
            '    return_dict=True,\n    return_tensors="pt",\n)'
        )
    writing = (
        f"prompt = {prompt}\n"
        f"written = model.generate(**prompt, max_new_tokens={_new_tokens(saved)}{settings})\n"
        "print(tokenizer.decode(written[0], skip_special_tokens=True))"
    )
    model = f"model = AutoPeftModelForCausalLM.from_pretrained({where}{{}})"
    paragraphs = [
        "With `pip install peft`, which fetches the model that it is for too:",
        block("\n".join([*opening, model.format(remote), "", writing]), "python"),
    ]
    if saved.carries_code:
        paragraphs += [f"`trust_remote_code=True` runs the code of {_base(saved)}."]
    if saved.is_ours:
        paragraphs += [
            f"With the package `{_PACKAGE}[lora]` installed no remote code is run:",
            block("\n".join(["import minigpt", *opening, model.format("")]), "python"),
        ]
    return [
        *paragraphs,
        "`model.merge_and_unload()` makes one plain model of the two, with the same logits.",
    ]


def _loading(saved: SavedFolder, where: str, remote: str) -> str:
    names, lines = [saved.auto_class], [f"model = {saved.auto_class}.from_pretrained({where}{remote})"]
    if saved.vocabulary:
        no_code = ", trust_remote_code=False" if remote else ""
        names.append("AutoTokenizer")
        lines.insert(0, f"tokenizer = AutoTokenizer.from_pretrained({where}{no_code})")
    return "\n".join([f"from transformers import {', '.join(names)}", "", *lines])


def _new_tokens(saved: SavedFolder) -> int:
    """Return how many tokens an example writes: half the context of a stock model, which may fail past it."""
    context = saved.config.get("max_position_embeddings") or saved.config.get("n_positions")
    return 200 if saved.is_ours or not isinstance(context, int) else max(1, min(200, context // 2))


def _prompt(saved: SavedFolder) -> str:
    """A first character that the model knows, as Python spells it."""
    characters = saved.vocabulary.characters if saved.vocabulary else None
    if characters is None:
        return '"The"'
    return json.dumps("\n" if "\n" in characters else characters[0], ensure_ascii=False)


def _message(saved: SavedFolder) -> str:
    """A conversation's beginning, of characters that the model knows, as Python spells it."""
    characters = saved.vocabulary.characters if saved.vocabulary else None
    said = "Hello" if characters is None or set("Hello") <= set(characters) else characters[-1]
    return f'[{{"role": "user", "content": {json.dumps(said, ensure_ascii=False)}}}]'


def _data(saved: SavedFolder) -> list[str]:
    known, dataset = saved.known_text, saved.hub_dataset
    name = code(saved.run["data"]["name"]) if saved.run is not None else ""
    if known:
        what = f"{known.title[0].upper()}{known.title[1:]}{f' ({name})' if name else ''}: {known.description}."
    elif dataset:
        order = "" if _document_rule(saved) else " in order"
        what = f"The dataset [{dataset}](https://huggingface.co/datasets/{dataset}) of the Hub, all its rows{order}."
    else:
        what = f"{name}, of which no more is known here than this:"
    rows = [("SHA-256", code(saved.text_sha256 or "unknown"))]
    if saved.run is not None:
        data = saved.run["data"]
        rows = [
            ("size", f"{data['characters']:,} characters, {data['bytes']:,} bytes in UTF-8"),
            *rows,
            *([("documents", f"its {rule}, each ended by the EOS token")] if (rule := _document_rule(saved)) else []),
            ("trained on", f"the first {_trained_on(saved)}"),
            ("held back", split_definition(saved)),
        ]
    if saved.vocabulary:
        rows.append(("vocabulary", _vocabulary(saved)))
    return [what, table(("", ""), rows)]


def _trained_on(saved: SavedFolder) -> str:
    assert saved.run is not None
    data = saved.run["data"]
    tokens = f"{data['split_tokens']['train']:,} {saved.unit}"
    return f"{data['split_rows']['train']:,} conversations, {tokens}" if saved.is_instructed else tokens


def _vocabulary(saved: SavedFolder) -> str:
    assert saved.vocabulary is not None
    special = _counted(saved.vocabulary.special, "special token")
    if saved.vocabulary.characters is None:
        kind = f" ({saved.vocabulary.kind})" if saved.vocabulary.kind else ""
        return f"{saved.vocabulary.subwords:,} subword tokens{kind} and {special}"
    return f"{_counted(len(saved.vocabulary.characters), 'character')}, one token each, and {special}"


def _training(saved: SavedFolder) -> list[str]:
    run = saved.run
    assert run is not None
    training, hardware = run["training"], run["hardware"]
    shown = "of conversations" if saved.is_instructed else "in random crops"
    settings = list(training.items())
    if described := run.get("adapter"):
        settings += [(f"lora_{name}", described[name]) for name in ("r", "alpha", "dropout", "targets")]
    bits = (run.get("base") or {}).get("load_in_bits")
    quantized = f" The base's weights were quantized to {bits} bits the while (QLoRA)." if bits else ""
    speed = training["tokens_per_second"]
    steps = (
        f"{_counted(training['steps'], 'step')}, {training['tokens']:,} tokens {shown}, in "
        f"{_duration(training['seconds'])}" + (f" ({speed:,.0f} tokens a second)" if speed else "")
    )
    where = f"on {plain(hardware['name'])} ({plain(hardware['device'])}; {plain(hardware['platform'])})"
    versions = ", ".join(f"{plain(library)} {plain(version)}" for library, version in run["versions"].items())
    return [
        f"{steps}, {where}. Estimates, samples and checkpoints on the way are in the time.{quantized}",
        table(("setting", "value"), ((code(name), _value(value)) for name, value in settings)),
        *_changes(run),
        f"Versions: {versions}.",
    ]


def _changes(run: dict[str, Any]) -> list[str]:
    """List the settings that a run used before it was resumed with those in the table."""
    return [
        f"Until step {change['after_step']:,}, before it was resumed with these settings: "
        + ", ".join(f"{code(name)} {_value(value)}" for name, value in change["before"].items())
        + "."
        for change in run.get("changes", [])
    ]


def _results(run: dict[str, Any], saved: SavedFolder) -> list[str]:
    validation, model, best = run["losses"]["validation"], run["model"], run["losses"]["best"]
    rows = [
        ("validation loss, nats a token", _number(validation["loss"], 4)),
        ("bits a character", _number(validation["bits_per_character"], 4)),
        ("perplexity", _number(validation["perplexity"], 3)),
    ]
    what = (
        f"every token of the answers in the validation split, {validation['targets']:,} of them, each predicted once "
        "from what stands before it"
        if saved.is_instructed
        else f"every next token of the validation split, {validation['targets']:,} of them, each predicted once from "
        "what stands before it in its window"
    )
    how = f"Measured over {what}. The split is {split_definition(saved)}; none of it was trained on."
    if model["chosen_on_validation"]:
        how += (
            f" The model is the one after step {model['step']:,}, chosen for the lowest estimate on this same split: "
            "the numbers are a little too good."
        )
    else:
        how += f" The model is the one after the last step, {model['step']:,}, whatever its estimates on the way."
    if bits := (run.get("base") or {}).get("load_in_bits"):
        how += f" The loss was measured above weights in {bits} bits; above the whole ones it differs a little."
    paragraphs = [table(("", ""), rows, numbers=True), how]
    if best:
        paragraphs.append(
            f"The checkpoint after step {best['step']:,} had the lowest estimate on the way, and a validation loss of "
            f"{_number(best['validation']['loss'], 4)}; it is not the model of this card."
        )
    if saved.has_picture:
        paragraphs.append("![Loss on the training and the validation split over the steps](loss.png)")
    return paragraphs


def _unrecorded(saved: SavedFolder) -> list[str]:
    """What there is to say without a run's own record: the little that a Trainer's state knows."""
    state = saved.state
    if not state or "global_step" not in state:
        return ["How this model was trained, and on what, is not recorded beside it."]
    step, last = state["global_step"], state.get("max_steps")
    of = f" of {last:,}" if last and last >= step else ""
    text = "" if saved.known_text else " What it was trained on is not recorded beside it."
    paragraphs = [f"This is the model after step {step:,}{of} of a training.{text}"]
    scores = [entry for entry in state.get("log_history", ()) if "eval_loss" in entry]
    if scores:
        score = scores[-1]
        names = [name for name in score if name.startswith("eval_") and isinstance(score[name], int | float)]
        told = [name for name in names if not name.endswith(("_runtime", "_per_second"))]
        paragraphs += [
            f"The last evaluation, after step {score['step']:,}, as the Trainer logged it:",
            table(("", ""), ((code(name), _number(score[name], 4)) for name in told), numbers=True),
        ]
    return paragraphs


def _config(saved: SavedFolder) -> str:
    fields = {name: value for name, value in saved.config.items() if name not in _NOT_SHOWN}
    rows = ((code(name), _value(value)) for name, value in fields.items())
    return f"<details>\n<summary>The whole config</summary>\n\n{table(('field', 'value'), rows)}\n\n</details>"


def _sample(sample: str, saved: SavedFolder) -> list[str]:
    seed = f" with the seed {saved.run['training']['seed']}" if saved.run is not None else ""
    if saved.is_instructed:
        return [f"Answers to prompts that were held back, unedited, drawn{seed} (`sample.txt`):", block(sample, "text")]
    start = "the EOS token on, each document on a new line" if _document_rule(saved) else "a new line on"
    how = f"Unedited, from {start}, drawn from all that the model thinks likely{seed} (`sample.txt`):"
    return [how, block(sample, "text")]


def _limits(saved: SavedFolder) -> list[str]:
    config, vocabulary = saved.config, saved.vocabulary
    limits = []
    if saved.model_type == "minigpt_bigram":
        limits.append("It looks one token back and no further: nothing longer than a pair of tokens can be learned.")
    elif block_size := config.get("max_position_embeddings") or config.get("n_positions"):  # GPT-2's word
        limits.append(f"It sees at most {block_size:,} {saved.unit} at a time. {_past_the_block(saved)}".rstrip())
    if vocabulary and vocabulary.characters is not None:
        limits.append(
            f"It knows {_counted(len(vocabulary.characters), 'character')} and no other: any other becomes the unknown "
            "token, of which it has learned nothing."
        )
    if saved.run is not None and saved.base is not None:
        learned = "It answers as those conversations do and knows" if saved.is_instructed else "It knows"
        limits.append(
            f"Beyond what {_base(saved)} has read, it has read the one text above. {learned} no facts, and whatever is "
            "wrong or hurtful in the text can come back."
        )
    elif saved.run is not None or saved.known_text:
        limits.append(
            "All it has read is the one text above. It imitates that text's look: it knows no facts, follows no "
            "instructions, and whatever is wrong or hurtful in the text can come back."
        )
    if saved.run is not None:
        if saved.run["model"]["chosen_on_validation"]:
            limits.append("Its checkpoint was chosen on the split that it is judged by.")
        part = "documents of this one" if _document_rule(saved) else "this one's end"
        limits.append(f"It was measured on no other text than {part}.")
    else:
        limits.append("How good it is was not measured over a whole text: measure it before relying on it.")
    return limits


def _past_the_block(saved: SavedFolder) -> str:
    if saved.model_type != "minigpt" or saved.task != "text-generation":
        return ""
    kinds = set(saved.config.get("layer_types") or ())
    if saved.config.get("position_embedding_type") == "rope" and kinds == {"sliding_attention"}:
        return "Longer texts are written with a window that rolls along."
    return "Of a longer text it is shown the end: what stands further back is cropped, as in the lecture."


def _credit(saved: SavedFolder) -> str:
    has_code = saved.carries_code and saved.adapter is None
    licence = " The code beside this card is under the MIT licence." if has_code else ""
    return (
        "Learned from Andrej Karpathy's lecture "
        "[Let's build GPT: from scratch, in code, spelled out](https://www.youtube.com/watch?v=kCc8FmEb1nY) and from "
        f"[nanoGPT](https://github.com/karpathy/nanoGPT). Made with MiniGPT (`{_PACKAGE}`).{licence}"
    )


def _value(value: Any) -> str:
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace("null", "none"))


def _number(value: float | None, digits: int) -> str:
    return "not a finite number" if value is None else f"{value:,.{digits}f}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _list(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
