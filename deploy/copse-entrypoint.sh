#!/bin/sh
# What a container does: `node` (the default) creates a node on an empty volume and runs it; anything else is
# run as it is, so that the client can be used from the same image.
#
#   COPSE_LISTEN, COPSE_GRPC   where to listen, if not on all addresses, ports 7400 and 7401
#   COPSE_ADVERTISE            the address others are told, if not the container's own
#   COPSE_CAPACITY             what the node offers, default 10GiB
#   COPSE_ZONE                 what fails together with this node
#   COPSE_JOIN                 a token of the network to join
#   COPSE_JOIN_FILE            the same, in a file; waited for
#   COPSE_TOKEN_FILE           where to write this node's own token
#
# All but COPSE_TOKEN_FILE count only once, when the node is created; afterwards its config file does.
set -eu

[ "${1:-node}" = node ] || exec "$@"

dir=${COPSE_DIR:-/var/lib/copse/node}
if [ ! -e "$dir/copse-node.toml" ]; then
    set -- --dir "$dir" --capacity "${COPSE_CAPACITY:-10GiB}"
    [ -z "${COPSE_LISTEN:-}" ] || set -- "$@" --listen "$COPSE_LISTEN"
    [ -z "${COPSE_GRPC:-}" ] || set -- "$@" --grpc "$COPSE_GRPC"
    [ -z "${COPSE_ADVERTISE:-}" ] || set -- "$@" --advertise "$COPSE_ADVERTISE"
    [ -z "${COPSE_ZONE:-}" ] || set -- "$@" --zone "$COPSE_ZONE"
    if [ -n "${COPSE_JOIN_FILE:-}" ]; then
        waited=0
        until [ -s "$COPSE_JOIN_FILE" ]; do
            [ "$waited" -lt 60 ] || { echo "waited 60 s in vain for a token in $COPSE_JOIN_FILE" >&2; exit 1; }
            sleep 1
            waited=$((waited + 1))
        done
        COPSE_JOIN=$(cat "$COPSE_JOIN_FILE")
    fi
    [ -z "${COPSE_JOIN:-}" ] || set -- "$@" --join "$COPSE_JOIN"
    copse-node init "$@"
fi
if [ -n "${COPSE_TOKEN_FILE:-}" ]; then
    # Renamed into place: whoever waits for it reads all of it.
    copse-node token --dir "$dir" >"$COPSE_TOKEN_FILE.new"
    mv "$COPSE_TOKEN_FILE.new" "$COPSE_TOKEN_FILE"
fi
exec copse-node run --dir "$dir"
