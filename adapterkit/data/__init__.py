"""Images and masks, read from disk or made."""
