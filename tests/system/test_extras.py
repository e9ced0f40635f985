"""What is said of packages that are not installed."""

import pytest

from adapterkit.system.extras import MissingExtraError, require


def test_packages_that_are_there_are_asked_for_without_a_word():
    require("train", "torch", "numpy")


def test_a_missing_package_is_named_with_its_pip_command():
    with pytest.raises(
        MissingExtraError,
        match=r'this needs no_such_package, .*: pip install "adapterkit\[train\]"',
    ) as raised:
        require("train", "torch", "no_such_package")
    assert raised.value.name == "no_such_package"
