#!/bin/sh
# Make .venv ready: choose a Python, install the Debian packages it lacks, hand over to scripts/make_env.py.
#
# PYTHON=/path/to/python3 chooses the interpreter. Quick when nothing changed: compares one hash and starts no Python.
set -eu
cd "$(dirname "$0")/.."

# Python 3.13 has a stub in the embedded server but no NumPy 1.26 wheel, and that server's stub corrupts NumPy 2 tensors.
probe='
import importlib.util, pathlib, sys, sysconfig
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(1)
minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
library = f"lib{minor}.so.1.0"
folders = [sysconfig.get_config_var("LIBDIR") or "", sys.base_prefix + "/lib", "/usr/lib/" + (sysconfig.get_config_var("MULTIARCH") or "")]
if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
    print(minor + "-venv")
if not any(pathlib.Path(folder, library).exists() for folder in folders):
    print("lib" + minor)
'

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

install_packages() {
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        as_root=sudo
        [ -t 0 ] || as_root='sudo -n'
    fi
    command -v apt-get >/dev/null || return 1
    echo "setup: installing $* with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # as_root is empty, or a command and its option
    $as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 ||
        { $as_root apt-get update -qq && $as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }
}

# Prints the interpreter to use: the first that lacks nothing, else Debian's own, once apt-get has brought the rest.
choose_python() {
    repairable='' packages=''
    for name in ${PYTHON:-python3 python3.12 python3.11 /usr/bin/python3 /usr/bin/python3.12 /usr/bin/python3.11}; do
        path=$(command -v "$name") || continue
        lacks=$("$path" -c "$probe" 2>/dev/null) || continue
        [ -n "$lacks" ] || { echo "$path" && return; }
        case $(readlink -f "$path") in /usr/bin/*) [ -n "$repairable" ] || { repairable=$path && packages=$lacks; } ;; esac
    done
    [ -n "$repairable" ] || fail "no usable Python 3.11 or 3.12 found (looked for: ${PYTHON:-python3, python3.12, python3.11})." \
        "It needs venv and a shared libpython, for example: apt-get install python3.11 python3.11-venv libpython3.11." \
        "(Later Pythons do not do: NumPy 1.26, the last that the embedded Triton takes, has no wheel for them.)" \
        "Then run again, or name an interpreter with PYTHON=/path/to/python3."
    packages=$(echo "$packages" | paste -s -d ' ')
    # shellcheck disable=SC2086 # a list of package names
    install_packages $packages >&2 || fail "$repairable lacks: $packages" \
        "and they could not be installed from here. As root: apt-get install $packages, then run again."
    echo "$repairable"
}

# Everything the environment is made from; the clone's own path too, because scripts in .venv/bin name it.
stamp=$({
    pwd
    cat requirements.lock requirements/perf-analyzer.lock pyproject.toml scripts/setup.sh scripts/make_env.py
    cat scripts/fetch_models.py 2>/dev/null || :
} | sha256sum)
stamp=${stamp%% *}
python_wanted() { [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -c "$same")" = "$(.venv/bin/python -c "$same")" ]; }
same='import sys; print(sys.version, sys.base_prefix)'
if [ -x .venv/bin/python ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ] && python_wanted; then
    exit 0
fi

# What the toolchain mxnet needs of the system; without it only the tests of MXNet fail.
ldconfig=$(PATH="$PATH:/sbin:/usr/sbin" command -v ldconfig || :)
if [ -n "$ldconfig" ] && ! "$ldconfig" -p | grep -q libquadmath.so.0; then
    install_packages libgomp1 libquadmath0 ||
        echo "setup: MXNet needs libgomp1 and libquadmath0, which could not be installed: apt-get install them"
fi
# What the tests of web pages open them in; without it only they fail. Ubuntu has Chromium as a snap alone.
if ! { command -v chromium-headless-shell || command -v chromium || command -v google-chrome; } >/dev/null; then
    install_packages chromium-headless-shell ||
        echo "setup: the tests of pages need Chromium, which could not be installed: apt-get install chromium"
fi
python=$(choose_python)
"$python" -I scripts/make_env.py
if [ -f scripts/fetch_models.py ]; then
    .venv/bin/python scripts/fetch_models.py
fi
echo "$stamp" >.venv/.stamp
echo "setup: done"
