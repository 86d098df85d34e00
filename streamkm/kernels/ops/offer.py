"""Rows that enter a reservoir: weighted sampling without replacement from a stream.

Each row offered gets a key ``Exp(1) / weight``, and the rows of the least keys stay
(Efraimidis and Spirakis 2006). On the CPU the compiled extension takes a batch in one call,
where it was built: twenty small operations of torch kept the other cores waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets

__all__ = ["DRAWN_PER_BATCH", "ROUNDING_EPS", "OfferedRows", "Reservoir", "offer_"]

#: Rows of one batch that may enter the reservoir, at most: enough for variety,
#: few enough that choosing them costs nothing beside the assignment.
DRAWN_PER_BATCH = 32
#: Logarithms that torch takes in one thread.
SERIAL_ELEMENTS = 1024
#: A row lies on its centroid if the squared distance is no more than this times
#: the dtype's eps times the row's squared length.
ROUNDING_EPS = 16


class Reservoir(NamedTuple):
    """The R rows with the least keys so far, in the order of the keys; updated in place."""

    rows_RD: torch.Tensor
    """Zeros where there is no row."""
    keys_R: torch.Tensor
    """Float64; infinite where there is no row."""
    labels_R: torch.Tensor
    """Int64; 0 where there is no row."""
    weights_R: torch.Tensor
    """Float64; of shape (0,) where rows have no weights."""


@dataclass(frozen=True, slots=True)
class OfferedRows:
    """A batch of B rows, every `stride`-th of which is offered from number `first` on."""

    x_ND: torch.Tensor
    positions_B: torch.Tensor | None
    """Which rows of `x_ND` the batch is made of, int32; None for all."""
    sq_norms_B: torch.Tensor
    labels_B: torch.Tensor
    sq_distances_B: torch.Tensor
    """Squared distances by which rows are drawn."""
    weights_B: torch.Tensor | None
    """Float64; a row counts as often as it weighs."""
    skips_zeros: bool
    """Whether rows of zeros are never taken."""
    first: int
    stride: int

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Copies of some rows of the batch."""
        if self.positions_B is not None:
            indices = self.positions_B.index_select(0, indices)
        return self.x_ND.index_select(0, indices)


def offer_(reservoir: Reservoir, offered: OfferedRows, generator: torch.Generator) -> None:
    """Offer rows to `reservoir`; at most `DRAWN_PER_BATCH` of them enter.

    Rows at distance 0, to rounding, are never taken, nor are those of weight 0.
    """
    chances = offered.sq_distances_B[offered.first :: offered.stride].contiguous().double()
    uniform = torch.rand(
        len(chances), dtype=torch.float64, device=chances.device, generator=generator
    )
    if _can_compile(reservoir, offered):
        _compiled_(reservoir, offered, chances, uniform)
    else:
        _in_torch_(reservoir, offered, chances, uniform)


def _in_torch_(
    reservoir: Reservoir, offered: OfferedRows, chances: torch.Tensor, uniform: torch.Tensor
) -> None:
    """The rest of `offer_`; `chances` are the squared distances of the rows on offer."""
    device, weights_B = chances.device, offered.weights_B
    numbers = torch.arange(offered.first, len(offered.labels_B), offered.stride, device=device)
    if weights_B is not None:
        chances = chances * weights_B[numbers]
    if device.type == "cpu":
        # Of -log(1 - u) >= u: the others cannot come before the last row of the reservoir. To
        # wait for their number costs nothing here.
        entering = (uniform < chances * reservoir.keys_R.max()).nonzero().squeeze(1)
        if len(entering) == 0:
            return
        numbers, uniform, chances = numbers[entering], uniform[entering], chances[entering]
    # In parts that torch does not share among its threads: those then wait for more, and hold
    # the cores that the kernel's next loop could have.
    for part in uniform.neg_().split(SERIAL_ELEMENTS):
        part.log1p_()
    keys = -uniform / chances
    keys.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # Of a row on its centroid rounding leaves a distance; placing another there is no gain.
    sq_norms = offered.sq_norms_B[numbers]
    rounding = ROUNDING_EPS * torch.finfo(sq_norms.dtype).eps * sq_norms
    keys.masked_fill_(offered.sq_distances_B[numbers] <= rounding, torch.inf)
    if offered.skips_zeros:
        keys.masked_fill_(sq_norms == 0, torch.inf)
    n_reservoir = len(reservoir.keys_R)
    n_drawn = min(DRAWN_PER_BATCH, n_reservoir, len(keys))
    drawn_keys, drawn = torch.topk(keys, n_drawn, largest=False)
    drawn = numbers[drawn]
    keys = torch.cat((reservoir.keys_R, drawn_keys))
    rows = torch.cat((reservoir.rows_RD, offered.take(drawn).to(reservoir.rows_RD.dtype)))
    labels = torch.cat((reservoir.labels_R, offered.labels_B[drawn]))
    kept_keys, kept = torch.topk(keys, n_reservoir, largest=False)
    reservoir.keys_R.copy_(kept_keys)
    # Places without a row hold zeros, whichever of the infinite keys is there.
    vacant_R = kept_keys.isinf()
    kept_rows = rows.index_select(0, kept).masked_fill_(vacant_R[:, None], 0)
    reservoir.rows_RD.copy_(kept_rows)
    reservoir.labels_R.copy_(labels.index_select(0, kept).masked_fill_(vacant_R, 0))
    if weights_B is not None:
        weights = torch.cat((reservoir.weights_R, weights_B[drawn]))[kept]
        reservoir.weights_R.copy_(weights.masked_fill_(vacant_R, 0))


def _can_compile(reservoir: Reservoir, offered: OfferedRows) -> bool:
    """Whether the extension, which sees addresses only, takes these."""
    x_ND, rows_RD, positions_B = offered.x_ND, reservoir.rows_RD, offered.positions_B
    n_rows = len(x_ND if positions_B is None else positions_B)
    tensors = (x_ND, rows_RD, offered.sq_norms_B, offered.labels_B, reservoir.keys_R)
    return (
        bool(instruction_sets())
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        and {x_ND.dtype, rows_RD.dtype, offered.sq_norms_B.dtype}
        in ({torch.float32}, {torch.float64})
        and offered.labels_B.dtype == torch.int64
        and len(offered.labels_B) == len(offered.sq_norms_B) == n_rows
        and can_weigh(offered.weights_B, len(offered.labels_B))
        and (offered.weights_B is None) == (len(reservoir.weights_R) == 0)
    )


def _compiled_(
    reservoir: Reservoir, offered: OfferedRows, chances: torch.Tensor, uniform: torch.Tensor
) -> None:
    """The rest of `offer_`, in one call."""
    x_ND, weights_B = offered.x_ND, offered.weights_B
    weights_B = None if weights_B is None else weights_B.contiguous()
    instruction_sets()[0].functions.offer(
        x_ND.dtype == torch.float64,
        uniform.data_ptr(),
        chances.data_ptr(),
        offered.labels_B.data_ptr(),
        offered.sq_norms_B.data_ptr(),
        address(weights_B),
        address(offered.positions_B),
        x_ND.data_ptr(),
        reservoir.rows_RD.data_ptr(),
        reservoir.keys_R.data_ptr(),
        reservoir.labels_R.data_ptr(),
        address(None if weights_B is None else reservoir.weights_R),
        ROUNDING_EPS * torch.finfo(x_ND.dtype).eps,
        offered.first,
        offered.stride,
        len(uniform),
        *x_ND.shape,
        len(reservoir.rows_RD),
        DRAWN_PER_BATCH,
        offered.skips_zeros,
    )
