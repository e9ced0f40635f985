"""Data sets as they lie on disk. Importing this package registers the formats that come with it."""

from adapterkit.data.collections import (
    annotated,
    camus,
    camus_sequences,
    coco,
    folders,
    nnunet,
    scans,
    sequences,
    tables,
    us30k,
)
from adapterkit.data.collections.collection import (
    Collection,
    collection_format,
    format_names,
    open_collection,
)

__all__ = [
    "Collection",
    "annotated",
    "camus",
    "camus_sequences",
    "coco",
    "collection_format",
    "folders",
    "format_names",
    "nnunet",
    "open_collection",
    "scans",
    "sequences",
    "tables",
    "us30k",
]
