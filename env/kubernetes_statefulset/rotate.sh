#!/bin/sh
# Rotates the operations log as env/balance.logrotate does on a host: renames it and sends the replica SIGHUP, and never copies
# or truncates. The file rotated last stays uncompressed, since the replica looks in it for its last lines when it starts.
set -eu

log=${OPERATIONS_LOG:-/var/log/balance/operations.log}
program=${PROGRAM:-/usr/local/bin/balance}
umask 077
# A rotation that has begun is finished.
ending=''
trap 'ending=yes' TERM

while :; do
    # In the background, so that SIGTERM does not wait for it.
    sleep "$ROTATE_SECONDS" &
    wait $! || :
    [ -z "$ending" ] || exit 0
    [ -s "$log" ] || continue
    for rotated in "$log"-*; do
        case $rotated in
            *.gz | *-\*) ;;
            *) gzip "$rotated" ;;
        esac
    done
    new=$log-$(date -u +%Y%m%dT%H%M%S.%NZ)
    # A clock that was set back must not make it replace a file.
    [ ! -e "$new" ] && [ ! -e "$new.gz" ] || continue
    mv "$log" "$new"
    for process in /proc/[0-9]*; do
        # It may have ended by now.
        if [ "$(cat "$process/cmdline" 2>/dev/null | tr '\0' ' ')" = "$program serve " ]; then
            kill -HUP "${process#/proc/}"
        fi
    done
    find "$(dirname "$log")" -name "$(basename "$log")-*.gz" -mtime "+$KEEP_DAYS" -delete
done
