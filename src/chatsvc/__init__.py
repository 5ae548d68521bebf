"""chatsvc: a private, offline, authenticated, audited, streaming chat service."""
