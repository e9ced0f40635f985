"""The networks that promptable systems are compared with, written from their papers."""
