"""Accounts: names, roles, passwords, logging in."""
