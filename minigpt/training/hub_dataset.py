"""The text of a dataset of the Hub, whatever its splits and columns are called."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minigpt.training.text_files import CorpusError

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_ORDER = ("train", "validation", "test")
ROWS_AT_ONCE = 256


def hub_dataset_reader(name: str, column: str | None = None, subset: str | None = None) -> Callable[[], Iterator[str]]:
    """Downloads a dataset (once: `datasets` keeps it) and returns a function that reads its text from the start.

    Every split is read, train first, then validation and test: the Hub's held-out text stays at the end, where our own
    validation split lies. Each row ends its line; a row without text is passed over.

    Raises:
        CorpusError: The Hub does not give the dataset, or it has no such column, or more than one that it could be.
    """
    import datasets

    try:
        splits = datasets.load_dataset(name, subset)
    except Exception as error:  # the network, a missing repository, a script, several configurations, a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{name!r} is no file here and cannot be loaded from the Hub: {reason}") from error
    assert isinstance(splits, datasets.DatasetDict)
    ordered = sorted(splits, key=lambda split: SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER))
    chosen = _text_column(name, splits[ordered[0]], column)
    return lambda: (text for split in ordered for text in _rows(splits[split], chosen))


def _text_column(name: str, dataset: "Dataset", column: str | None) -> str:
    """Returns the column to read, or says which there are."""
    kinds = {key: getattr(kind, "dtype", None) for key, kind in dataset.features.items()}
    strings = [key for key, kind in kinds.items() if kind in ("string", "large_string")]
    column = column or (strings[0] if len(strings) == 1 else "text")
    if column not in strings:
        raise CorpusError(
            f"The dataset {name!r} has no text in a column {column!r}; set text_column to one that holds strings"
            f" ({', '.join(strings) or 'there is none'}; all columns: {', '.join(kinds)})."
        )
    return column


def _rows(dataset: "Dataset", column: str) -> Iterator[str]:
    for batch in dataset.select_columns([column]).with_format(None).iter(batch_size=ROWS_AT_ONCE):
        for text in batch[column]:
            if text is not None:
                yield text if text.endswith("\n") else text + "\n"
