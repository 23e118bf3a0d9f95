#!/bin/sh
# Write the lock files again from pyproject.toml and requirements/*.in; versions already locked stay unless --upgrade.
#
# uv resolves (8 s, hashes of every file of a release); pip installs, because pip alone honours all of the user's pip
# configuration. The resolution is made for Python 3.11 on Linux and holds for 3.12; Python 3.13 has no NumPy 1.26 wheel.
set -eu
cd "$(dirname "$0")/.."

tools=build/lock-tools
[ -x "$tools/bin/uv" ] || { python3 -m venv "$tools" && "$tools/bin/pip" install -qq 'uv>=0.8,<1'; }

# Index addresses are the user's own affair: a lock names versions and hashes, never a host.
compile() {
    "$tools/bin/uv" pip compile --quiet --no-config --python-version "${PYTHON_VERSION:-3.11}" \
        --python-platform x86_64-manylinux_2_35 --generate-hashes --no-emit-index-url --no-emit-find-links \
        --no-annotate --custom-compile-command 'make lock' "$@"
}

dev=build/dev.lock
[ ! -f requirements.lock ] || cp requirements.lock "$dev"
compile "$@" --extra cpu --extra fleet --extra server --extra report --extra docs --extra demo --extra test \
    --output-file "$dev" pyproject.toml requirements/build.in requirements/lint.in
{ cat "$dev" && compile --no-deps --no-header requirements/no-deps.in requirements/dali.in; } >requirements.lock

compile "$@" --no-deps --output-file requirements/perf-analyzer.lock requirements/perf-analyzer.in

# The image's Python is 3.12, and its server takes NumPy 2.
for extra in cpu gpu; do
    cp "requirements/image-$extra.lock" "build/image-$extra.lock"
    PYTHON_VERSION=3.12 compile "$@" --extra "$extra" --extra fleet --output-file "build/image-$extra.lock" \
        pyproject.toml requirements/build.in
    { cat "build/image-$extra.lock" && PYTHON_VERSION=3.12 compile --no-deps --no-header requirements/dali.in; } \
        >"requirements/image-$extra.lock"
done

# Of each toolchain the lock is data of the package: it is what `triton-unified toolchain install` installs.
compile "$@" --no-header --override requirements/toolchain-overrides.txt \
    --output-file backend/unified_backend/toolchains/tensorflow.lock requirements/toolchain-tensorflow.in
compile "$@" --no-header --output-file build/torch.lock requirements/toolchain-torch.in
cat build/torch.lock requirements/toolchain-torch-cpu.lock >backend/unified_backend/toolchains/torch.lock
compile "$@" --no-header --output-file backend/unified_backend/toolchains/mxnet.lock requirements/toolchain-mxnet.in
compile "$@" --no-header --output-file backend/unified_backend/toolchains/trees.lock requirements/toolchain-trees.in
compile "$@" --no-header --output-file backend/unified_backend/toolchains/paddle.lock requirements/toolchain-paddle.in
