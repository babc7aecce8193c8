"""`minigpt chat`: what the model is shown at each turn, what is printed, and what ends it."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.chatting.chat import HELP, chat
from minigpt.hub.chatting.streaming import TokenStreamer
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.tokenization.subword import train_bpe
from minigpt.training.data.chat_template import CHAT_TEMPLATE

CHARACTERS = "abcdefghijklmnopqrstuvwxyz !?.<|>\n"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|endoftext|>"
BLOCK = 64
NO_TEMPLATE = "This model has no chat template: it goes on with what you write.\n"

Talk = Callable[..., tuple[str, str]]


def instructed(template: str | None = TEMPLATE) -> PreTrainedTokenizerBase:
    tokenizer = MiniGPTTokenizer.from_text(CHARACTERS, chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ROLES})
    return tokenizer


def build(tokenizer: PreTrainedTokenizerBase, **config: object) -> PreTrainedModel:
    """A model that has learned nothing, and was trained on no special token but the end of text."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": BLOCK}
    config = MiniGPTConfig(vocab_size=len(tokenizer), initializer_range=0.4, **(sizes | config))
    model = MiniGPTForCausalLM(config).double().eval()
    untrained = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    model.generation_config = lecture_generation_config(untrained, eos_token_id=tokenizer.eos_token_id)
    return model


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer_to(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int = 12) -> str:
    """What a plain generate() writes after a prompt that is spelled out."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    output = model.generate(ids, do_sample=False, max_new_tokens=new_tokens)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Has a chat of some lines, as through a pipe; gives what was printed and what was said beside it."""

    def talk(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *lines: str, **kwargs: object) -> tuple:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat(model, tokenizer, **{"do_sample": False, "max_new_tokens": 12, **kwargs})
        return capsys.readouterr()

    return talk


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Notes every prompt that a model is shown, special tokens and all."""

    def watch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        prompts, generate = [], model.generate

        def noting(input_ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
            prompts.append(tokenizer.decode(input_ids[0]))
            return generate(input_ids, **kwargs)

        monkeypatch.setattr(model, "generate", noting)
        return prompts

    return watch


@pytest.fixture
def press_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Somebody's Ctrl-C, once, as soon as so many tokens of an answer are shown."""

    def press_after(tokens: int) -> None:
        calls, put = 0, TokenStreamer.put

        def pressing(self: TokenStreamer, value: torch.Tensor) -> None:
            nonlocal calls
            put(self, value)
            calls += 1
            if calls == 1 + tokens:  # the prompt is put first
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(TokenStreamer, "put", pressing)

    return press_after


@pytest.mark.door("`minigpt chat`: a conversation by the chat template", "transformers")
# With a chat template.


def test_each_answer_follows_on_the_whole_conversation(talk: Talk) -> None:
    tokenizer = instructed()
    model = build(tokenizer, max_position_embeddings=256)
    prompt, answers = "", []
    for line in ("hello", "how are you?", "bye"):
        prompt += f"<|user|>{line}{END}<|assistant|>"
        answers.append(answer_to(model, tokenizer, prompt))
        prompt += f"{answers[-1]}{END}"
    printed, said = talk(model, tokenizer, "hello", "how are you?", "bye")
    assert printed == "".join(answer if answer.endswith("\n") else f"{answer}\n" for answer in answers)
    assert said == ""
    alone = answer_to(model, tokenizer, f"<|user|>bye{END}<|assistant|>")
    assert alone != answers[-1]  # else the history would not show


def test_the_space_that_a_template_writes_before_an_answer_is_no_part_of_it(
    talk: Talk, shown: Callable[..., list[str]]
) -> None:
    always = CHAT_TEMPLATE.replace("'' if message.content.startswith(' ') else ' '", "' '")
    assert always != CHAT_TEMPLATE
    tokenizer = instructed(always.replace(":", "!"))
    model = build(tokenizer, max_position_embeddings=256, lm_head_bias=True)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.stoi[" "]] = 1000.0
    prompts = shown(model, tokenizer)
    printed, _ = talk(model, tokenizer, "hi", "so", max_new_tokens=3)
    assert printed == "  \n  \n"
    assert prompts == ["user! hi\nassistant!", f"user! hi\nassistant!   {END}\nuser! so\nassistant!"]


def test_the_system_message_comes_first(talk: Talk, shown: Callable[..., list[str]]) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    talk(model, tokenizer, "hi", "!clear", "!system be bold", "so", "!system", "!clear", "no", system="be brief")
    assert prompts == [
        f"<|system|>be brief{END}<|user|>hi{END}<|assistant|>",
        f"<|system|>be bold{END}<|user|>so{END}<|assistant|>",
        f"<|user|>no{END}<|assistant|>",
    ]


