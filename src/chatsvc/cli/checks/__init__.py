"""``chatsvc doctor`` and ``chatsvc config``: what is looked at before a start."""
