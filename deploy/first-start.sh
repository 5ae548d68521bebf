#!/bin/sh
# Run by the service `setup` of compose.yaml before each start: makes what is missing and changes nothing that exists.
set -eu

# The configuration, keys, the administrator and, if no model is active, the embedded one.
chatsvc quickstart --prepare-only

# The engine verifies models with the public key; it has no access to the private key that signs them.
public=/var/lib/chatsvc-engine/keys/model-signing.pub
cmp -s "$CHATSVC_HOME/keys/model-signing.pub" "$public" || install -m 0444 "$CHATSVC_HOME/keys/model-signing.pub" "$public"

umask 027
# nginx's files, made again so that they follow the allow list. The self-signed certificate is for a first try.
chatsvc config nginx --output /etc/chatsvc-nginx --server-name "${SERVER_NAME:-localhost}" \
    --certificate /etc/nginx/tls/chain.pem --certificate-key /etc/nginx/tls/key.pem \
    --self-signed /etc/chatsvc-nginx/tls --listen 8443 --redirect 8080
