"""Authorities that vouch for people: LDAP directories and OpenID providers."""
