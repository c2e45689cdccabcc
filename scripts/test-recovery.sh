#!/usr/bin/env bash
# Recovery on this host, step by step: write over NBD, kill -9 a node, read, add a node, rebalance, verify.
#   scripts/test-recovery.sh [--keep]        --keep: the cluster stays up afterwards
# Uses the binaries in $SHEEPDOG_BIN (default target/release) and a directory of its own. Exits 0 when everything held.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
keep=""
case ${1:-} in
    "") ;;
    --keep) keep=1 ;;
    *) sed -n '2,4p' "$0"; exit 64 ;;
esac
for tool in qemu-img qemu-io cmp; do
    command -v $tool >/dev/null || { echo "test-recovery: $tool not found: run scripts/setup.sh" >&2; exit 1; }
done
export SHEEPDOG_BIN="${SHEEPDOG_BIN:-$here/target/release}"
[ -x "$SHEEPDOG_BIN/sheep" ] && [ -x "$SHEEPDOG_BIN/dog" ] || {
    echo "test-recovery: no sheep and dog in $SHEEPDOG_BIN: cargo build --release -p sheep -p dog" >&2
    exit 1
}
dir=$(mktemp -d "${TMPDIR:-/tmp}/sheepdog-recovery.XXXXXX")
export SHEEPDOG_BASE_PORT="${SHEEPDOG_BASE_PORT:-7300}" SHEEPDOG_BASE_NBD="${SHEEPDOG_BASE_NBD:-11309}"
export DOG_SECRET_FILE="$dir/secret"
cluster() { "$here/scripts/cluster.sh" "$@" --dir "$dir"; }
# Sheep 1 dies on the way, so ask another one.
dog() { "$SHEEPDOG_BIN/dog" -a 127.0.0.1 -p "$SHEEPDOG_BASE_PORT" "$@"; }
uri() { echo "nbd+unix:///disk?socket=$dir/nbd$1.sock"; }
finish() {
    local rc=$?
    if [ -n "$keep" ]; then
        echo "test-recovery: kept: SHEEPDOG_BASE_PORT=$SHEEPDOG_BASE_PORT scripts/cluster.sh status|clean --dir $dir"
    elif [ $rc = 0 ]; then
        cluster clean
    else
        cluster stop
        echo "test-recovery: FAILED, logs in $dir" >&2
    fi
    exit $rc
}
trap finish EXIT
step() { printf '== %s\n' "$*"; }
until_ok() { # seconds, description, command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge "$end" ]; then
            echo "test-recovery: $what: not in time" >&2
            "$@" >&2 || true
            return 1
        fi
        sleep 0.2
    done
}
status_is() { [ "$(dog cluster info -o raw | awk '$1 == "status" {print $2}')" = "$1" ]; }
up_are() { [ "$(dog cluster info -o raw | awk '$1 == "nodes_up" {print $2}')" = "$1" ]; }
objects_on() { [ "$(dog node info -o raw "127.0.0.1:$((SHEEPDOG_BASE_PORT + 10 * $1))" | awk '$1 == "used" {print $2}')" -gt 0 ]; }

step "a cluster of 3 sheep, 2 copies"
cluster start --nodes 3 --copies 2 --nbd --format >/dev/null
until_ok 60 "all sheep up" up_are 3
until_ok 60 "cluster ok" status_is ok

step "write 64 MiB over NBD"
head -c 64M /dev/urandom >"$dir/data.img"
dog vdi create disk 64M
qemu-img convert -n -f raw -O raw "$dir/data.img" "$(uri 0)"

step "kill -9 sheep 1 and read everything through the others"
kill -9 "$(cat "$dir/1.pid")"
for i in 0 2; do qemu-img compare -f raw -F raw "$dir/data.img" "$(uri $i)"; done
until_ok 30 "sheep 1 is noticed to be down" up_are 2

step "write on without it"
qemu-io -f raw -c 'write -q -P 0x5a 8M 4M' "$(uri 2)"
printf '\x5a%.0s' {1..1024} >"$dir/k"
for _ in $(seq 4096); do cat "$dir/k"; done | dd of="$dir/data.img" bs=1M seek=8 conv=notrunc status=none iflag=fullblock

step "sheep 1 returns, a fourth one joins"
cluster start --nodes 4 --copies 2 --nbd >/dev/null
until_ok 60 "4 sheep up" up_are 4
dog node recovery --progress
until_ok 120 "cluster ok" status_is ok
until_ok 120 "the new sheep has its share" objects_on 3

step "verify: contents through all gateways, all copies equal"
for i in 0 1 2 3; do qemu-img compare -f raw -F raw "$dir/data.img" "$(uri $i)"; done
dog vdi check disk
dog node info
echo "test-recovery: everything held"
