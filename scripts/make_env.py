"""Makes `.venv`: the locked environment, hard-linked out of a cache that a user's clones share, and this checkout.

Installing the lock takes two to three minutes and 2.7 GB. Of the ways to do it once for many clones, measured on 16,000
files: a `.pth` file into a shared environment breaks every clone when the cache is emptied; uv's hard links need uv and
leave pip's configuration (index, find-links, certificates) behind; hard links of an environment that pip made take
0.5 s, and each clone stays a complete virtual environment on its own. So: pip fills one environment in the cache, under
a lock and published by a rename, and `.venv` is a real `python -m venv` whose packages are hard links and whose scripts
are written anew. Only the standard library may be imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PERF_ANALYZER_LOCK = ROOT / "requirements" / "perf-analyzer.lock"
SCHEMA = "1"  # raise it when what is done to a cached environment changes
KEEP = 4  # environments, of 2.7 GB each
ABANDONED_SECONDS = 86400
PERF_ANALYZER = """\
#!/bin/sh
# The binary out of the tritonclient wheel; its two libraries lie beside it, links to those of the embedded server.
here=$(dirname -- "$(readlink -f -- "$0")")/../lib/perf_analyzer
LD_LIBRARY_PATH="$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/perf_analyzer" "$@"
"""


def main() -> None:
    """Make `.venv` complete for this checkout; do again only what is out of date."""
    key = environment_key()
    cache = cache_folder()
    target = ROOT / ".venv"
    with locked(cache / f"{hashlib.sha256(bytes(target)).hexdigest()[:16]}.lock"):
        (target / ".stamp").unlink(missing_ok=True)
        if not is_complete(target, key):
            with locked(cache / f"{key}.lock"):
                base = cached_environment(cache, key)
                say(f"linking it into {target}")
                link_environment(base, target)
                (target / ".environment").write_text(key)
        say("installing this checkout (editable)")
        pip(target, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))


def environment_key() -> str:
    """Digest of all that the bytes of the environment depend on."""
    parts = [SCHEMA, sys.version, os.path.realpath(sys.executable), platform.machine()]
    parts += [path.read_text() for path in (LOCK, PERF_ANALYZER_LOCK)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The user's cache, or `build/` of this clone where there is none to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (home / "triton-unified" / "environments", ROOT / "build" / "environments"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise SystemExit(f"setup: neither {home} nor {ROOT / 'build'} can be written to")


def is_complete(environment: Path, key: str) -> bool:
    """Whether `environment` was linked from the cached one that `key` names, to the end."""
    marker = environment / ".environment"
    return marker.is_file() and marker.read_text() == key and os.access(environment / "bin" / "python", os.X_OK)


def cached_environment(cache: Path, key: str) -> Path:
    """The environment of the lock file in the cache; made there first if need be. The caller holds its lock."""
    base = cache / key
    if base.is_dir():
        say(f"environment {key} found in {cache}")
        os.utime(base)
        return base
    say(f"environment {key} is made once for all clones (Python {platform.python_version()}, minutes, 2.7 GB)")
    for stale in cache.glob(f"{key}.part-*"):  # of an interrupted run: we hold the lock, so nobody else writes there
        shutil.rmtree(stale)
    started = time.monotonic()
    part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=cache))
    venv.EnvBuilder(symlinks=True, with_pip=True).create(part)
    pip(part, "install", "--no-deps", "--no-compile", "--require-hashes", "--requirement", str(LOCK))
    add_perf_analyzer(part)
    compile_packages(part)
    part.chmod(0o755)
    part.rename(base)
    forget_unused(cache)
    say(f"environment made in {time.monotonic() - started:.0f} s")
    return base


def add_perf_analyzer(environment: Path) -> None:
    """Take the perf_analyzer binary out of its wheel; see requirements/perf-analyzer.in for why it is not installed."""
    folder = environment / "lib" / "perf_analyzer"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as downloads:
        options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", downloads)
        pip(environment, "download", *options, "--requirement", str(PERF_ANALYZER_LOCK))
        with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".data/data/bin/perf_analyzer"))
            (folder / "perf_analyzer").write_bytes(wheel.read(member))
    (folder / "perf_analyzer").chmod(0o755)
    libraries = site_packages(environment) / "nvidia_pytriton.libs"
    for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
        (folder / name).symlink_to(os.path.relpath(next(libraries.glob(pattern)), folder))
    wrapper = environment / "bin" / "perf_analyzer"
    wrapper.write_text(PERF_ANALYZER)
    wrapper.chmod(0o755)


def compile_packages(environment: Path) -> None:
    """Write the byte code that nearly every run imports; the rest (two thirds of the files) is compiled when used."""
    skipped = r"/(tests?|testing|scipy|skimage|networkx|sympy|pytriton|mypy|reference|backend)/"
    command = [str(environment / "bin" / "python"), "-m", "compileall", "-qq", "-j", "0", "-x", skipped]
    subprocess.run(
        [*command, str(site_packages(environment))], check=False
    )  # some packages ship files that do not parse


def forget_unused(cache: Path) -> None:
    """Keep the few environments that clones took last, and nothing half-made; clones keep their own links."""
    folders = sorted((path for path in cache.iterdir() if path.is_dir()), key=last_used, reverse=True)
    half_made = [folder for folder in folders if ".part-" in folder.name]
    whole = [folder for folder in folders if folder not in half_made]
    abandoned = [folder for folder in half_made if last_used(folder) < time.time() - ABANDONED_SECONDS]
    for folder in (*whole[KEEP:], *abandoned):
        shutil.rmtree(folder, ignore_errors=True)


def last_used(folder: Path) -> float:
    """When a clone last took the environment, or when it was made."""
    return folder.stat().st_mtime


def link_environment(base: Path, target: Path) -> None:
    """Make `target` a virtual environment with everything that is installed in `base`."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(target)
    for name in ("lib", "share", "include"):
        if (base / name).is_dir():
            shutil.copytree(base / name, target / name, symlinks=True, dirs_exist_ok=True, copy_function=link_or_copy)
    for script in (base / "bin").iterdir():
        place = target / "bin" / script.name
        if place.is_symlink() or place.exists():  # what venv itself wrote: activate, python
            continue
        if script.is_symlink():
            place.symlink_to(script.readlink())
        else:
            place_script(script, place, base)


