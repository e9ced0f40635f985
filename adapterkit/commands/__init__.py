"""The commands of `adapterkit`, one function in each file; `cli.py` lists them."""