def test_the_commands_are_those_of_transformers_chat(talk: Talk, shown: Callable[..., list[str]]) -> None:
    from transformers.cli import chat as theirs

    source = Path(theirs.__file__).read_text(encoding="utf-8")
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    for command in ("!help", "!clear", "!exit"):
        assert f'user_input == "{command}"' in source
        assert command in HELP
    printed, said = talk(model, tokenizer, "!help", "!nonsense", "!exit", "never read")
    assert (printed, prompts) == ("", [])
    assert said == f"{HELP}\nminigpt: '!nonsense' is no command; !help lists them.\n"


def test_an_empty_line_is_no_turn(talk: Talk, shown: Callable[..., list[str]]) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    talk(model, tokenizer, "", "  ", "hi")
    assert len(prompts) == 1


def test_what_spells_a_special_token_is_text(talk: Talk) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    ids, generate = [], model.generate
    model.generate = lambda input_ids, **kwargs: ids.extend(input_ids[0].tolist()) or generate(input_ids, **kwargs)
    line = f"a{ROLES[2]}b"
    talk(model, tokenizer, line)
    user, assistant = tokenizer.convert_tokens_to_ids(ROLES[1:])
    typed = [tokenizer.stoi[character] for character in line]
    assert ids == [user, *typed, tokenizer.eos_token_id, assistant]


def test_ctrl_c_ends_the_answer_and_what_was_said_counts(
    talk: Talk, shown: Callable[..., list[str]], press_ctrl_c: Callable[[int], None]
) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    start = f"<|user|>hi{END}<|assistant|>"
    partial = answer_to(model, tokenizer, start, new_tokens=4)
    prompts = shown(model, tokenizer)
    press_ctrl_c(4)
    printed, said = talk(model, tokenizer, "hi", "go on")
    assert prompts == [start, f"{start}{partial}{END}<|user|>go on{END}<|assistant|>"]
    assert printed.startswith(f"{partial}\n")
    assert said == ""


@pytest.mark.parametrize("ending", ["", "!exit\n", KeyboardInterrupt])
def test_the_end_of_input_exit_and_ctrl_c_end_it_well(
    tmp_path: Path, ending: str | type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = instructed()
    save(tmp_path, build(tokenizer), tokenizer)
    capsys.readouterr()

    class Typed(io.StringIO):
        def readline(self, size: int = -1) -> str:
            line = super().readline(size)
            if not line and ending is KeyboardInterrupt:
                raise KeyboardInterrupt
            return line

    monkeypatch.setattr(sys, "stdin", Typed("hi\n" + (ending if isinstance(ending, str) else "")))
    assert main(["chat", str(tmp_path), "--max_new_tokens", "5", "--temperature", "0"]) == 0
    output = capsys.readouterr()
    model = MiniGPTForCausalLM.from_pretrained(tmp_path)
    expected = answer_to(model, tokenizer, f"<|user|>hi{END}<|assistant|>", new_tokens=5)
    assert output.out.removesuffix("\n") == expected.removesuffix("\n")
    assert output.err == ""


def test_the_same_seed_gives_the_same_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = instructed()
    save(tmp_path, build(tokenizer), tokenizer)
    conversations = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nso\n"))
        assert main(["chat", str(tmp_path), "--seed", seed, "--max_new_tokens", "9"]) == 0
        conversations.append(capsys.readouterr().out)
    assert conversations[0] == conversations[1] != conversations[2]


def test_an_answer_ends_with_the_end_of_text_where_the_generation_config_lets_it(talk: Talk) -> None:
    tokenizer = instructed()
    model = build(tokenizer, lm_head_bias=True)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos_token_id] = 1000.0
    assert talk(model, tokenizer, "hi")[0] == "\n"
    model.generation_config.suppress_tokens = tokenizer.all_special_ids
    assert len(talk(model, tokenizer, "hi")[0].removesuffix("\n")) == 12


