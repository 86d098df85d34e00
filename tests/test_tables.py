"""Every name in the tables leads to its class."""

from __future__ import annotations

from streamkm.tables import ALGORITHMS, KERNELS, load_class


# Breaks when a kernel can be named on the command line and not be made.
def test_every_name_has_a_class_of_that_name() -> None:
    assert {name: load_class(entry.home).name for name, entry in KERNELS.items()} == {
        name: name for name in KERNELS
    }


# Breaks when a choice on the command line can be named and not be made.
def test_every_algorithm_and_its_estimator_can_be_loaded() -> None:
    for name, entry in ALGORITHMS.items():
        for home in (entry.home, entry.estimator):
            assert load_class(home).__name__ == home.partition(":")[2], name
