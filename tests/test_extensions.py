"""docs/extensions.md has a row for each extension, and what was measured is what was promised."""

import re
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name

from benchmarks import extensions
from benchmarks.extensions import (
    BF16,
    BITS_4,
    BITS_8,
    HEADER,
    LORA,
    PACKAGES,
    PAGE,
    RECOMPUTED,
    ROWS,
    TALK,
    TOGETHER,
    Side,
    Size,
)
from benchmarks.peak_memory import PeakMemory
from tests.pins import pins

TEXT = PAGE.read_text(encoding="utf-8")
WEIGHTS, TRAINED, PEAK, LOSS = (HEADER.index(name) for name in ("weights, MB", "trained", "peak, MB", "loss"))


def tables() -> list[list[list[str]]]:
    found = re.findall(r"(?:^\|.*\n)+", TEXT, flags=re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()] for table in found]


MAIN, KEPT, WIDTHS = tables()


def figures(name: str, column: int) -> tuple[float, float]:
    """The row's own and the one beside it."""
    cell = next(row for row in MAIN if row[1] == name)[column]
    ours, theirs = re.findall(r"[\d.]+", cell.replace(",", ""))
    return float(ours), float(theirs)


def test_every_part_has_its_rows_beside_the_run_without_it() -> None:
    assert MAIN[0] == list(HEADER)
    assert [tuple(row[:3]) for row in MAIN[2:]] == list(ROWS)
    assert {part for part, _, _ in ROWS} == set("1234567")
    for row in MAIN[2:]:
        assert all(re.search(r"\d", cell) for cell in row[3:]), row


def test_what_was_measured_were_the_versions_that_are_pinned() -> None:
    pinned = {name: str(pin) for name, pin in pins().items()}
    shown = dict(re.findall(rf"\b({'|'.join(PACKAGES)}) (\d[\w.]*\w)", TEXT.splitlines()[-1]))
    assert shown == {name: pinned[canonicalize_name(name)] for name in PACKAGES}


def test_lora_trains_a_twentieth_and_keeps_most_of_what_full_fine_tuning_gains() -> None:
    _, before, full, lora, trained, kept = KEPT[2]
    share = (float(before) - float(lora)) / (float(before) - float(full))
    assert float(kept.rstrip("%")) / 100 == pytest.approx(share, abs=0.006)
    assert share >= 0.6
    assert float(trained.rstrip("%")) <= 5
    assert figures(LORA, LOSS) == (float(lora), float(full))
    ours, all_of_them = figures(LORA, TRAINED)
    assert float(trained.rstrip("%")) / 100 == pytest.approx(ours / (all_of_them + ours), abs=1e-4)


@pytest.mark.parametrize("name", [BITS_4, BITS_8])
def test_quantized_weights_learn_within_three_percent_and_weigh_less(name: str) -> None:
    ours, theirs = figures(name, LOSS)
    assert abs(ours / theirs - 1) <= 0.03
    weights, in_full = figures(name, WEIGHTS)
    assert weights <= in_full / 2
    assert figures(name, PEAK)[0] < figures(name, PEAK)[1]


def test_four_bits_weigh_less_than_half_of_bfloat16_whatever_the_width_and_less_the_wider() -> None:
    shares = []
    for _, float32, bfloat16, eight, four, *_ in WIDTHS[2:]:
        assert float(four) < float(bfloat16) / 2
        assert float(four) < float(eight) < float(bfloat16)
        shares.append(float(four) / float(float32))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.15


def test_bfloat16_learns_as_float32_does() -> None:
    ours, theirs = figures(BF16, LOSS)
    assert abs(ours - theirs) <= 0.02


def test_checkpointing_halves_the_memory_of_24_layers_and_learns_the_same() -> None:
    ours, theirs = figures(RECOMPUTED, PEAK)
    assert ours <= theirs / 2
    ours, theirs = figures(RECOMPUTED, LOSS)
    assert ours == theirs


def test_answers_are_learned_whole_and_by_all_together() -> None:
    learned, before = figures(TALK, LOSS)
    assert learned < before - 0.5
    together, _ = figures(TOGETHER, LOSS)
    assert together < before - 0.5
    assert figures(TOGETHER, WEIGHTS)[0] < figures(TOGETHER, WEIGHTS)[1] / 2
    assert figures(TOGETHER, PEAK)[0] < figures(TOGETHER, PEAK)[1] / 2


def test_what_is_linked_is_there() -> None:
    links = set(re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT))
    assert len(links) == 5
    assert all((PAGE.parent / link).is_file() for link in links)


def test_a_table_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {name: Side(None, 1, {"index": index}) for index, name in enumerate(("with", "without"), start=1)}  # type: ignore[arg-type]
    monkeypatch.setattr(extensions, "ROWS", (("5", "with", "without"),))
    monkeypatch.setattr(extensions, "size", lambda side: Size(10_000, 2_000, 3_000_000 * side.training["index"]))
    monkeypatch.setattr(extensions, "step_milliseconds", lambda side: 4.0 * side.training["index"])
    line = extensions.compare(sides, {"with": 1.0, "without": 2.0}, rounds=2).splitlines()[-1]
    assert line == (
        "| 5 | with | without | 0.01 / 0.01 | 2,000 / 2,000 | 3.00 / 6.00 | 4.0 / 8.0 | 0.50 | 1.0000 / 2.0000 bits |"
    )


def test_memory_is_counted_once_for_each_tensor_and_only_while_it_is_there() -> None:
    given = torch.zeros(1000)
    with PeakMemory() as memory:
        twice = given * 2
        assert memory.bytes == 8000
        row = twice.view(10, 100)[0]
        assert memory.bytes == 8000
        del twice
        assert memory.bytes == 8000  # the row holds all of it
        del row
        assert memory.bytes == 4000
        torch.zeros(10, device="meta").add(1)
    assert memory.peak == 8000


def test_the_page_is_written_only_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "extensions.md"
    monkeypatch.setattr(extensions, "PAGE", page)
    monkeypatch.setattr(extensions, "write_page", lambda model, folder, part, rounds: f"{part} of {model}\n")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    extensions.main(["--model", "runs/seed", "--part", "0.5"])
    assert capsys.readouterr().out == "0.5 of runs/seed\n"
    assert not page.exists()
    extensions.main(["--model", "runs/seed"])
    assert page.read_text(encoding="utf-8") == "1.0 of runs/seed\n"
