"""Keys and values of the tokens that rows of a batch have had: rows join and leave, and prompts that begin alike share.

`KeyValues` has the two methods that transformers' models ask of a cache. Rows are aligned at their first token, so that
one that joins or leaves moves no other.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

COLUMNS = 64  # by which a buffer grows
LEAST_SHARED = 16  # tokens of a beginning that is worth its copying


class KeyValues:
    """The cache of a batch. `lengths`: tokens of each row; a buffer a layer is (rows, heads, columns, width).

    Columns beyond a row's length hold finite numbers that its mask hides.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._layers: list[list[torch.Tensor]] = []
        self._start = 0
        self._each: torch.Tensor | None = None

    # --- what a model asks for ---

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def update(
        self, key: "torch.Tensor", value: "torch.Tensor", layer: int, options: Any = None
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Put a layer's keys and values, (rows, heads, n, width), at their columns; all columns so far are returned."""
        import torch

        rows, _, n, _ = key.shape
        if layer == len(self._layers):
            self._layers.append([t.new_zeros(rows, t.shape[1], self._start + n, t.shape[3]) for t in (key, value)])
        buffers = self._layers[layer]
        end = (max(self.lengths) if self._each is not None else self._start) + n
        for place, given in enumerate((key, value)):
            buffer = buffers[place]
            if buffer.shape[0] < rows or buffer.shape[2] < end:
                columns = max(buffer.shape[2], -(-end // COLUMNS) * COLUMNS + COLUMNS)
                room = buffer.new_zeros(max(rows, buffer.shape[0]), buffer.shape[1], columns, buffer.shape[3])
                room[: buffer.shape[0], :, : buffer.shape[2]] = buffer
                buffers[place] = buffer = room
            if self._each is None:
                buffer[:rows, :, self._start : end] = given
            else:
                buffer[torch.arange(rows, device=buffer.device), :, self._each] = given[:, :, 0]
        return buffers[0][:rows, :, :end], buffers[1][:rows, :, :end]

    # --- what the batch does ---

    def write_from(self, start: int) -> None:
        """The next tokens of all rows stand at the column `start` and those after it."""
        self._start, self._each = start, None

    def write_next(self) -> None:
        """The next token of each row stands after its last one."""
        import torch

        device = self._layers[0][0].device if self._layers else None
        self._each = torch.tensor(self.lengths, device=device)

    def begin_with(self, prefix: "Sequence[tuple[torch.Tensor, torch.Tensor]]", length: int, rows: int) -> None:
        """So many rows that begin with the first `length` tokens of the prefix."""
        self._layers = [[t[:, :length].expand(rows, -1, -1, -1).clone() for t in layer] for layer in prefix]

    def beginning(self, row: int, length: int) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        """A copy of a row's first tokens, by layer: keys and values, (heads, length, width)."""
        return [(k[row, :, :length].clone(), v[row, :, :length].clone()) for k, v in self._layers]

    def append(self, other: "KeyValues") -> None:
        """Take over the other's rows, after our own."""
        import torch

        if not self.lengths:
            self._layers, self.lengths = other._layers, other.lengths
            return
        mine, theirs = len(self.lengths), len(other.lengths)
        columns = max(self.lengths + other.lengths)
        for place, (ours, added) in enumerate(zip(self._layers, other._layers, strict=True)):
            for part in (0, 1):
                buffer, given = ours[part], added[part][:theirs, :, : max(other.lengths)]
                if buffer.shape[0] < mine + theirs or buffer.shape[2] < columns:
                    rows = max(buffer.shape[0], 1 << (mine + theirs - 1).bit_length())
                    wide = max(buffer.shape[2], -(-columns // COLUMNS) * COLUMNS + COLUMNS)
                    room = torch.zeros(
                        (rows, buffer.shape[1], wide, buffer.shape[3]), dtype=buffer.dtype, device=buffer.device
                    )
                    room[:mine, :, : buffer.shape[2]] = buffer[:mine]
                    self._layers[place][part] = buffer = room
                buffer[mine : mine + theirs, :, : given.shape[2]] = given
        self.lengths += other.lengths

    def remove(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        if row != last:
            for layer in self._layers:
                for buffer in layer:
                    buffer[row, :, :length] = buffer[last, :, :length]
        self.lengths[row] = length
        self.lengths.pop()
        if not self.lengths:
            self._layers = []


class Prefix:
    """A prompt whose keys and values are kept, for one adapter. `layers`: as of `KeyValues.beginning`."""

    def __init__(self, adapter: str | None, tokens: np.ndarray, layers: "list[tuple[torch.Tensor, torch.Tensor]]"):
        self.adapter, self.tokens, self.layers = adapter, tokens, layers
        self.bytes = sum(t.numel() * t.element_size() for layer in layers for t in layer)


class Prefixes:
    """Prompts that were answered lately, up to so many bytes; the one that was not used for longest goes first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._number = 0

    def find(self, adapter: str | None, prompt: np.ndarray) -> tuple[Prefix | None, int]:
        """The kept prompt with the longest beginning in common, and its tokens; the prompt's last one is never one."""
        best, length = None, 0
        for number, prefix in self._kept.items():
            if prefix.adapter == adapter and (alike := alike_for(prefix.tokens, prompt[:-1])) > length:
                best, length = number, alike
        if best is None or length < LEAST_SHARED:
            return None, 0
        self._kept.move_to_end(best)
        return self._kept[best], length

    def keep(self, adapter: str | None, prompt: np.ndarray, cache: KeyValues, row: int) -> None:
        """Keep a prompt that the cache has computed, unless nearly all of it is kept."""
        if len(prompt) < LEAST_SHARED or not self.most_bytes:
            return
        for number, prefix in list(self._kept.items()):
            if prefix.adapter != adapter:
                continue
            alike = alike_for(prefix.tokens, prompt)
            if len(prompt) - alike < LEAST_SHARED:
                return
            if alike == len(prefix.tokens):  # the longer one serves for both
                del self._kept[number]
        made = Prefix(adapter, prompt, cache.beginning(row, len(prompt)))
        if made.bytes > self.most_bytes:
            return
        self._number += 1
        self._kept[self._number] = made
        while sum(prefix.bytes for prefix in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)

    def forget(self, adapter: str | None) -> None:
        """Drop what an adapter computed."""
        for number in [n for n, prefix in self._kept.items() if prefix.adapter == adapter]:
            del self._kept[number]


def alike_for(one: np.ndarray, other: np.ndarray) -> int:
    """For how many tokens two prompts begin alike."""
    n = min(len(one), len(other))
    differ = np.flatnonzero(one[:n] != other[:n])
    return int(differ[0]) if len(differ) else n
