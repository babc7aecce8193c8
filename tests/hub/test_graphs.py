"""Claims about exported graphs: what they compute is what the model computes, where none of it is there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from minigpt.errors import UsageError
from minigpt.hub.exporting.graphs import export_onnx, export_torch
from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer

TOKENIZER = MiniGPTTokenizer.from_text("The abcdfgijkl")
BLOCK = 12
WINDOW = 5
SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "block_size": BLOCK,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
ROTARY = {"position_embedding_type": "rope", "lm_head_bias": False, "attention_output_bias": False, "mlp_bias": False}
FAMILIES = {
    "lecture": {"num_hidden_layers": 2},
    "gpt2": {
        "attention_bias": True,
        "hidden_act": "gelu_new",
        "lm_head_bias": False,
        "tie_word_embeddings": True,
    },
    "llama": {**ROTARY, "norm_type": "rmsnorm", "hidden_act": "swiglu", "num_key_value_heads": 2},
    "qwen3": {
        **ROTARY,
        "norm_type": "rmsnorm",
        "hidden_act": "swiglu",
        "num_key_value_heads": 1,
        "head_dim": 6,
        "qk_norm": "before_rotary",
        "tie_word_embeddings": True,
    },
    "nanochat": {
        **ROTARY,
        "norm_type": "unweighted_rmsnorm",
        "hidden_act": "relu2",
        "embedding_norm": True,
        "qk_norm": "after_rotary",
        "final_logit_softcapping": 5.0,
    },
    "window": {"position_embedding_type": "rope", "sliding_window": WINDOW, "num_hidden_layers": 2},
    "mixed": {
        "num_hidden_layers": 2,
        "position_embedding_type": "rope",
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
# Logits are of order 1 to 10 here; float32 sums in another order differ in the sixth digit.
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}

Past = list[dict[str, torch.Tensor]]
Step = Callable[..., tuple[torch.Tensor, Past]]


@dataclass
class Exported:
    """A model, the folder of its graph, and `step(input_ids, attention_mask, position_ids, past)` of the graph."""

    model: PreTrainedModel
    folder: Path
    step: Step

    def nothing(self, rows: int) -> Past:
        config = self.model.config
        states = torch.zeros(rows, config.num_key_value_heads, 0, config.head_dim)
        return [{"key": states, "value": states} for _ in range(config.num_hidden_layers)]


def draw_model(model: PreTrainedModel) -> PreTrainedModel:
    """Weights that hide nothing: sharp attention, and no bias or norm at its neutral value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise + 1 if parameter.ndim == 1 and name.endswith("weight") else noise)
    model.generation_config = lecture_generation_config(
        TOKENIZER.all_special_ids, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id
    )
    return model.eval()


def draw_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, len(TOKENIZER.stoi), (rows, length), generator=torch.Generator().manual_seed(length))


def open_torch(folder: Path) -> Step:
    program = torch.export.load(folder / "model.pt2").module()

    def step(input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, past: Past) -> Any:
        outputs = program(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=past)
        return outputs["logits"], outputs["present"]

    return step


def open_onnx(folder: Path) -> Step:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")

    def step(input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, past: Past) -> Any:
        feed = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}
        for index, states in enumerate(past):
            feed |= {f"past_key_values.{index}.{kind}": tensor for kind, tensor in states.items()}
        logits, *states = map(torch.from_numpy, session.run(None, {name: t.numpy() for name, t in feed.items()}))
        return logits, [{"key": key, "value": value} for key, value in zip(states[::2], states[1::2], strict=True)]

    return step


