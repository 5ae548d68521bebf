"""``chatsvc serve``, ``engine``, ``quickstart``, ``chat`` and ``bundle``."""
