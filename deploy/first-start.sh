#!/bin/sh
# What compose.yaml's service `setup` does before each start: make what is missing, change nothing that is there.
set -eu

# Configuration, keys, the administrator and, where no model is, the embedded one.
chatsvc quickstart --prepare-only

# The engine verifies models with the public half of the key that signed them; it never sees the private half.
public=/var/lib/chatsvc-engine/keys/model-signing.pub
cmp -s "$CHATSVC_HOME/keys/model-signing.pub" "$public" || install -m 0444 "$CHATSVC_HOME/keys/model-signing.pub" "$public"

umask 027
# nginx's files follow the allow list. The certificate is for a first try; put your own in its place.
chatsvc config nginx --output /etc/chatsvc-nginx --server-name "${SERVER_NAME:-localhost}" \
    --certificate /etc/nginx/tls/chain.pem --certificate-key /etc/nginx/tls/key.pem \
    --self-signed /etc/chatsvc-nginx/tls --listen 8443 --redirect 8080
