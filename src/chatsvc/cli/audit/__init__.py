"""``chatsvc audit``, and the records of commands."""
