#!/usr/bin/env bash
# From nothing to a three-sheep cluster on this host with a volume on NBD. Installs what it needs and says what.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$HOME/.cargo/bin:$PATH"
echo "demo: building (release)"
cargo build --release -p sheep -p dog
dir="${SHEEPDOG_DIR:-/tmp/sheepdog}"
scripts/cluster.sh start --nbd --format --dir "$dir"
export DOG_SECRET_FILE="$dir/secret"
if ! target/release/dog vdi list -o raw | grep -q '^disk\b\|\bdisk\b'; then
    target/release/dog vdi create disk 1G
fi
qemu-img info "nbd+unix:///disk?socket=$dir/nbd0.sock"
echo "demo: the volume \"disk\" is at nbd+unix:///disk?socket=$dir/nbd0.sock (and nbds on port 10809)"