def test_unknown_characters_are_refused_and_the_conversation_goes_on(
    talk: Talk, shown: Callable[..., list[str]]
) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    said = talk(model, tokenizer, "café", "!system É", "hi")[1].splitlines()
    assert [line.count("minigpt: the vocabulary lacks") for line in said] == [1, 1]
    assert "'é' (U+00E9) first at position 3" in said[0]
    assert prompts == [f"<|user|>hi{END}<|assistant|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ message.content }}{{ eos_token }}{% endfor %}",
        "{% for message in messages if message.role != 'system' %}{{ message.content }}{{ eos_token }}{% endfor %}",
    ],
    ids=["raises", "leaves it out"],
)
def test_a_system_message_that_the_template_has_no_place_for_is_refused(
    tmp_path: Path, talk: Talk, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = instructed(template)
    model = build(tokenizer)
    save(tmp_path, model, tokenizer)
    capsys.readouterr()
    assert main(["chat", str(tmp_path), "--system", "be brief"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minigpt: the model's chat template ")
    assert len(error.splitlines()) == 1
    assert "chat template" in talk(model, tokenizer, "!system be brief", "hi")[1]


def test_a_template_that_the_vocabulary_cannot_write_is_refused_before_anything_is_said(talk: Talk) -> None:
    tokenizer = instructed("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    with pytest.raises(UsageError, match=r"chat template cannot be written: .*'\['"):
        talk(build(tokenizer), tokenizer, "hi")


def test_a_template_may_end_answers_with_a_stop_string(talk: Talk) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    whole = answer_to(model, tokenizer, f"<|user|>hi{END}<|assistant|>")
    model.generation_config.stop_strings = [whole[4]]
    answer = talk(model, tokenizer, "hi")[0].removesuffix("\n")
    assert answer == whole[: whole.index(whole[4]) + 1]


# At the block's edge.


def test_the_oldest_turns_are_left_out_whole_and_this_is_said_once(talk: Talk, shown: Callable[..., list[str]]) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    lines = ["one", "two", "three", "four", "five", "six"]
    printed, said = talk(model, tokenizer, *lines, system="be brief", min_new_tokens=12)
    answers = [printed[i * 13 : i * 13 + 12] for i in range(len(lines))]
    assert said == f"The conversation has outgrown the block of {BLOCK} tokens: its oldest turns are left out.\n"
    was_cut = False
    for index, prompt in enumerate(prompts):
        wholes = []  # what could be shown, from everything to the last line alone
        for first in range(index + 1):
            turns = "".join(f"<|user|>{lines[i]}{END}<|assistant|>{answers[i]}{END}" for i in range(first, index))
            wholes.append(f"<|system|>be brief{END}{turns}<|user|>{lines[index]}{END}<|assistant|>")
        fits = [whole for whole in wholes if len(tokenizer(whole)["input_ids"]) + 12 <= BLOCK]
        assert prompt == fits[0]
        was_cut |= prompt != wholes[0]
    assert was_cut


def test_a_line_longer_than_the_block_is_refused_and_nothing_is_forgotten(
    talk: Talk, shown: Callable[..., list[str]]
) -> None:
    tokenizer = instructed()
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    said = talk(model, tokenizer, "hi", "a" * BLOCK, "so")[1].splitlines()[-1]
    assert said == f"minigpt: this makes a prompt of {BLOCK + 3} tokens and the block has {BLOCK}; say it shorter."
    assert [prompt.count("<|user|>") for prompt in prompts] == [1, 2]


def test_a_model_that_rolls_past_its_block_is_shown_everything(talk: Talk, shown: Callable[..., list[str]]) -> None:
    tokenizer = instructed()
    model = build(tokenizer, position_embedding_type="rope", sliding_window=8)
    prompts = shown(model, tokenizer)
    said = talk(model, tokenizer, *["hello there"] * 6, min_new_tokens=12)[1]
    assert said == ""
    assert prompts[-1].count("<|user|>") == 6
    assert len(tokenizer(prompts[-1])["input_ids"]) > 2 * BLOCK


@pytest.mark.door("`minigpt chat`: without a template, the text goes on", "transformers")
# Without a chat template.


def test_a_model_without_a_template_goes_on_with_the_text_on_the_screen(
    talk: Talk, shown: Callable[..., list[str]]
) -> None:
    tokenizer = instructed(None)
    model = build(tokenizer, max_position_embeddings=512)
    model.generation_config.suppress_tokens = tokenizer.all_special_ids
    first = answer_to(model, tokenizer, "romeo\n")
    more = answer_to(model, tokenizer, f"romeo\n{first}")
    text = f"romeo\n{first}{more}"
    text += "juliet\n" if text.endswith("\n") else "\njuliet\n"
    answers = [first, more, answer_to(model, tokenizer, text), answer_to(model, tokenizer, "nurse\n")]
    prompts = shown(model, tokenizer)
    printed, said = talk(model, tokenizer, "romeo", "", "juliet", "!clear", "nurse")
    assert prompts == ["romeo\n", f"romeo\n{first}", text, "nurse\n"]
    assert printed == "".join(answer.removesuffix("\n") + "\n" for answer in answers)
    assert said == NO_TEMPLATE


def test_past_the_block_the_text_goes_on_from_the_last_block(talk: Talk) -> None:
    tokenizer = instructed(None)
    model = build(tokenizer, max_position_embeddings=8)
    printed, said = talk(model, tokenizer, "hello there", "and so", min_new_tokens=12)
    assert said == f"{NO_TEMPLATE}The text has outgrown the block: the model continues from the last 8 tokens.\n"
    ids = tokenizer("hello there\n")["input_ids"]
    written = []
    for line in ("and so", None):
        for _ in range(12):
            scores = model(torch.tensor([ids[-8:]])).logits[0, -1]
            scores[tokenizer.all_special_ids] = -torch.inf
            ids.append(int(scores.argmax()))
        answer = tokenizer.decode(ids[-12:])
        written.append(answer.removesuffix("\n") + "\n")
        if line:
            ids += tokenizer(f"{line}\n" if answer.endswith("\n") else f"\n{line}\n")["input_ids"]
    assert printed == "".join(written)


def test_ctrl_c_keeps_the_text_so_far(
    talk: Talk, shown: Callable[..., list[str]], press_ctrl_c: Callable[[int], None]
) -> None:
    tokenizer = instructed(None)
    model = build(tokenizer)
    partial = answer_to(model, tokenizer, "hi\n", new_tokens=3)
    prompts = shown(model, tokenizer)
    press_ctrl_c(3)
    talk(model, tokenizer, "hi", "")
    assert prompts == ["hi\n", f"hi\n{partial}"]


def test_an_empty_first_line_starts_from_a_new_line(talk: Talk, shown: Callable[..., list[str]]) -> None:
    tokenizer = instructed(None)
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    talk(model, tokenizer, "")
    assert prompts == ["\n"]


@pytest.mark.parametrize("characters", ["ab", "ab\n"])
def test_a_line_ends_where_the_vocabulary_has_lines(
    talk: Talk, shown: Callable[..., list[str]], characters: str
) -> None:
    tokenizer = MiniGPTTokenizer.from_text(characters)
    model = build(tokenizer)
    prompts = shown(model, tokenizer)
    said = talk(model, tokenizer, "c", "ab")[1]
    assert "the vocabulary lacks 'c' (U+0063) first at position 0" in said
    assert prompts == ["ab\n" if "\n" in characters else "ab"]


def test_a_system_message_without_a_template_is_refused(talk: Talk, tmp_path: Path) -> None:
    tokenizer = instructed(None)
    model = build(tokenizer)
    with pytest.raises(UsageError, match="write it into the text"):
        talk(model, tokenizer, "hi", system="be brief")
    assert "write it into the text" in talk(model, tokenizer, "!system be brief")[1]


def test_a_bigram_and_a_vocabulary_of_pairs_go_on_with_a_text_too(talk: Talk) -> None:
    tokenizer = instructed(None)
    bigram = BigramForCausalLM(BigramConfig(vocab_size=len(tokenizer), max_position_embeddings=4)).eval()
    bigram.generation_config = lecture_generation_config(tokenizer.all_special_ids)
    assert len(talk(bigram, tokenizer, "hello there", "again")[0]) >= 24

    pairs = train_bpe(["grüße, 世界! " * 20], 265)
    model = build(pairs)
    expected = answer_to(model, pairs, "grüße\n", new_tokens=6)
    assert talk(model, pairs, "grüße", max_new_tokens=6)[0].removesuffix("\n") == expected.removesuffix("\n")


def test_a_byte_that_is_no_text_ends_no_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = MiniGPTTokenizer.from_text("ab")
    save(tmp_path, build(tokenizer), tokenizer)
    typed = io.TextIOWrapper(io.BytesIO(b"a\xffb\nab\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["chat", str(tmp_path), "--max_new_tokens", "3", "--temperature", "0", "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert "\ufffd" in output.err
    assert output.out.strip()


# In a terminal.


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal is made with openpty")
def test_in_a_terminal_ctrl_c_ends_an_endless_answer_and_ctrl_d_the_chat(tmp_path: Path) -> None:
    """The answer has no end and no space: whatever of it is seen was shown while it was made."""
    tokenizer = MiniGPTTokenizer.from_text("ab")
    model = build(tokenizer)
    model.generation_config.suppress_tokens = tokenizer.all_special_ids
    save(tmp_path, model, tokenizer)
    mine, its = os.openpty()
    seen = b""

    def read_until(awaited: bytes) -> None:
        nonlocal seen
        while awaited not in seen:
            seen += os.read(mine, 1024)

    command = [sys.executable, "-m", "minigpt", "chat", str(tmp_path), "--max_new_tokens", "1000000000"]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=os.environ | {"TERM": "dumb"})
    os.close(its)
    impatience = threading.Timer(300, process.kill)
    impatience.start()
    try:
        read_until(b"> ")
        assert b"goes on with what you write" in seen
        assert b"!help lists the commands, !exit ends." in seen
        seen = b""
        os.write(mine, b"ab\n")
        read_until(b"\n")
        while len(seen) < 100:
            seen += os.read(mine, 1024)
        assert set(seen.split(b"\n", 1)[1]) <= set(b"ab")
        process.send_signal(signal.SIGINT)
        read_until(b"\n> ")
        assert process.poll() is None
        os.write(mine, b"\x04")
        assert process.wait() == 0
    finally:
        impatience.cancel()
        process.kill()
        process.wait()
        os.close(mine)
