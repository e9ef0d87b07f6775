"""Several documents in one row, each of which sees itself alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlsgd.core.types import SupervisedBatch


class Document(NamedTuple):
    """Tokens in sequence, the last `scored` of which count in the loss; never the first."""

    token_ids: list[int]
    scored: int


def first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of the documents of each row: longest first, each in the first row with room left.

    A document longer than `capacity` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def restarting_positions(starts: Tensor) -> Tensor:
    """Position of each token in its document.

    Args:
        starts: [B, T] bool, True at a document's first token; column 0 is True in every row.

    Returns:
        [B, T] long.
    """
    columns = torch.arange(starts.shape[1], device=starts.device).expand(starts.shape)
    return columns - torch.where(starts, columns, 0).cummax(1).values


def batch_of_rows(
    rows: list[list[Document]], *, pad_token_id: int, packed: bool, denominator: Tensor
) -> SupervisedBatch:
    """Rows of documents with padding on the right.

    Args:
        rows: the documents of each row, in order; one only where `packed` is False.
        pad_token_id: fills the rows up; in packed rows the padding is a document by itself.
        packed: whether the batch has position ids that keep documents apart.
        denominator: [] scored tokens of the optimizer step that the batch is a part of.
    """
    lengths = [sum(len(document.token_ids) for document in row) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask, completion_mask, starts = torch.zeros(3, *shape, dtype=torch.bool)
    starts[:, 0] = True
    for number, row in enumerate(rows):
        end = 0
        for document in row:
            assert packed or len(row) == 1
            assert document.scored < len(document.token_ids), "nothing comes before the first"
            start, end = end, end + len(document.token_ids)
            input_ids[number, start:end] = torch.tensor(document.token_ids)
            completion_mask[number, end - document.scored : end] = True
            starts[number, start] = True
        attention_mask[number, :end] = True
        starts[number, end : end + 1] = True
    return SupervisedBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        completion_mask=completion_mask,
        denominator=denominator,
        position_ids=restarting_positions(starts) if packed else None,
    )
