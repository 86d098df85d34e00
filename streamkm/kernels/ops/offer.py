"""Offers rows to a reservoir: weighted sampling without replacement from a stream.

Each offered row gets a key ``Exp(1) / weight``, and the rows of the least keys stay
(Efraimidis and Spirakis 2006). On the CPU the compiled extension, if there is one, offers
a batch in one call: during twenty small operations of torch the other cores would wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets

__all__ = ["OfferedRows", "Reservoir", "offer_", "rounding_share"]

#: Logarithms taken in one call, few enough that torch uses one thread for them.
SERIAL_ELEMENTS = 1024
#: What rounding does to a mean of equal rows: this many times the eps of float64, in which it is
#: computed.
MEAN_EPS = 16


class Reservoir(NamedTuple):
    """The R rows with the least keys so far, in the order of the keys; updated in place."""

    rows_RD: torch.Tensor
    """Zeros where there is no row."""
    keys_R: torch.Tensor
    """float64; infinite where there is no row."""
    labels_R: torch.Tensor
    """int64; 0 where there is no row."""
    weights_R: torch.Tensor
    """float64; of shape (0,) if rows have no weights."""


@dataclass(slots=True)  # Not frozen: that takes twice as long to make, for every batch.
class OfferedRows:
    """A batch of B rows, of which row `first` and every `stride`-th after it are offered."""

    x_ND: torch.Tensor
    positions_B: torch.Tensor | None
    """Positions of the batch's rows in `x_ND`, int32; None for all its rows."""
    sq_norms_B: torch.Tensor
    labels_B: torch.Tensor
    sq_distances_B: torch.Tensor
    """Squared distances by which rows are drawn."""
    weights_B: torch.Tensor | None
    """float64; they multiply the squared distances. None for 1."""
    skips_zeros: bool
    """Whether rows are normalised: rows of zeros then never enter."""
    first: int
    stride: int

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Copies of some rows of the batch."""
        if self.positions_B is not None:
            indices = self.positions_B.index_select(0, indices)
        return self.x_ND.index_select(0, indices)


def offer_(reservoir: Reservoir, offered: OfferedRows, uniform: torch.Tensor) -> None:
    """Offer rows to `reservoir`; `uniform` is a number from 0 to 1 for each, float64.

    Rows at distance 0, to the rounding of a mean, and rows of weight 0 never enter.
    """
    chances = offered.sq_distances_B[offered.first :: offered.stride].contiguous().double()
    if chances.shape[0] == 0:
        return
    if _can_compile(reservoir, offered):
        _compiled_(reservoir, offered, chances, uniform)
    else:
        _in_torch_(reservoir, offered, chances, uniform)


def rounding_share(dtype: torch.dtype, *, skips_zeros: bool) -> float:
    """Share of a row's squared length up to which its squared distance from a mean is rounding.

    A mean is computed in float64. Rounded to float32 it is the row itself, if all rows are
    equal; but a direction is not, since the length of a normalised row is rounded.
    """
    eps = MEAN_EPS * torch.finfo(torch.float64).eps
    if skips_zeros:
        eps = max(eps, torch.finfo(dtype).eps)
    return float(eps**2)


def _in_torch_(
    reservoir: Reservoir, offered: OfferedRows, chances: torch.Tensor, uniform: torch.Tensor
) -> None:
    """The rest of `offer_` in torch; `chances` are the squared distances of offered rows."""
    device, weights_B = chances.device, offered.weights_B
    numbers = torch.arange(offered.first, len(offered.labels_B), offered.stride, device=device)
    if weights_B is not None:
        chances = chances * weights_B[numbers]
    if device.type == "cpu":
        # Since -log(1 - u) >= u, other rows cannot come before the last row of the reservoir.
        # (On a GPU the host would wait for their number.)
        entering = (uniform < chances * reservoir.keys_R.max()).nonzero().squeeze(1)
        if len(entering) == 0:
            return
        numbers, uniform, chances = numbers[entering], uniform[entering], chances[entering]
    # On a CPU in parts so small that torch keeps to one thread: its other threads would spin
    # afterwards, on the cores that the next loop of the kernel needs.
    uniform = -uniform
    for part in uniform.split(SERIAL_ELEMENTS if device.type == "cpu" else max(len(uniform), 1)):
        part.log1p_()
    keys = -uniform / chances
    keys.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # Rounding leaves a row on its centroid at some distance; a second one there is no gain.
    sq_norms = offered.sq_norms_B[numbers]
    rounding = rounding_share(offered.x_ND.dtype, skips_zeros=offered.skips_zeros) * sq_norms
    keys.masked_fill_(offered.sq_distances_B[numbers] <= rounding, torch.inf)
    if offered.skips_zeros:
        keys.masked_fill_(sq_norms == 0, torch.inf)
    n_reservoir = len(reservoir.keys_R)
    n_drawn = min(n_reservoir, len(keys))
    drawn_keys, drawn = torch.topk(keys, n_drawn, largest=False)
    drawn = numbers[drawn]
    keys = torch.cat((reservoir.keys_R, drawn_keys))
    rows = torch.cat((reservoir.rows_RD, offered.take(drawn).to(reservoir.rows_RD.dtype)))
    labels = torch.cat((reservoir.labels_R, offered.labels_B[drawn]))
    kept_keys, kept = torch.topk(keys, n_reservoir, largest=False)
    reservoir.keys_R.copy_(kept_keys)
    # Places without a row hold zeros, whatever row came there with its infinite key.
    vacant_R = kept_keys.isinf()
    kept_rows = rows.index_select(0, kept).masked_fill_(vacant_R[:, None], 0)
    reservoir.rows_RD.copy_(kept_rows)
    reservoir.labels_R.copy_(labels.index_select(0, kept).masked_fill_(vacant_R, 0))
    if weights_B is not None:
        weights = torch.cat((reservoir.weights_R, weights_B[drawn]))[kept]
        reservoir.weights_R.copy_(weights.masked_fill_(vacant_R, 0))


def _can_compile(reservoir: Reservoir, offered: OfferedRows) -> bool:
    """Whether these may go to the extension, which checks nothing."""
    x_ND, rows_RD, positions_B = offered.x_ND, reservoir.rows_RD, offered.positions_B
    n_rows = (x_ND if positions_B is None else positions_B).shape[0]
    tensors = (x_ND, rows_RD, offered.sq_norms_B, offered.labels_B, reservoir.keys_R)
    return (
        bool(instruction_sets())
        and all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors)
        and {x_ND.dtype, rows_RD.dtype, offered.sq_norms_B.dtype}
        in ({torch.float32}, {torch.float64})
        and offered.labels_B.dtype == torch.int64
        and offered.labels_B.shape[0] == offered.sq_norms_B.shape[0] == n_rows
        and can_weigh(offered.weights_B, n_rows)
        and (offered.weights_B is None) == (reservoir.weights_R.shape[0] == 0)
    )


def _compiled_(
    reservoir: Reservoir, offered: OfferedRows, chances: torch.Tensor, uniform: torch.Tensor
) -> None:
    """The rest of `offer_` in one call of the extension."""
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
        rounding_share(offered.x_ND.dtype, skips_zeros=offered.skips_zeros),
        offered.first,
        offered.stride,
        uniform.shape[0],
        *x_ND.shape,
        reservoir.rows_RD.shape[0],
        offered.skips_zeros,
    )
