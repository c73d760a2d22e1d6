"""bigmodel: every architecture is the same scaling experiment."""

__version__ = "0.1.0"