FORMATS = {"torch": (export_torch, open_torch), "onnx": (export_onnx, open_onnx)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """`exported(format, family)`: each is exported once, as it takes seconds."""
    done: dict[tuple[str, str], Exported] = {}

    def export(form: str, family: str) -> Exported:
        if (form, family) not in done:
            model = draw_model(MiniGPTForCausalLM(MiniGPTConfig(**SIZES | FAMILIES[family])))
            folder = tmp_path_factory.mktemp(f"{family}-{form}")
            write, read = FORMATS[form]
            write(model, TOKENIZER, folder)
            done[form, family] = Exported(model, folder, read(folder))
        return done[form, family]

    return export


# The fast lane shows both kinds of edge; every family in every format is for the slower one.
QUICK = ("lecture", "window")
CASES = [
    pytest.param("torch", family, marks=[] if family in QUICK else pytest.mark.slow, id=f"torch-{family}")
    for family in FAMILIES
]
CASES += [
    pytest.param("onnx", family, marks=[pytest.mark.extra("onnx"), pytest.mark.slow], id=f"onnx-{family}")
    for family in FAMILIES
]


def feed(one: Exported, input_ids: torch.Tensor, mask: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The logits of rows that are fed in pieces, each to the cache that the pieces before it left."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    past, start, logits = one.nothing(len(input_ids)), 0, []
    for length in lengths:
        end = start + length
        piece, past = one.step(input_ids[:, start:end], mask[:, :end], positions[:, start:end], past)
        logits.append(piece)
        start = end
    return torch.cat(logits, dim=1)  # (rows, sum of lengths, vocab)


def write_greedily(one: Exported, prompt: torch.Tensor, new_tokens: int, keep: int | None = None) -> torch.Tensor:
    """What docs/export.md shows, with torch's tensors; `keep` cuts the past to its last columns."""
    rolls = one.model.config.rolls_past_block
    suppressed = one.model.generation_config.suppress_tokens
    ids, new, past, start = prompt, prompt, one.nothing(1), 0
    for _ in range(new_tokens):
        if ids.shape[1] > BLOCK and not rolls:
            new, past, start = ids[:, -BLOCK:], one.nothing(1), 0
        columns = past[0]["key"].shape[2] + new.shape[1]
        positions = torch.arange(start, start + new.shape[1])[None]
        logits, past = one.step(new, torch.ones(1, columns, dtype=torch.long), positions, past)
        if keep is not None:
            past = [{kind: states[:, :, -keep:] for kind, states in layer.items()} for layer in past]
        start += new.shape[1]
        logits[:, -1, suppressed] = -torch.inf
        new = logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, new), dim=1)
    return ids


@pytest.mark.parametrize(("form", "family"), CASES)
@pytest.mark.door(
    "Export to `torch.export` and ONNX: the same logits, with and without a cache", "torch", "onnxruntime"
)
def test_the_graph_gives_the_models_logits_at_every_batch_and_length(
    form: str, family: str, exported: Callable[[str, str], Exported]
) -> None:
    one = exported(form, family)
    for rows, lengths in ((1, [1]), (1, [BLOCK]), (3, [5]), (1, [1] * BLOCK), (2, [4, 1, 1, 3]), (4, [1, 2])):
        ids = draw_ids(rows, sum(lengths))
        with torch.no_grad():
            expected = one.model(ids, use_cache=False).logits
        logits = feed(one, ids, torch.ones_like(ids), lengths)
        torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize(("form", "family"), CASES)
def test_padding_on_the_left_changes_no_row(form: str, family: str, exported: Callable[[str, str], Exported]) -> None:
    one = exported(form, family)
    ids, padded = draw_ids(3, 10), [0, 3, 6]
    mask = torch.ones_like(ids)
    for row, width in enumerate(padded):
        ids[row, :width] = TOKENIZER.pad_token_id
        mask[row, :width] = 0
    for lengths in ([10], [7, 1, 2]):
        logits = feed(one, ids, mask, lengths)
        for row, width in enumerate(padded):
            with torch.no_grad():
                alone = one.model(ids[row : row + 1, width:], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, width:], alone, **TOLERANCE)


@pytest.mark.parametrize(("form", "family"), CASES)
@pytest.mark.door("Export to `torch.export` and ONNX: the same greedy text, past the block too", "torch", "onnxruntime")
def test_greedy_text_is_that_of_generate_past_the_block_too(
    form: str, family: str, exported: Callable[[str, str], Exported]
) -> None:
    one = exported(form, family)
    prompt = draw_ids(1, 4)
    expected = one.model.generate(prompt, do_sample=False, max_new_tokens=2 * BLOCK)
    assert torch.equal(write_greedily(one, prompt, 2 * BLOCK), expected)
    assert TOKENIZER.decode(expected[0])


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.extra("onnx"))])
def test_of_a_window_models_past_the_window_is_enough(form: str, exported: Callable[[str, str], Exported]) -> None:
    one = exported(form, "window")
    prompt = draw_ids(1, 7)
    expected = one.model.generate(prompt, do_sample=False, max_new_tokens=2 * BLOCK)
    assert torch.equal(write_greedily(one, prompt, 2 * BLOCK, keep=WINDOW - 1), expected)


