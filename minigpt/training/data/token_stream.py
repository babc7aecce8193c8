"""One flat stream of tokens over the rows of an Arrow column, without a copy."""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray


class TokenStream:
    """The tokens of a split, one after another, as if its rows had no borders.

    Nothing is read until it is asked for, and then only the pages of the file that hold it. A stream is pickled as the
    path of that file, so that a worker process opens it for itself.

    Args:
        dataset: A split with a column `tokens`, from `tokenize_corpus`.

    Attributes:
        segments: The stream in order, as arrays that look into the memory map.
        name: What the split is called, for messages.
        fingerprint: The dataset's, for caches of what is made from the stream.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        if "tokens" not in dataset.column_names:
            raise ValueError(f"a stream reads the column 'tokens', and this dataset has {dataset.column_names}")
        if dataset._indices is not None:
            raise ValueError(
                "this dataset's rows are selected or shuffled, and a stream reads rows as they lie;"
                " call flatten_indices() first"
            )
        self._dataset = dataset
        self.name = str(dataset.split or "given")
        self.fingerprint: str = dataset._fingerprint
        column = dataset.data.column("tokens")
        self.segments: list[NDArray[np.unsignedinteger]] = [
            chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks
        ] or [np.empty(0, column.type.value_type.to_pandas_dtype())]
        self._begins = [0, *accumulate(len(segment) for segment in self.segments)]
        self._length = self._begins.pop()

    def __len__(self) -> int:
        return self._length

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStream, (self._dataset,)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The type that tokens are kept in, `uint16` or `uint32`."""
        return self.segments[0].dtype

    def crops(self, starts: ArrayLike, length: int) -> NDArray[np.int64]:
        """Returns the `length` tokens from each start on.

        Args:
            starts: Positions in the stream, shape `(number,)`.
            length: Tokens to read at each of them.

        Returns:
            Shape `(number, length)`, `int64`.

        Raises:
            IndexError: A crop begins before the stream or ends after it.
        """
        starts = np.asarray(starts, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(
                f"crops of {length} tokens from {starts.min()} to {starts.max()} do not fit in the {self.name}"
                f" split, which has {len(self)}; start at 0 or later and at {len(self) - length} or before"
            )
        if len(self.segments) == 1:
            return self.segments[0][starts[:, None] + np.arange(length)].astype(np.int64)  # (number, length)
        crops = np.empty((len(starts), length), np.int64)
        for crop, start in zip(crops, starts.tolist(), strict=True):
            filled = 0
            while filled < length:  # once, but where a crop spans segments
                piece = self.rest_of_segment(start + filled)[: length - filled]
                crop[filled : filled + len(piece)] = piece
                filled += len(piece)
        return crops

    def rest_of_segment(self, position: int) -> NDArray[np.unsignedinteger]:
        """Returns the tokens from `position` to the end of the piece of the file that it lies in, as a view."""
        index = bisect_right(self._begins, position) - 1
        return self.segments[index][position - self._begins[index] :]
