"""chatsvc: a private, offline, authenticated, audited, streaming chat service."""

__version__ = "0.1.0"
