"""The commands of `adapterkit`, one function in each file; `__main__.py` lists them.

A command imports what it works with when it runs: its help is there at once.
"""
