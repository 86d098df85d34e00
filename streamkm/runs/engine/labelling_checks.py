"""What is asked of a labelling: what it cannot do is refused, and what is doubtful is said."""

from __future__ import annotations

from streamkm.errors import ConfigError, Option

__all__ = ["check_search", "kernel_for", "type_notes_of"]

#: The kernel whose arithmetic ranks several centroids: plain torch.
RANKING_KERNEL = "reference"


def type_notes_of(dtype: str, fitted: str) -> list[str]:
    """Whether rows of `dtype` may have other units than those of `fitted`.

    Bytes are mostly pixels or codes, and a model of floats is one of pixels or codes that were
    scaled. Other integers are not told of: people write 1 for 1.0.
    """
    if dtype not in ("uint8", "int8") or "float" not in fitted:
        return []
    note = (
        f"the rows are {dtype}, and the centroids are of {fitted} rows: labels mean something only "
        "if both have the same units; scale these rows as those of the fit were, or read them "
        f"as {fitted}"
    )
    return [note]


def check_search(n_nearest: int, *, fast: bool) -> None:
    """Refuse to look for more, or less, than the cluster of each row where sizes have bounds."""
    several = (Option("nearest"), " and ", Option("second"), " go")
    asked = (Option("search", "fast"), " goes") if fast else several
    if fast or n_nearest > 1:
        raise ConfigError(
            *asked,
            " by distances alone, and this run has bounds on the sizes of its clusters, which "
            "also decide; leave it out",
        )


def kernel_for(n_nearest: int, asked: str, *, fast: bool) -> str:
    """The kernel that finds the `n_nearest` centroids of a row, as ``--kernel`` names it."""
    if n_nearest == 1:
        return asked
    if fast:
        raise ConfigError(
            Option("search", "fast"),
            " finds the nearest centroid alone; several are ranked by ",
            Option("search", "exact"),
        )
    if asked not in ("auto", RANKING_KERNEL):
        raise ConfigError(
            Option("kernel", asked),
            " finds the nearest centroid alone; several are ranked by ",
            Option("kernel", RANKING_KERNEL),
            ", as auto chooses",
        )
    return RANKING_KERNEL