@pytest.mark.parametrize(
    ("form", "family"), [case for case in CASES if case.values[1] in ("lecture", "llama", "mixed")]
)
def test_a_position_past_the_block_is_refused(form: str, family: str, exported: Callable[[str, str], Exported]) -> None:
    one = exported(form, family)
    ids = draw_ids(1, BLOCK + 1)
    # IndexError is torch's; onnxruntime has its own, derived from Exception.
    with pytest.raises(Exception, match=r"out of (range|bounds)|invalid index"):
        feed(one, ids, torch.ones_like(ids), [BLOCK + 1])
    with pytest.raises(Exception, match=r"out of (range|bounds)|invalid index"):
        feed(one, ids, torch.ones_like(ids), [BLOCK, 1])


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER)))).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_torch(model, TOKENIZER, tmp_path)
    assert model.training
    assert {name: bool((weight == before[name]).all()) for name, weight in model.state_dict().items()} == dict.fromkeys(
        before, True
    )


def test_a_bigram_becomes_a_table_without_a_cache(tmp_path: Path) -> None:
    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER))))
    export_torch(model, TOKENIZER, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for rows, length in ((1, 1), (3, 40)):
        ids = draw_ids(rows, length)
        assert torch.equal(program(input_ids=ids)["logits"], model(ids).logits)


@pytest.mark.extra("onnx")
def test_a_bigram_becomes_an_onnx_file_that_looks_at_nothing_but_the_tokens(tmp_path: Path) -> None:
    import onnxruntime

    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER))))
    export_onnx(model, TOKENIZER, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["input_ids"]
    for rows, length in ((1, 1), (3, 40)):
        ids = draw_ids(rows, length)
        (logits,) = session.run(None, {"input_ids": ids.numpy()})
        assert torch.equal(torch.from_numpy(logits), model(ids).logits)


def test_another_model_is_refused(tmp_path: Path) -> None:
    stranger = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    for export in (export_torch, export_onnx):
        with pytest.raises(UsageError, match="a GPT2LMHeadModel, and only a MiniGPT or a bigram"):
            export(stranger, TOKENIZER, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.hub.extras.find_spec", lambda module: None)
    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER))))
    with pytest.raises(UsageError, match=r"^an ONNX file needs onnx, .*: pip install 'minigpt-hf\[onnx\]'\.$"):
        export_onnx(model, TOKENIZER, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_said_while_a_graph_is_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = draw_model(MiniGPTForCausalLM(MiniGPTConfig(**SIZES)))
    export_torch(model, TOKENIZER, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.extra("onnx")
def test_the_command_says_where_the_file_is_and_nothing_else(tmp_path: Path) -> None:
    """In a process of its own: most of what the exporters say is said only once."""
    model = draw_model(MiniGPTForCausalLM(MiniGPTConfig(**SIZES)))
    model.save_pretrained(tmp_path / "mine")
    TOKENIZER.save_pretrained(tmp_path / "mine")
    command = [sys.executable, "-m", "minigpt", "export", "mine", "--to", "onnx"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "written  mine-onnx\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-onnx"]
    one = Exported(model, tmp_path / "mine-onnx", open_onnx(tmp_path / "mine-onnx"))
    assert torch.equal(
        write_greedily(one, draw_ids(1, 3), 5), model.generate(draw_ids(1, 3), do_sample=False, max_new_tokens=5)
    )


@pytest.mark.extra("onnx")
def test_inputs_and_outputs_have_the_names_that_optimum_gives_them(exported: Callable[[str, str], Exported]) -> None:
    import onnxruntime

    one = exported("onnx", "lecture")
    session = onnxruntime.InferenceSession(one.folder / "onnx" / "model.onnx")
    grown = "past_sequence_length + sequence_length"
    inputs: dict[str, Any] = {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
    }
    outputs: dict[str, Any] = {"logits": ["batch_size", "sequence_length", len(TOKENIZER)]}
    for layer in range(2):
        for kind in ("key", "value"):
            inputs[f"past_key_values.{layer}.{kind}"] = ["batch_size", 4, "past_sequence_length", 4]
            outputs[f"present.{layer}.{kind}"] = ["batch_size", 4, grown, 4]
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == list(inputs.items())
    assert [(entry.name, entry.shape) for entry in session.get_outputs()] == list(outputs.items())


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.extra("onnx"))])
def test_a_graphs_folder_has_all_that_a_program_needs_and_no_code(
    form: str, exported: Callable[[str, str], Exported]
) -> None:
    one = exported(form, "window" if form == "torch" else "llama")
    config = json.loads((one.folder / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    for name in ("num_hidden_layers", "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"):
        assert config[name] == getattr(one.model.config, name)
    generation = json.loads((one.folder / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["suppress_tokens"] == one.model.generation_config.suppress_tokens
    assert (one.folder / "tokenizer.json").is_file()
    assert not list(one.folder.rglob("*.py"))
    card = (one.folder / "README.md").read_text(encoding="utf-8")
    states = "`past_key_values`, a list of" if form == "torch" else "`past_key_values.N.key`"
    edge = f"the last {WINDOW} tokens" if form == "torch" else f"A position from {BLOCK} on is an error"
    assert states in card
    assert edge in card


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.extra("onnx"))])
def test_a_graph_does_not_say_where_it_was_made(form: str, exported: Callable[[str, str], Exported]) -> None:
    one = exported(form, "lecture")
    here = {str(Path(module.__file__).parent).encode() for module in (sys.modules["minigpt"], torch)}
    for file in one.folder.rglob("model.*"):
        assert not [place for place in here if place in file.read_bytes()]


@pytest.mark.extra("onnx")
def test_half_precision_becomes_float32_in_an_onnx_file(tmp_path: Path) -> None:
    import onnxruntime

    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER)))).to(torch.bfloat16)
    export_onnx(model, TOKENIZER, tmp_path)
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    (logits,) = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx").run(None, {"input_ids": [[0, 3]]})
    assert torch.equal(torch.from_numpy(logits), model(torch.tensor([[0, 3]])).logits.float())


