"""``chatsvc model`` and ``chatsvc bench``."""
