"""Prepares rows of a window: gathers, widens and scales them, with their squared lengths.

On the CPU the compiled extension, if there is one, does it in one read of the rows.
Otherwise it takes a few operations of torch.
"""

from __future__ import annotations

import torch

from streamkm.kernels.extension import (
    InstructionSet,
    address,
    instruction_sets,
    n_threads_for,
    stored_types,
)

__all__ = ["gather"]

#: Elements that are widened at once for the lengths of rows that stay as stored: 4 MiB.
TILE_ELEMENTS = 1 << 20


def gather(
    x_ND: torch.Tensor,
    rows: torch.Tensor | slice,
    workspace_BD: torch.Tensor,
    shift_D: torch.Tensor | None = None,
    factor_D: torch.Tensor | None = None,
    *,
    must_copy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(rows - shift) * factor`` in the dtype of the workspace, and squared lengths.

    If rows are not scaled, the workspace may have the stored dtype.

    Parameters
    ----------
    x_ND : Tensor of shape (N, D)
        Rows in their stored dtype.
    rows : slice or integer Tensor of shape (B,)
        Positions of the rows to prepare.
    workspace_BD : Tensor of shape (B or more, D)
        Memory for them, unless they can be used where they lie.
    shift_D, factor_D : Tensor of shape (D,) and the dtype of the workspace, or both None
        The scaling; None for none.
    must_copy : bool
        Whether the rows go into the workspace in any case, because they must not be changed.

    Returns
    -------
    x_BD, sq_norms_B : Tensor of shapes (B, D) and (B,)
        The rows, in the workspace or in `x_ND` itself, and their squared lengths.
    """
    if isinstance(rows, slice):
        x_ND = x_ND[rows]
    n_rows = len(x_ND) if isinstance(rows, slice) else len(rows)
    is_ready = isinstance(rows, slice) and x_ND.dtype == workspace_BD.dtype and shift_D is None
    lies_ready = is_ready and not must_copy
    x_BD = x_ND if lies_ready else workspace_BD[:n_rows]
    if x_BD.shape != (n_rows, x_ND.shape[1]):
        raise IndexError(
            f"{n_rows} rows of {x_ND.shape[1]} features do not fit a workspace of "
            f"{tuple(workspace_BD.shape)}"
        )
    positions_B = None if isinstance(rows, slice) else rows.int().contiguous()
    available = instruction_sets()
    widens = workspace_BD.dtype in (torch.float32, torch.float64)
    if x_ND.device.type == "cpu" and available and x_ND.is_contiguous() and widens:
        return x_BD, _gather_compiled(available[0], x_ND, positions_B, x_BD, shift_D, factor_D)
    if not lies_ready:
        if positions_B is None:
            x_BD.copy_(x_ND)
        elif x_ND.dtype == x_BD.dtype:
            torch.index_select(x_ND, 0, positions_B, out=x_BD)
        else:
            x_BD.copy_(x_ND.index_select(0, positions_B))
    if shift_D is not None and factor_D is not None:
        x_BD.sub_(shift_D).mul_(factor_D)
    return x_BD, _sq_norms(x_BD)


def _sq_norms(x_BD: torch.Tensor) -> torch.Tensor:
    """Squared lengths of rows of any dtype, in float32, or float64 for rows of float64."""
    if x_BD.is_floating_point():
        dtype = torch.promote_types(x_BD.dtype, torch.float32)
        norms_B: torch.Tensor = torch.linalg.vector_norm(x_BD, dim=1, dtype=dtype)
        return norms_B.square_()
    # Tile by tile: torch has no sum of squares of integers, and widening all rows takes memory.
    sq_norms_B = torch.empty(len(x_BD), dtype=torch.float32, device=x_BD.device)
    tile_rows = max(TILE_ELEMENTS // max(x_BD.shape[1], 1), 1)
    for start in range(0, len(x_BD), tile_rows):
        tile = slice(start, start + tile_rows)
        sq_norms_B[tile] = x_BD[tile].float().square_().sum(dim=1)
    return sq_norms_B


def _gather_compiled(
    instruction_set: InstructionSet,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    x_BD: torch.Tensor,
    shift_D: torch.Tensor | None,
    factor_D: torch.Tensor | None,
) -> torch.Tensor:
    """Fill `x_BD`, which may be `x_ND` itself, and return the squared lengths."""
    sq_norms_B = x_BD.new_empty(len(x_BD))
    instruction_set.functions.gather(
        instruction_set.number,
        x_BD.dtype == torch.float64,
        stored_types()[x_ND.dtype],
        x_ND.data_ptr(),
        address(positions_B),
        address(shift_D),
        address(factor_D),
        x_BD.data_ptr(),
        sq_norms_B.data_ptr(),
        len(x_ND),
        *x_BD.shape,
        n_threads_for(x_BD.numel()),
    )
    return sq_norms_B
