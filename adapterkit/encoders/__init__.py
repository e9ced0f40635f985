"""Where the sites of vision transformers are: the view, and one file for each library.

Importing this package registers the families of all of them, without importing the libraries.
"""

from adapterkit.encoders import segment_anything, timm, transformers

__all__ = ["segment_anything", "timm", "transformers"]
