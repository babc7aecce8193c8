import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    pipeline,
)

from minigpt.errors import UsageError
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.subword import train_bpe
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.batches import IGNORED
from minigpt.training.instruction import InstructionSettings, prepare_instruction

pytestmark = pytest.mark.extra("sft")

LETTERS = "abcdefghijklmnopqrstuvwxyz .:?!\n"
WORDS = ("cat", "dog", "king", "crown")
BLOCK = 48
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q ' + message['content'] + '\n' }}{% else %}"
    "{{ 'A ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six conversations to train on and four to validate: to say what one is asked to say."""
    chance = random.Random(0)
    asked = [(word := chance.choice(WORDS), f"say {word}{'!' * chance.randrange(4)}") for _ in range(40)]
    file = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    rows = ({"messages": [_turn("user", question), _turn("assistant", word)]} for word, question in asked)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def tokenizer() -> MiniGPTTokenizer:
    return MiniGPTTokenizer.from_text(LETTERS)


@pytest.fixture
def model(tokenizer: MiniGPTTokenizer) -> MiniGPTForCausalLM:
    """As `minigpt train` leaves one: it never ends its text."""
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = MiniGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, block_size=BLOCK, **ids)
    model = MiniGPTForCausalLM(config)
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **ids)
    return model


@pytest.fixture
def build(talk: Path, tmp_path: Path) -> Any:
    """`build(model, tokenizer, settings, **arguments)`: a trainer on the conversations."""
    from minigpt.training.instruction_trainer import InstructionArguments, InstructionTrainer

    def build(model: Any, tokenizer: Any, settings: InstructionSettings | None = None, **changes: Any) -> Any:
        few = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "max_steps": 14,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "eval_interval": 3,
            "eval_iters": 2,
            "sample_length": 0,
            "save_strategy": "no",
        }
        torch.manual_seed(42)
        data = prepare_instruction(talk, tokenizer, BLOCK, settings)
        return InstructionTrainer(model, InstructionArguments(**{**few, **changes}), data, processing_class=tokenizer)

    return build


@torch.no_grad()
def loss_by_hand(model: Any, rows: Any, smoothing: float = 0.0) -> float:
    """The mean over the labelled tokens of rows, each scored alone and without padding."""
    losses = []
    for row in rows:
        logits, targets = model(torch.tensor([row["input_ids"]])).logits[0, :-1], torch.tensor(row["labels"][1:])
        losses.append(F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing))
    labels = torch.cat([torch.tensor(row["labels"][1:]) for row in rows])
    return (sum(losses) / (labels != IGNORED).sum()).item()


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**{"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": BLOCK, **changes}))


def test_the_model_gets_the_rows_with_their_labels_and_nothing_else(build, model, tokenizer) -> None:
    trainer = build(model, tokenizer)
    seen = []
    for batch in trainer.get_train_dataloader():
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all()
            assert (labels[length:] == IGNORED).all()
            seen.append((ids[:length].tolist(), labels[:length].tolist()))
    rows = [(row["input_ids"], row["labels"]) for row in trainer.data.train]
    assert sorted(seen) == sorted(rows)
    said = [tokenizer.decode([label for label in labels if label != IGNORED]) for _, labels in rows]
    assert set(said) == {f" {word}<|endoftext|>" for word in WORDS}


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "batch", "accumulated", "answers_only"),
    [("minigpt", 36, 1, True), ("minigpt", 5, 8, True), ("gpt2", 5, 8, False), ("llama", 5, 8, True)],
)
def test_the_loss_is_that_of_the_labelled_tokens_however_they_are_cut_into_batches(
    build, model, tokenizer, kind, batch, accumulated, answers_only, smoothing
) -> None:
    torch.manual_seed(0)
    if kind == "gpt2":
        model = gpt2(vocab_size=len(tokenizer), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    elif kind == "llama":
        small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=BLOCK, **small))
    settings = InstructionSettings(assistant_only_loss=answers_only)
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    trainer = build(model, tokenizer, settings, max_steps=1, logging_steps=1, label_smoothing_factor=smoothing, **sizes)
    expected = loss_by_hand(model.eval(), list(trainer.data.train), smoothing)
    trainer.train()
    assert losses_of(trainer) == pytest.approx([expected], rel=1e-5)


