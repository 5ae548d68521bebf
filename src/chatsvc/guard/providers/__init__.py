"""External authorities for accounts: LDAP directories and OpenID providers."""
