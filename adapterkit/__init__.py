"""Composable adapters for pretrained vision transformers."""