@pytest.mark.extra("onnx")
def test_weights_that_protobuf_cannot_hold_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from minigpt.hub.exporting import onnx_file

    monkeypatch.setattr(onnx_file, "LARGEST_SINGLE_FILE", 100)
    model = draw_model(BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER))))
    export_onnx(model, TOKENIZER, tmp_path)
    assert sorted(file.name for file in (tmp_path / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]
    (logits,) = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx").run(None, {"input_ids": [[0, 3]]})
    assert torch.equal(torch.from_numpy(logits), model(torch.tensor([[0, 3]])).logits)


@pytest.mark.extra("onnx")
@pytest.mark.door("An ONNX file writes the same text without torch", "onnxruntime", "tokenizers")
def test_the_loop_of_the_how_to_writes_the_models_text_without_torch(
    tmp_path: Path, exported: Callable[[str, str], Exported]
) -> None:
    one = exported("onnx", "lecture")
    shutil.copytree(one.folder, tmp_path / "runs" / "seed-onnx")
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    without = "import sys\nsys.modules |= dict.fromkeys(('minigpt', 'torch', 'transformers'))\n"
    ran = subprocess.run(
        [sys.executable, "-c", without + code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
    )
    prompt = torch.tensor([TOKENIZER("The ")["input_ids"]])
    (ids,) = one.model.generate(prompt, do_sample=False, max_new_tokens=100)
    assert ran.stdout == TOKENIZER.decode(ids) + "\n"


@pytest.mark.slow
@pytest.mark.door("`torch.export.load` opens an exported program with torch alone", "torch")
def test_torch_alone_opens_the_program(tmp_path: Path, exported: Callable[[str, str], Exported]) -> None:
    one = exported("torch", "lecture")
    ids = draw_ids(2, 7)
    torch.save(ids, tmp_path / "ids.pt")
    code = """
import sys
sys.modules |= dict.fromkeys(("minigpt", "transformers"))  # importing either is an error
import torch
folder, scratch = sys.argv[1:]
program = torch.export.load(folder + "/model.pt2").module()
ids = torch.load(scratch + "/ids.pt")
past = [{"key": torch.zeros(2, 4, 0, 4), "value": torch.zeros(2, 4, 0, 4)} for _ in range(2)]
logits = []
for at in range(7):
    mask, position = torch.ones(2, at + 1, dtype=torch.long), torch.full((2, 1), at)
    outputs = program(input_ids=ids[:, at : at + 1], attention_mask=mask, position_ids=position, past_key_values=past)
    logits.append(outputs["logits"])
    past = outputs["present"]
torch.save(torch.cat(logits, dim=1), scratch + "/logits.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(one.folder), str(tmp_path)], check=True, timeout=300)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), one.model(ids).logits, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.door("Transformers' own `ExportedModel` opens an exported program", "torch", "transformers")
def test_the_librarys_own_class_opens_the_program(exported: Callable[[str, str], Exported]) -> None:
    from transformers.exporters import ExportedModel

    one = exported("torch", "lecture")
    program = ExportedModel.from_pretrained(one.folder)
    ids = draw_ids(2, 7)
    outputs = program(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(7).repeat(2, 1),
        past_key_values=one.nothing(2),
    )
    torch.testing.assert_close(outputs["logits"], one.model(ids).logits, **TOLERANCE)
