"""The tests run with shape checks on every function of adapterkit and of the compared networks."""

from jaxtyping import install_import_hook

from tests import shape_checks as shape_checks

install_import_hook(["adapterkit", "benchmarks.models"], "tests.shape_checks.shapes_only")
