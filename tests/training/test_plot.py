"""The picture of a run shows what there is to show, whatever the run was like."""

import math

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from minigpt.training.plot import COLOURS, draw_losses, loss_figure


def report(curves, *, chosen=False, name="tiny_shakespeare"):
    return {
        "preset": "nano-cpu",
        "data": {"name": name},
        "model": {"parameters": 10_746_240, "step": 2000, "chosen_on_validation": chosen},
        "training": {"steps": 5000, "seconds": 5025.0},
        "losses": {"validation": {"loss": 1.8046, "bits_per_character": 2.603}, "curves": curves},
    }


def curve(*points):
    return [
        {"step": 250 * index, "train": train, "validation": validation}
        for index, (train, validation) in enumerate(points)
    ]


falling = curve(*[(1.6 + math.exp(-i), 1.7 + math.exp(-i)) for i in range(12)])
overfitting = curve(*[(1.5 - 0.05 * i, 1.6 + 0.01 * (i - 5) ** 2) for i in range(20)])
RUNS = {
    "falling": report(falling),
    "overfitting": report(overfitting, chosen=True),
    "equal": report(curve(*[(2.5, 2.5)] * 9)),
    "one estimate": report(curve((4.2, 4.2))),
    "diverged": report(curve((4.2, 4.2), (3.0, 3.1), (math.nan, math.inf), (math.nan, math.nan))),
    "no estimates": report([]),
    "adapter": report(falling) | {"adapter": {"trainable": 1_033_000}},
    "dollars": report(falling, name="Ca$$h songs $\\frac$.txt"),
    "Chinese": report(falling, name="中文小说.txt"),
    "in no font": report(falling, name="\U0010fffd" * 40),
    "two lines": report(falling, name="one\ntwo.txt"),
    "long": report(falling, name="long " * 60 + ".txt"),
    "many steps": report([{"step": 5_000_000 * i, "train": 3 - i, "validation": 3.1 - i} for i in range(3)]),
}


def words(figure):
    figure.draw_without_rendering()
    axes = figure.axes[0]
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    low, high = axes.get_ylim()
    seen = [tick for tick in ticks if tick.get_text()]
    seen = [tick for tick in seen if tick in axes.get_xticklabels() or low <= tick.get_position()[1] <= high]
    return [text for text in [*figure.texts, *axes.texts, *seen, axes.xaxis.label] if text.get_text()]


@pytest.mark.parametrize("name", RUNS)
def test_every_word_is_inside_the_picture(name):
    figure = loss_figure(RUNS[name])
    for text in words(figure):
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= 1600, text
        assert 0 <= box.y0 <= box.y1 <= 900, text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("dollars", "nano-cpu on Ca$$h songs $\\frac$.txt"),
        ("two lines", "nano-cpu on one\\ntwo.txt"),
        ("in no font", "nano-cpu on \\U0010f"),
        ("long", "nano-cpu on long long"),
        ("long", "long .txt"),
    ],
)
def test_any_name_is_drawn_as_text_and_without_a_warning(name, drawn):
    figure = loss_figure(RUNS[name])
    figure.draw_without_rendering()
    assert drawn in figure.texts[0].get_text()


@pytest.mark.parametrize("name", RUNS)
def test_no_words_lie_on_each_other(name):
    texts = words(loss_figure(RUNS[name]))
    for index, one in enumerate(texts):
        for other in texts[:index]:
            assert not one.get_window_extent().overlaps(other.get_window_extent()), (one, other)


def test_file_is_a_picture_in_which_both_curves_are_seen(tmp_path):
    draw_losses(RUNS["overfitting"], tmp_path / "loss.png")
    pixels = imread(tmp_path / "loss.png")[:, :, :3]
    assert pixels.shape == (900, 1600, 3)
    for colour in COLOURS.values():
        assert (abs(pixels - to_rgb(colour)).max(axis=2) < 0.02).sum() > 1000


def test_lowest_estimate_is_marked_with_its_value():
    figure = loss_figure(RUNS["overfitting"])
    assert "lowest 1.600\nstep 1,250" in [text.get_text() for text in figure.axes[0].texts]


def test_first_fall_that_is_cut_off_is_told():
    figure = loss_figure(report(curve((4.2, 4.25), *[(2.5 - 0.1 * i, 2.6 - 0.1 * i) for i in range(8)])))
    assert figure.axes[0].get_ylim()[1] < 3
    assert "from 4.25" in [text.get_text() for text in figure.axes[0].texts]


def test_an_adapter_is_not_shown_as_if_all_the_model_had_been_trained():
    said = [text.get_text() for text in loss_figure(RUNS["adapter"]).texts]
    assert "LoRA, 1.03 M of 10.7 M parameters trained, 5,000 steps in 1 h 23 min" in said
    whole = [text.get_text() for text in loss_figure(RUNS["falling"]).texts]
    assert "10.7 M parameters, 5,000 steps in 1 h 23 min" in whole