def test_scores_are_exact_and_estimates_means_over_labelled_tokens(build, model, tokenizer) -> None:
    trainer = build(model, tokenizer, per_device_eval_batch_size=3)
    rows = list(trainer.data.validation)
    scored = trainer.score(model)
    assert scored.loss == pytest.approx(loss_by_hand(model.eval(), rows), rel=1e-6)
    answers = [tokenizer.decode([label for label in row["labels"] if label != IGNORED]) for row in rows]
    assert scored.characters == sum(len(answer.removesuffix("<|endoftext|>")) for answer in answers)
    assert scored.targets == scored.characters + len(rows)
    assert trainer.estimate() == pytest.approx(
        {
            "train": loss_by_hand(model, [trainer.data.train[place * 36 // 16] for place in range(16)]),
            "validation": scored.loss,
        }
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(scored.loss)
    assert metrics["eval_bits_per_character"] == pytest.approx(scored.bits_per_character)


class _Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(
    "length", [{"max_steps": 9}, {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2}]
)
def test_a_resumed_run_is_that_of_an_uninterrupted_one_to_the_last_digit(
    build, model, tokenizer, tmp_path, length
) -> None:
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.1
    asked = {
        **length,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 7,
        "keep_best": False,
        "sample_length": 5,
    }
    start = deepcopy(model)
    whole = build(model, tokenizer, **asked)
    whole.train()

    stopped = build(deepcopy(start), tokenizer, **asked, output_dir=str(tmp_path / "stopped"))
    stopped.add_callback(_Stop(7))
    stopped.train()
    resumed = build(deepcopy(start), tokenizer, **asked, output_dir=str(tmp_path / "stopped"))
    resumed.train(resume_from_checkpoint=True)

    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    clocks = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for one, other in zip(whole.state.log_history, resumed.state.log_history, strict=True):
        assert {**one, **dict.fromkeys(clocks)} == {**other, **dict.fromkeys(clocks)}
    assert resumed.tokens_seen() == whole.tokens_seen()
    # TRL's averages are over the steps since the last line of losses: an estimate in between leaves them alone.
    averaged = ["eval_loss" in entry for entry in whole.state.log_history if "entropy" in entry]
    assert averaged == [False, False]  # at step 5, and at the end


@pytest.mark.door(
    "A model after `minigpt finetune --sft`: `pipeline` answers messages and stops", "trl", "transformers"
)
def test_after_the_training_a_model_answers_and_stops_by_itself(build, model, tokenizer, tmp_path, capfd) -> None:
    trainer = build(model, tokenizer, max_steps=150, save_strategy="steps", save_steps=150, eval_interval=75)
    trainer.args.sample_length = 40
    trainer.train()
    printed = capfd.readouterr()
    assert printed.err == ""
    assert [line.split()[0] for line in printed.out.splitlines()] == ["step", "user:"] * 3
    # The best one, and the last; a draft of a card, as TRL makes one, is not there.
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-75", "checkpoint-150"}
    checkpoint = tmp_path / "run" / "checkpoint-150"

    chat = pipeline("text-generation", model=str(checkpoint), device="cpu")
    suppressed = chat.model.generation_config.suppress_tokens
    assert set(suppressed) == {tokenizer.unk_token_id, tokenizer.pad_token_id}
    for word in WORDS:
        question = [_turn("user", f"say {word}!")]
        (result,) = chat(question, do_sample=False)
        assert result["generated_text"] == [*question, _turn("assistant", f" {word}")]


def test_a_sample_is_an_answer_to_a_held_back_prompt_and_draws_nothing_from_the_training(
    build, model, tokenizer
) -> None:
    trainer = build(model, tokenizer)
    held_back = [tokenizer.decode(prompt) for prompt in trainer.data.prompts]
    before = torch.get_rng_state()
    sample = trainer.sample(10)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample.startswith(held_back[0])
    assert trainer.sample(10) == sample
    assert all(prompt in trainer.sample(500) for prompt in held_back)


def test_a_trained_model_can_be_copied_and_the_trainer_goes_on_scoring(build, model, tokenizer) -> None:
    trainer = build(model, tokenizer, max_steps=1)
    trainer.train()
    assert "forward" not in vars(trainer.model)
    scored = trainer.score(trainer.model).loss
    assert trainer.evaluate(trainer.data.validation)["eval_loss"] == pytest.approx(scored, rel=1e-4)


@pytest.mark.parametrize("arguments", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_half_precision_and_checkpointing_of_gradients_change_only_the_last_digits(
    build, model, tokenizer, arguments
) -> None:
    plain = build(deepcopy(model), tokenizer)
    plain.train()
    other = build(model, tokenizer, **arguments)
    other.train()
    closeness = 0.02 if arguments.get("bf16") else 1e-5
    assert losses_of(other) == pytest.approx(losses_of(plain), rel=closeness)


def test_a_stock_model_with_a_tokenizer_and_a_template_of_its_own_learns_to_stop_without_a_padding_token(
    build, talk, tmp_path
) -> None:
    trained = train_bpe([talk.read_text(encoding="utf-8")], 300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.chat_template = MARKED
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    trainer = build(gpt2(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end), tokenizer, max_steps=120)
    assert tokenizer.pad_token is None or tokenizer.pad_token_id == end
    batch = next(iter(trainer.get_train_dataloader()))
    assert ((batch["labels"] == end).sum(dim=1) == 1).all()  # what is padded with, and what is learned
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    chat = pipeline("text-generation", model=str(tmp_path / "tuned"), device="cpu")
    for word in WORDS:
        (result,) = chat([_turn("user", f"say {word}!!")], do_sample=False, max_new_tokens=20)
        assert result["generated_text"][-1] == _turn("assistant", word)


def test_an_adapter_alone_is_trained_and_saved_with_where_its_answers_end(build, model, tokenizer, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=4)
    trainer = build(get_peft_model(model, config), tokenizer)
    trainer.train()
    first, *_, last = losses_of(trainer)
    assert last < first
    trainer.save_model(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "generation_config.json", "chat_template.jinja"} <= names
    assert not any(name.startswith("model") and name.endswith(".safetensors") for name in names)
    settings = json.loads((tmp_path / "adapter" / "generation_config.json").read_text(encoding="utf-8"))
    assert tokenizer.eos_token_id not in settings["suppress_tokens"]
    base = trainer.model.unload().state_dict()
    assert all(torch.equal(base[name], weight) for name, weight in before.items())


def test_an_adapter_on_the_head_is_refused_because_it_would_learn_nothing(build, model, tokenizer) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="the adapter is on the model's output head too"):
        build(adapted, tokenizer)


def test_a_training_that_diverges_is_ended(build, model, tokenizer) -> None:
    with pytest.raises(FloatingPointError, match=r"the training has diverged: .* learning_rate of 1e"):
        build(model, tokenizer, learning_rate=1e30).train()


@pytest.mark.door("What `--sft` saves: `apply_chat_template` of a plain `AutoTokenizer`", "trl", "transformers")
def test_what_is_saved_is_whole_for_the_plain_libraries(build, model, tokenizer, tmp_path) -> None:
    trainer = build(model, tokenizer, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    written = loaded.apply_chat_template([_turn("user", "say cat")], add_generation_prompt=True, tokenize=False)
    assert written == "user: say cat\nassistant:"
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert network.config.use_cache
    assert all(torch.equal(weight, trainer.model.state_dict()[name]) for name, weight in network.state_dict().items())


def test_trl_trains_on_and_scores_only_the_answers_of_weight_1(model, tokenizer, tmp_path) -> None:
    from minigpt.training.instruction_trainer import InstructionArguments, InstructionTrainer

    words = [WORDS[number % 4] for number in range(20)]
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "say owl"},
                {"from": "gpt", "value": "no", "weight": 0},
                {"from": "human", "value": f"say {word}"},
                {"from": "gpt", "value": word, "weight": 1},
            ]
        }
        for word in words
    ]
    (tmp_path / "talk.json").write_text(json.dumps(rows), encoding="utf-8")
    data = prepare_instruction(tmp_path / "talk.json", tokenizer, BLOCK + 40)
    few = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1, "logging_steps": 1, "sample_length": 0}
    arguments = InstructionArguments(**few, per_device_train_batch_size=18, learning_rate=1e-9, save_strategy="no")
    model = MiniGPTForCausalLM(MiniGPTConfig(**model.config.to_diff_dict() | {"block_size": BLOCK + 40}))
    trainer = InstructionTrainer(model, arguments, data, processing_class=tokenizer)

    def by_hand(words: list[str]) -> list[tuple[list[int], list[int]]]:
        """Rows as the template writes them, letter by letter."""
        written = []
        for word in words:
            given = "user: say owl\nassistant: no", f"\nuser: say {word}\nassistant:"
            ids = [tokenizer.stoi[letter] for letter in given[0]] + [tokenizer.eos_token_id]
            ids += [tokenizer.stoi[letter] for letter in given[1]]
            answer = [tokenizer.stoi[letter] for letter in f" {word}"] + [tokenizer.eos_token_id]
            end = [tokenizer.stoi["\n"]]
            written.append((ids + answer + end, [IGNORED] * len(ids) + answer + [IGNORED]))
        return written

    (batch,) = trainer.get_train_dataloader()
    seen = [
        (ids[mask.bool()].tolist(), labels[mask.bool()].tolist())
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    ]
    assert sorted(seen) == sorted(by_hand(words[:18]))
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()

    def loss(words: list[str]) -> float:
        return loss_by_hand(model, [{"input_ids": ids, "labels": labels} for ids, labels in by_hand(words)])

    model.eval()
    before = loss(words[:18]), loss(words[18:])
    estimated = trainer.estimate()
    assert (estimated["train"], estimated["validation"]) == pytest.approx(before, rel=1e-5)
    assert trainer.score(model).loss == pytest.approx(before[1], rel=1e-5)
    trainer.train()
    assert losses_of(trainer) == [pytest.approx(before[0], rel=1e-4)]
