"""Runners: one inference library each, behind the protocol in :mod:`chatsvc.engine.runners.base`."""
