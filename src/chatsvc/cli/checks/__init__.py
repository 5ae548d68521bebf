"""``chatsvc doctor`` and ``chatsvc config``: checks of the machine, the installation and the configuration."""
