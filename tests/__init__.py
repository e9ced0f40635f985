"""The tests run with shape checks on every function of adapterkit."""

from jaxtyping import install_import_hook

from tests import shape_checks as shape_checks

install_import_hook("adapterkit", "tests.shape_checks.shapes_only")
