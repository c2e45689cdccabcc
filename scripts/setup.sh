#!/usr/bin/env bash
# Installs what building and testing Sheepdog needs on Debian or Ubuntu, and says so. Does nothing where everything is there.
set -euo pipefail

packages=(build-essential pkg-config curl ca-certificates git qemu-utils libnbd-bin nbd-client fio e2fsprogs xfsprogs cryptsetup-bin iproute2 gdisk)
programs=(cc pkg-config curl git qemu-img qemu-io nbdcopy nbdinfo nbd-client fio mkfs.ext4 mkfs.xfs cryptsetup debugfs ip)
for option in "$@"; do
    case $option in
        # What the core scenarios of `cargo xtask e2e` need, too; --e2e adds what those with a QEMU machine do.
        --k8s | --e2e)
            packages+=(python3-pip python3-venv iptables nftables)
            programs+=(python3 iptables nft)
            if [ "$option" = --e2e ]; then
                packages+=(qemu-system-x86 debootstrap)
                programs+=(qemu-system-x86_64 debootstrap)
            fi
            ;;
        # What `cargo xtask bench` needs, too; --ceph adds the largest of the peers.
        --bench) packages+=(nbdkit) programs+=(nbdkit qemu-nbd) ;;
        --ceph) packages+=(ceph-osd ceph-mon ceph-common) programs+=(ceph-osd ceph-mon monmaptool ceph rbd) ;;
        *) echo "setup: unknown option $option (--e2e, --k8s, --bench, --ceph)" >&2; exit 64 ;;
    esac
done
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"

missing=()
for p in "${programs[@]}"; do
    command -v "$p" >/dev/null || [ -x "/usr/sbin/$p" ] || [ -x "/sbin/$p" ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: not found: ${missing[*]}"
    echo "setup: installing with apt: ${packages[*]}"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
fi
if ! command -v cargo >/dev/null; then
    echo "setup: installing Rust with rustup (into ~/.cargo and ~/.rustup)"
    curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
    export PATH="$HOME/.cargo/bin:$PATH"
fi
# The version in rust-toolchain.toml, with its components.
cargo --version >/dev/null
# An S3 service for the scenario `backup`.
case " $* " in
    *" --e2e "*)
        moto="${XDG_CACHE_HOME:-$HOME/.cache}/sheepdog-e2e/moto"
        if [ ! -x "$moto/bin/moto_server" ]; then
            echo "setup: installing moto (an S3 service for tests) into $moto"
            rm -rf "$moto"
            python3 -m venv "$moto"
            "$moto/bin/pip" install --quiet 'moto[server]==5.*' boto3
        fi
        ;;
esac
echo "setup: ready ($(cargo --version))"
