"""The tests run with shape checks on every function of adapterkit and of the compared networks that
promises shapes."""

import jaxtyping

from tests import shape_checks

jaxtyping.jaxtyped = shape_checks.where_shapes_are_promised(jaxtyping.jaxtyped)
jaxtyping.install_import_hook(["adapterkit", "benchmarks.models"], "tests.shape_checks.shapes_only")
