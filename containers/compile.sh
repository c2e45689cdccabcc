#!/bin/sh
# In the build stage of every image: compile packages of the tree in the working directory for $TARGETARCH, and put their programs into /out.
#   compile.sh PROGRAM...     (a package has the name of its program)
# Another architecture than the builder's is compiled across: emulated, a release build takes hours. /target is kept between builds and shared by the images.
set -eu
case "$(uname -m)" in
    x86_64) here=amd64 ;;
    aarch64) here=arm64 ;;
    *) here=$(uname -m) ;;
esac
case "${TARGETARCH:-$here}" in
    amd64) cpu=x86_64 gnu=x86-64 ;;
    arm64) cpu=aarch64 gnu=aarch64 ;;
    *) echo "compile.sh: no image for $TARGETARCH: amd64 and arm64 are known" >&2; exit 1 ;;
esac
target=$cpu-unknown-linux-gnu tools=""
if [ "${TARGETARCH:-$here}" != "$here" ]; then
    apt-get update
    apt-get install --yes --no-install-recommends "gcc-$gnu-linux-gnu" "libc6-dev-$([ $cpu = x86_64 ] && echo amd64 || echo arm64)-cross"
    rustup target add "$target"
    tools=$cpu-linux-gnu-
    name=$(echo "$target" | tr a-z- A-Z_)
    export "CARGO_TARGET_${name}_LINKER=${tools}gcc" "CC_$(echo "$target" | tr - _)=${tools}gcc"
fi
mkdir -p /out
for program in "$@"; do
    set -- "$@" --package "$program"
    shift
done
cargo build --locked --release --target "$target" --target-dir /target "$@"
# Line tables are three quarters of a program; backtraces keep the names of functions.
while [ $# -gt 0 ]; do
    "${tools}strip" --strip-debug -o "/out/$2" "/target/$target/release/$2"
    shift 2
done
