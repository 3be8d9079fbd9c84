#!/usr/bin/env bash
# Builds the image, reports its size, pushes it where REGISTRY is given, and prints the line for site.toml.
# Usage: make images (see there); further arguments go to `docker build`, such as --network host.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${PIP_INDEX_URL:-}${TORCH_INDEX:-}" in *://*@*)
    echo "an index URL with a login would stay in the image's history: write it into a pip.conf, and give" >&2
    echo "BUILD_FLAGS='--secret id=pip,src=pip.conf' in its place" >&2
    exit 2 ;;
esac
if test "$TARGET" = cpu && test -z "${TORCH_INDEX:-}"; then
    echo "TARGET=cpu needs TORCH_INDEX=URL of PyTorch's index of CPU wheels, which its installation page names;" >&2
    echo "TARGET=cuda needs none and runs on the CPU too" >&2
    exit 2
fi
VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' cmapkd_core/__init__.py)
COMMIT=$(git rev-parse --short=12 HEAD)
CODE="cmapkd_core cmapkd docker"
if test -n "$(git status --porcelain -- $CODE)"; then  # with a digest of what differs: two states are not one image
    COMMIT=$COMMIT-dirty-$({
        git diff --no-ext-diff --binary HEAD -- $CODE
        git ls-files -z --others --exclude-standard -- $CODE | xargs -0 -r sha256sum
    } | sha256sum | cut -c 1-8)
fi
IMAGE=${REGISTRY:+$REGISTRY/}cmapkd
TAG=$VERSION-$COMMIT-$TARGET

# By its second name the tests of the image find the last one: cmapkd:cuda.
DOCKER_BUILDKIT=1 "$DOCKER" build --file docker/Dockerfile --target "$TARGET" --tag "$IMAGE:$TAG" --tag "cmapkd:$TARGET" \
    ${PIP_INDEX_URL:+--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL"} ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} \
    ${APT_PACKAGES:+--build-arg "APT_PACKAGES=$APT_PACKAGES"} \
    --build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "VERSION=$VERSION" --build-arg "COMMIT=$COMMIT" "$@" .
"$DOCKER" image inspect --format "$IMAGE:$TAG has {{.Size}} bytes" "$IMAGE:$TAG" | numfmt --field 3 --to si --format '%.2f'
"$DOCKER" history --format '{{.Size}}	{{.CreatedBy}}' "$IMAGE:$TAG" | grep -v '^0B' | cut -c 1-110

if test -z "${REGISTRY:-}"; then
    echo "built here only; REGISTRY=registry.example.org/team pushes it"
    exit
fi
"$DOCKER" push "$IMAGE:$TAG"
DIGEST=$("$DOCKER" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$IMAGE:$TAG" | grep -F "$IMAGE@")
echo "image = \"$DIGEST\""
