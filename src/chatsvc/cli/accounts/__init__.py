"""``chatsvc user``, ``key`` and ``token``."""
