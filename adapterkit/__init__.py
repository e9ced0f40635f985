"""Composable adapters for pretrained vision transformers.

Each public name is imported when it is first used: `__init__.pyi`, beside this file, is the one
list of them and says where each is from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
