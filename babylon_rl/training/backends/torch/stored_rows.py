"""The rows of an update on disk, one file a minibatch: training holds one of them at a time.

The snapshot is read once, in one transaction; whatever the training takes after that, no connection waits for it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from babylon_rl.groups.snapshots import minibatch_of
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.backends.torch.rows import Row, RowMaker, Scale, Sums, is_stale


class StoredRows(NamedTuple):
    """`minibatches`: files of those that have rows, in order. `stale`: whether a row was drawn by an earlier policy."""

    minibatches: list[Path]
    scale: Scale
    stale: bool


def store_rows(groups: Iterable[Group], count: int, minibatches: int, maker: RowMaker, folder: Path) -> StoredRows:
    """Write the rows of `count` groups, cut into minibatches of equal shares of the windows, into an empty folder.

    TrainingError where nothing is trainable, or the maker refuses something.
    """
    shares = minibatch_of(range(count), minibatches)
    sums, stale, encoder = Sums(), False, msgspec.json.Encoder()
    files: list[Path] = []
    for group, share in zip(groups, shares, strict=True):
        rows = list(maker.rows_of(group))
        if not rows:
            continue
        sums = sums.and_those_of(rows)
        stale = stale or any(is_stale(member) for member in group.members)
        file = folder / f"minibatch-{share:04d}.jsonl"
        if file not in files:
            files.append(file)
        with file.open("ab") as out:
            out.write(encoder.encode_lines(rows))
    return StoredRows(files, sums.scale(), stale)


def read_rows(file: Path) -> list[Row]:
    """The rows of a minibatch, in an order that depends on nothing but them: that of a sum is ours to fix."""
    decoder = msgspec.json.Decoder(Row)
    rows: list[Row] = []
    with file.open("rb") as lines:
        for line in lines:
            row = decoder.decode(line)
            if rows and rows[-1].answer.prompt == row.answer.prompt:
                answer = msgspec.structs.replace(row.answer, prompt=rows[-1].answer.prompt)  # held once
                row = msgspec.structs.replace(row, answer=answer)
            rows.append(row)
    return sorted(rows, key=lambda row: row.answer.prompt + row.answer.tokens)