def link_or_copy(source: str, destination: str) -> None:
    """A hard link, or a copy where the cache lies on another file system."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def place_script(script: Path, place: Path, base: Path) -> None:
    """A program as it is; a Python script with the interpreter of its new place."""
    content = script.read_bytes()
    if str(base.parent).encode() not in content[:1000] or not content.startswith(b"#!"):
        link_or_copy(str(script), str(place))
        return
    # pip writes `#!/path/bin/python`, or three lines of shell where that has a space or is too long for the kernel
    body = content.split(b"\n", 3 if content.startswith(b"#!/bin/sh") else 1)[-1]
    python = place.parent / "python3"
    header = f"#!{python}\n"
    if " " in header or len(header) > 127:
        header = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
    place.write_bytes(header.encode() + body)
    place.chmod(0o755)


def site_packages(environment: Path) -> Path:
    """Where the packages of `environment` lie."""
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def pip(environment: Path, *arguments: str) -> None:
    """Run pip with the user's own configuration, silent unless it fails."""
    command = [str(environment / "bin" / "python"), "-I", "-m", "pip", *arguments, "--disable-pip-version-check"]
    overrides = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run([*command, "-qq"], env={**os.environ, **overrides}, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"setup: pip {arguments[0]} failed (above); the same with its details: {' '.join(command)}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other set-ups of this user; the kernel lets go when the process ends, however it ends."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """One line of progress."""
    print(f"setup: {line}", flush=True)


if __name__ == "__main__":
    main()
