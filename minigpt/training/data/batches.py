"""Batches out of a token stream: random crops to train on, windows in order to validate on, blocks for anybody else."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from minigpt.training.data.corpus import CorpusError
from minigpt.training.data.token_stream import TokenStream

IGNORED = -100  # the label that no loss counts


def get_batch(
    stream: TokenStream, batch_size: int, block_size: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draws a batch as the lecture does: crops at random places, and the same crops one token on.

    Args:
        stream: Where to crop.
        batch_size: Number of crops.
        block_size: Tokens in each.
        generator: Source of randomness, by default that of `torch.manual_seed`.

    Returns:
        `x` and `y`, both of shape `(batch_size, block_size)` and `int64`.

    Raises:
        CorpusError: The stream is shorter than one crop, `block_size + 1` tokens.
    """
    starts = torch.randint(_places(stream, block_size), (batch_size,), generator=generator)
    crops = torch.from_numpy(stream.crops(starts.numpy(), block_size + 1))  # (batch, block + 1)
    return crops[:, :-1].contiguous(), crops[:, 1:].contiguous()


class RandomCrops(Dataset[Tensor]):
    """Random crops whose place in the stream is a pure function of `(seed, index)`.

    A run that stops and goes on sees the crops that it would have seen: no generator has to be where it was, and a
    sampler's order of indices is all there is to restore. Every place is as likely as any other, to within the number
    of places over 2**64.

    Use it with `collate`: `DataLoader(crops, batch_size=16, collate_fn=collate)`.

    Args:
        stream: Where to crop.
        block_size: Tokens of input; a crop has one more, the last one's target.
        seed: Any integer.
        length: How many crops there are, for samplers to count with; by default one for each whole block of the
            stream. Each epoch has the same crops, so a run that wants new ones throughout sets its number of steps
            times its batch size.

    Raises:
        CorpusError: The stream is shorter than one crop.
    """

    def __init__(self, stream: TokenStream, block_size: int, *, seed: int = 0, length: int | None = None) -> None:
        self.stream = stream
        self.block_size = block_size
        self._places = np.uint64(_places(stream, block_size))
        self._length = len(stream) // block_size if length is None else length
        # Mixed, or else the crops of one seed would be those of the next seed, shifted by one.
        self._seed = _mix(np.array([seed % 2**64], np.uint64))

    def __len__(self) -> int:
        return self._length

    def starts(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Returns where in the stream the crops of these indices start, shape `(number,)`."""
        return (_mix(self._seed + np.asarray(indices, np.uint64) * _GAMMA) % self._places).astype(np.int64)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Returns a whole batch of crops, shape `(number, block_size + 1)`: what a DataLoader asks for."""
        return torch.from_numpy(self.stream.crops(self.starts(indices), self.block_size + 1))

    def __getitem__(self, index: int) -> Tensor:
        return _one_of(self, index)


class Windows(Dataset[Tensor]):
    """A stream cut into blocks in order, such that each token but the first is the target exactly once.

    The last window is shorter, as a rule. It is padded on the right with `IGNORED`, which no loss counts and, attention
    being causal, no other token sees. A mean over the stream weights each batch by its number of targets: those of
    its labels that are not `IGNORED`, and `num_targets` in all.

    Use it with `collate`, as `RandomCrops`.

    Args:
        stream: What to cut.
        block_size: Tokens of input in a window; a window has one more, the last one's target.

    Raises:
        CorpusError: The stream has no two tokens, so nothing to predict.
    """

    def __init__(self, stream: TokenStream, block_size: int) -> None:
        _check_block_size(block_size)
        if len(stream) < 2:
            raise CorpusError(
                f"The {stream.name} split has {len(stream)} tokens and one to predict takes 2; give a longer text."
            )
        self.stream = stream
        self.block_size = block_size
        self.num_targets = len(stream) - 1

    def __len__(self) -> int:
        return -(-self.num_targets // self.block_size)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Returns a whole batch of windows, shape `(number, block_size + 1)`: what a DataLoader asks for."""
        starts = np.asarray(indices, np.int64) * self.block_size
        windows = np.full((len(starts), self.block_size + 1), IGNORED, np.int64)
        whole = starts + self.block_size < len(self.stream)
        windows[whole] = self.stream.crops(starts[whole], self.block_size + 1)
        for row in np.flatnonzero(~whole):
            rest = len(self.stream) - int(starts[row])
            windows[row, :rest] = self.stream.crops(starts[[row]], rest)[0]
        return torch.from_numpy(windows)

    def __getitem__(self, index: int) -> Tensor:
        return _one_of(self, index)


def collate(crops: Tensor) -> dict[str, Tensor]:
    """Makes a model's arguments of crops of shape `(batch, block_size + 1)`: inputs, and the same shifted by one.

    The model's loss reads `shift_labels`, so that all `block_size` targets count, as they do in the lecture. `labels`
    are the inputs, as everywhere in transformers. A loss that shifts them itself, such as the stock Trainer's label
    smoothing, misses the last target of each crop; `blocks` is made for those.

    Returns:
        `input_ids`, `labels` and `shift_labels`, each of shape `(batch, block_size)`, `int64` and contiguous.
    """
    inputs, targets = crops[:, :-1].contiguous(), crops[:, 1:].contiguous()
    return {"input_ids": inputs.clamp(min=0), "labels": inputs, "shift_labels": targets}


def blocks(stream: TokenStream, block_size: int) -> datasets.Dataset:
    """Cuts a stream into a plain dataset, for any trainer that shifts labels itself, as the stock Trainer does.

    Tokens are not copied: the columns look into the stream's memory map (a worker process that is not forked gets a
    copy). What is left after the last whole block, less than a block, is not in the dataset.

    Returns:
        Columns `input_ids` and `labels`, the same lists of `block_size` tokens.

    Raises:
        CorpusError: The stream is shorter than one block.
    """
    _check_block_size(block_size)
    if len(stream) < block_size:
        raise CorpusError(
            f"The {stream.name} split has {len(stream)} tokens and a block has {block_size};"
            " choose a smaller block_size or a longer text."
        )
    arrays = []
    position, end = 0, len(stream) - len(stream) % block_size
    while position < end:
        tokens = stream.rest_of_segment(position)
        number = len(tokens) // block_size
        if not number:  # a block that spans segments
            tokens, number = stream.crops([position], block_size)[0].astype(stream.dtype), 1
        offsets = pa.array(np.arange(number + 1, dtype=np.int32) * block_size)
        arrays.append(pa.ListArray.from_arrays(offsets, pa.array(tokens[: number * block_size])))
        position += number * block_size
    column = pa.chunked_array(arrays)
    fingerprint = Hasher.hash((stream.fingerprint, block_size))  # or datasets would read and hash every block
    return datasets.Dataset(pa.table({"input_ids": column, "labels": column}), fingerprint=fingerprint)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scrambles 64 bits as SplitMix64 does, so that neighbouring counters give unrelated numbers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _one_of(batches: RandomCrops | Windows, index: int) -> Tensor:
    if not 0 <= index < len(batches):
        raise IndexError(f"there is no item {index} among {len(batches)}")
    return batches.__getitems__([index])[0]


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size is {block_size} and must be at least 1")


def _places(stream: TokenStream, block_size: int) -> int:
    """Returns how many places a crop of `block_size + 1` tokens has in the stream."""
    _check_block_size(block_size)
    if len(stream) <= block_size:
        raise CorpusError(
            f"The {stream.name} split has {len(stream)} tokens and a crop of block_size {block_size} takes"
            f" {block_size + 1}; choose a smaller block_size or a longer text."
        )
    return len(stream) - block_size
