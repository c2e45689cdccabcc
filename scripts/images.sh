#!/usr/bin/env bash
# The three container images of this tree, sheep, operator and csi, with docker (buildx), podman or buildah.
#   scripts/images.sh [--engine docker|podman|buildah] [--prefix P] [--tag T] [--platform LIST] [--save DIR] [--push] [IMAGE...] [-- OPTION...]
# Names are P/IMAGE:T; without --prefix and --tag those that the chart expects, docker.io/sheepdog/IMAGE:VERSION. LIST is, for example, linux/amd64,linux/arm64: programs are
# compiled across, not emulated, but installing csi's packages for another machine needs its emulation (binfmt). --save writes DIR/IMAGE.tar, which `ctr images import`,
# `docker load` and `podman load` take. What follows -- goes to the engine's build, for example --build-arg=http_proxy=...
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "images.sh: $*" >&2; exit 1; }
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit "$1"; }

engine="" prefix=docker.io/sheepdog platform="" save="" push="" images=() more=()
tag=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
while [ $# -gt 0 ]; do
    case $1 in
        --engine | --prefix | --tag | --platform | --save)
            [ $# -ge 2 ] || die "$1 needs a value"
            declare "${1#--}=$2"
            shift ;;
        --push) push=1 ;;
        -h | --help) usage 0 ;;
        --) shift; more=("$@"); break ;;
        sheep | operator | csi) images+=("$1") ;;
        *) echo "images.sh: unknown argument $1" >&2; usage 64 >&2 ;;
    esac
    shift
done
[ ${#images[@]} -gt 0 ] || images=(sheep operator csi)
if [ -z "$engine" ]; then
    for e in docker podman buildah; do
        # A docker client without a daemon builds nothing.
        if command -v $e >/dev/null && { [ $e != docker ] || docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1; }; then engine=$e; break; fi
    done
    [ -n "$engine" ] || die "no docker with buildx and a daemon, no podman, no buildah: install one of them"
fi
several="" && [[ $platform == *,* ]] && several=1
[ -z "$several" ] || [ -z "$save" ] || die "--save takes one platform: an archive has one image"

# What an image is of, as registries show it.
labels=(--label "org.opencontainers.image.version=$tag" --label org.opencontainers.image.source=https://github.com/sheepdog/sheepdog --label org.opencontainers.image.licenses=Apache-2.0)
if revision=$(git rev-parse HEAD 2>/dev/null); then
    [ -z "$(git status --porcelain 2>/dev/null)" ] || revision+=-modified
    labels+=(--label "org.opencontainers.image.revision=$revision")
fi

for image in "${images[@]}"; do
    name=$prefix/$image:$tag
    build=(--file "containers/$image.Containerfile" "${labels[@]}" ${platform:+--platform "$platform"} ${more[@]+"${more[@]}"})
    echo "images.sh: $engine builds $name ${platform:+for $platform}" >&2
    case $engine in
        docker)
            [ -z "$several" ] || [ -n "$push" ] || die "docker keeps images of several platforms in a registry only: add --push"
            docker buildx build "${build[@]}" --tag "$name" "$([ -n "$several" ] && echo --push || echo --load)" .
            [ -z "$push" ] || [ -n "$several" ] || docker push "$name" ;;
        podman | buildah)
            if [ -n "$several" ]; then
                $engine manifest rm "$name" >/dev/null 2>&1 || true
                $engine build "${build[@]}" --manifest "$name" .
                [ -z "$push" ] || $engine manifest push --all "$name" "docker://$name"
            else
                $engine build "${build[@]}" --tag "$name" .
                [ -z "$push" ] || $engine push "$name"
            fi ;;
        *) die "unknown engine $engine" ;;
    esac
    if [ -n "$save" ]; then
        mkdir -p "$save"
        rm -f "$save/$image.tar"
        case $engine in
            docker) docker save --output "$save/$image.tar" "$name" ;;
            *) $engine push --quiet "$name" "docker-archive:$save/$image.tar:$name" ;;
        esac
        echo "images.sh: $save/$image.tar" >&2
    fi
done
