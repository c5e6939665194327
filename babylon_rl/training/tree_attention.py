"""Attention over a packed row: each block of tokens attends to the columns that it needs, not to the whole row.

A dense mask over a row of n tokens computes n^2 products, of which a tree needs n times its depth. Registered with
transformers as an attention implementation, which is torch's own where no row is packed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from babylon_rl.errors import ModelError
from babylon_rl.training.packing import PackedRow

if TYPE_CHECKING:
    import torch

TREE_ATTENTION = "babylon_tree"


@dataclass(frozen=True)
class AttendingBlock:
    """Tokens `start` to `end`, the columns they attend to (a slice where they are neighbours), and the additive mask.

    `mask`: (1, 1, end - start, columns), 0 or minus infinity.
    """

    start: int
    end: int
    columns: "slice | torch.Tensor"
    mask: "torch.Tensor"


def register() -> None:
    """Make the implementation known to transformers under `TREE_ATTENTION`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(TREE_ATTENTION, _attend)
    AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def no_mask(dtype: "torch.dtype", device: str) -> "torch.Tensor":
    """What a model is given as the mask of a packed row, so that it makes none. Not a number: used, it is noticed."""
    import torch

    return torch.full((1, 1, 1, 1), float("nan"), dtype=dtype, device=device)


def attending(row: PackedRow, dtype: "torch.dtype", device: str) -> list[AttendingBlock]:
    """The row's blocks on the device. On a GPU it is one block: there a few large products are cheaper than many."""
    import torch

    if device.startswith("cuda"):
        spans = [(0, len(row.tokens), np.arange(len(row.tokens)))]
    else:
        spans = [(block.start, block.end, block.columns) for block in row.blocks]
    blocks = []
    for start, end, columns in spans:
        allowed = torch.from_numpy(row.attends[start:end][:, columns]).to(device)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))
        neighbours = int(columns[-1]) - int(columns[0]) + 1 == len(columns)
        taken = slice(int(columns[0]), int(columns[-1]) + 1) if neighbours else torch.from_numpy(columns).to(device)
        blocks.append(AttendingBlock(start, end, taken, mask[None, None]))
    return blocks


def _attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    tree: list[AttendingBlock] | None = None,
    cached: bool = False,
    **options: Any,
) -> "tuple[torch.Tensor, None]":
    """As transformers calls an attention; `query`, `key`, `value`: (1, heads, n, width of a head).

    `cached`: the endpoint decodes with a cache of keys and values, of several rows.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cached:
        return _attend_cached(query, key, value, attention_mask, options.get("scaling")), None
    if tree is None:
        if attention_mask is not None and attention_mask.shape[-1] == 1 < key.shape[2]:
            raise ModelError(
                f"{type(module).__name__} is not handed the tree of a packed row, so models of its kind cannot be "
                "trained here. Take a base model of another architecture (Llama, Qwen2, Qwen3)."
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    parts = []
    for block in tree:
        if isinstance(block.columns, slice):
            keys, values = key[:, :, block.columns], value[:, :, block.columns]
        else:
            keys, values = key.index_select(2, block.columns), value.index_select(2, block.columns)
        queries = query[:, :, block.start : block.end]
        parts.append(sdpa_attention_forward(module, queries, keys, values, block.mask, **options)[0])
    return torch.cat(parts, dim=1), None


def _attend_cached(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", mask: "torch.Tensor | None", scale: float | None
) -> "torch.Tensor":
    """Attention of (rows, heads, n, width) over cached columns; `mask`: (rows, 1, n, columns).

    Heads that share keys and values stand in one block of queries, so that the cache is read as it lies: torch's own
    attention of a masked group copies it for each head.
    """
    import torch

    rows, heads, n, width = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(rows, key.shape[1], shared * n, width)
    if mask is not None and n > 1:
        mask = mask.repeat(1, 1, shared, 1)
    found = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return found.reshape(rows, heads, n, width).transpose(1, 2).contiguous()
