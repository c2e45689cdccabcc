#!/usr/bin/env bash
# A cluster on this host: start, status, stop, clean.
#   scripts/cluster.sh start [--nodes N] [--copies N] [--nbd] [--format] [--dir D] [--insecure]
# Ports of sheep i (from 0): client 7000+10i, peer 7001+10i, NBD 10809+i; the first ones come from SHEEPDOG_BASE_PORT and SHEEPDOG_BASE_NBD.
# `start` again with more nodes adds them. Ends only processes it started.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
action=${1:-help}
[ $# -gt 0 ] && shift
nodes=3 copies="" nbd="" format="" dir="${SHEEPDOG_DIR:-/tmp/sheepdog}" insecure=""
while [ $# -gt 0 ]; do
    case $1 in
        --nodes) nodes=$2; shift ;;
        --copies) copies=$2; shift ;;
        --dir) dir=$2; shift ;;
        --nbd) nbd=1 ;;
        --format) format=1 ;;
        --insecure) insecure=1 ;;
        --nfs | --http) echo "cluster.sh: $1 is not part of this release" >&2; exit 64 ;;
        *) echo "cluster.sh: unknown option $1" >&2; exit 64 ;;
    esac
    shift
done
bin="${SHEEPDOG_BIN:-$here/target/release}"
base="${SHEEPDOG_BASE_PORT:-7000}" base_nbd="${SHEEPDOG_BASE_NBD:-10809}"
export DOG_SECRET_FILE="$dir/secret"
[ -n "$insecure" ] || [ ! -e "$dir/insecure" ] || insecure=1
[ -z "$insecure" ] || unset DOG_SECRET_FILE
# Through whichever sheep answers.
dog() {
    local f all=""
    for f in "$dir"/*.pid; do
        [ -e "$f" ] && all+="${all:+,}127.0.0.1:$((base + 10 * $(basename "$f" .pid)))"
    done
    "$bin/dog" -a "${all:-127.0.0.1:$base}" "$@"
}

# The pid file may be older than the last boot, and a process that has ended is there until its parent asks: it must be a sheep, and no zombie.
alive() {
    local name state
    name=$(sed -n 's/^Name:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null)
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
    [ "$name" = sheep ] && [ "$state" != Z ] && [ "$state" != X ]
}
running() { [ -f "$dir/$1.pid" ] && alive "$(cat "$dir/$1.pid")"; }

start_one() {
    local i=$1 seeds=() secret=()
    for j in $(seq 0 $((nodes - 1))); do
        [ "$j" = "$i" ] || seeds+=(--seed "127.0.0.1:$((base + 1 + 10 * j))")
    done
    [ -n "$insecure" ] || secret=(--secret-file "$dir/secret")
    # shellcheck disable=SC2086
    setsid "$bin/sheep" --cluster-driver sdcluster --bind-addr 127.0.0.1 --port $((base + 10 * i)) \
        ${nbd:+--nbd --nbd-port $((base_nbd + i)) --nbd-socket "$dir/nbd$i.sock"} --zone "zone$i" \
        "${seeds[@]}" "${secret[@]}" "$dir/sheep$i" >>"$dir/sheep$i.log" 2>&1 </dev/null &
    echo $! >"$dir/$i.pid"
}

wait_for() { # description, command...
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ]; then
            echo "cluster.sh: $what did not happen within 60 s; see $dir/*.log" >&2
            "$@" >&2 || true
            exit 1
        fi
        sleep 0.2
    done
}

case $action in
start)
    for program in sheep dog; do
        [ -x "$bin/$program" ] || { echo "cluster.sh: no $program in $bin: cargo build --release -p sheep -p dog, or set SHEEPDOG_BIN" >&2; exit 1; }
    done
    mkdir -p "$dir"
    if [ -n "$insecure" ]; then touch "$dir/insecure"; elif [ ! -e "$dir/secret" ]; then "$bin/dog" secret new -f "$dir/secret"; fi
    for i in $(seq 0 $((nodes - 1))); do running "$i" || start_one "$i"; done
    wait_for "an answer of sheep 0" dog cluster info
    if [ -n "$format" ]; then
        if dog cluster info -o json 2>/dev/null | grep -q '"id": *""\|waiting'; then
            dog cluster format -c "${copies:-$((nodes < 3 ? nodes : 3))}" --nodes "$nodes"
        fi
    fi
    dog node list || echo "start with --format, or run: dog cluster format"
    cat <<EOF

$nodes sheep run in $dir. Next:
  export DOG_SECRET_FILE=$([ -n "$insecure" ] && echo "" || echo "$dir/secret") DOG_PORT=$base PATH=$bin:\$PATH
  dog vdi create disk 10G
  dog vdi list
  qemu-img info $([ -n "$nbd" ] && echo "nbd+unix:///disk?socket=$dir/nbd0.sock" || echo "nbd://127.0.0.1:$base_nbd/disk   # start with --nbd")
  scripts/cluster.sh stop      # data stays;  'clean' removes it
EOF
    ;;
status)
    for f in "$dir"/*.pid; do
        [ -e "$f" ] || { echo "no cluster in $dir"; exit 1; }
        i=$(basename "$f" .pid)
        if running "$i"; then echo "sheep $i: pid $(cat "$f")"; else echo "sheep $i: not running"; fi
    done
    dog node list
    ;;
stop | clean)
    for f in "$dir"/*.pid; do
        [ -e "$f" ] || continue
        i=$(basename "$f" .pid)
        if running "$i"; then
            pid=$(cat "$f")
            kill "$pid"
            for _ in $(seq 100); do alive "$pid" || break; sleep 0.1; done
            if alive "$pid"; then kill -9 "$pid" 2>/dev/null || true; fi
        fi
        rm -f "$f"
    done
    if [ "$action" = clean ]; then
        [ -d "$dir" ] || exit 0
        [ -d "$dir/sheep0" ] || { echo "cluster.sh: $dir does not look like a cluster's directory: not removed" >&2; exit 1; }
        rm -rf "$dir"
    fi
    ;;
*)
    sed -n '2,5p' "$0"
    exit 64
    ;;
esac
