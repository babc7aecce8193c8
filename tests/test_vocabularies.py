"""The comparison of vocabularies is one at equal compute, and its figures agree with each other."""

import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.vocabularies import PRESET, ROWS, Side, compare, training_flops
from minigpt import MiniGPTConfig, MiniGPTForCausalLM
from minigpt.training.data.corpus import PLAYS
from minigpt.training.data.vocabulary import Vocabulary
from minigpt.training.presets import get_preset

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "vocabularies.md"


def columns(table: str) -> dict[str, dict[str, str]]:
    """The table's columns by their heads, each by its rows' names."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    heads, _, *body = rows
    return {head: {row[0]: row[place] for row in body} for place, head in enumerate(heads) if place}


def number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


@pytest.mark.parametrize("tied", [True, False])
def test_the_compute_is_what_torch_counts_in_a_step(tied: bool) -> None:
    config = MiniGPTConfig(
        vocab_size=50, n_embd=16, n_layer=2, n_head=4, block_size=8, tie_word_embeddings=tied, num_key_value_heads=2
    )
    config._attn_implementation = "eager"
    model = MiniGPTForCausalLM(config)
    ids = torch.randint(0, 50, (3, 8))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    assert training_flops(config) * ids.numel() == counter.get_total_flops()


def agree(column: dict[str, str]) -> None:
    """Checks a column's figures against each other, to the digits that are shown."""
    bits = number(column["nats a token"]) / math.log(2) / number(column["characters a token"])
    assert bits == pytest.approx(number(column["bits a character"]), rel=0.004)
    seen = number(column["tokens seen"]) * number(column["characters a token"])
    assert seen == pytest.approx(number(column["characters seen"]), rel=0.01, abs=0.01)


@pytest.mark.slow
def test_every_side_spends_the_same_and_its_figures_agree(tmp_path: Path) -> None:
    text = tmp_path / "plays.txt"
    text.write_text(PLAYS.read_text(encoding="utf-8")[:20_000], encoding="utf-8", newline="\n")
    sides = [Side("characters", Vocabulary()), Side("longer", Vocabulary(), 2), Side("BPE", Vocabulary("bpe", 300))]
    table = columns(compare(str(text), 0.01, tmp_path / "models", sides))
    assert list(table) == [side.name for side in sides]
    for column in table.values():
        assert tuple(column) == ROWS
        agree(column)
    steps = {name: number(column["steps"]) for name, column in table.items()}
    preset = get_preset(PRESET)
    sizes = {"characters": (64, 0), "longer": (128, 0), "BPE": (64, 300)}
    characters = int(number(table["characters"]["different tokens"]))
    spent = {
        name: steps[name]
        * training_flops(preset.build_config(vocab_size=size or characters, max_position_embeddings=block))
        for name, (block, size) in sizes.items()
    }
    assert steps["characters"] == 20
    assert spent["longer"] == pytest.approx(spent["characters"], rel=0.5 / 18)
    assert spent["BPE"] == pytest.approx(spent["characters"], rel=0.5 / 18)
    assert table["BPE"]["different tokens"] == "300"
    assert number(table["longer"]["characters in a block"]) == 128


def test_the_kept_table_is_of_equal_compute_and_its_figures_agree() -> None:
    table = columns(RESULTS.read_text(encoding="utf-8"))
    assert {"characters", "BPE 512", "BPE 2048", "SentencePiece 512"} < set(table)
    assert len({column["training FLOPs"] for column in table.values()}) == 1
    for column in table.values():
        agree(column)
