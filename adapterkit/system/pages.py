"""Where errors send a reader who wants to know more."""

DOCUMENTATION = "docs"
"""Where the documentation's pages are: the folder of this name in the repository."""


def see(page: str, heading: str = "") -> str:
    """The end of a message that a page explains.

    Args:
        page: its path in the documentation, `own_data.md` say. The tests look for it.
        heading: the anchor of a heading there, `folders` say.

    Returns:
        "see docs/own_data.md#folders".
    """
    return f"see {DOCUMENTATION}/{page}{heading and '#'}{heading}"


def without_page(message: str) -> str:
    """A message up to where it names a page."""
    return message.partition(f"; see {DOCUMENTATION}/")[0]
