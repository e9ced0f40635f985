"""The commands of `adapterkit`, a file for each."""
