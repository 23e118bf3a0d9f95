"""What would make a Triton server hang, answer wrongly or die unexplained, refused before it starts."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import random
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from unified_backend.errors import Refused
from unified_backend.server.find import Server, running_python, shared_libpython

__all__ = [
    "check_path",
    "check_port",
    "check_python",
    "check_repository",
    "free_ports",
    "is_remote",
    "model_folders",
    "resolved_repository",
]

_UNSAFE = re.compile(r"[^A-Za-z0-9_./:@%+=,~#-]")
_LAYOUT = (
    "A repository holds one folder a model and in it one a version, for example models/detector.unified/1/detector.onnx"
)


def is_remote(repository: str) -> bool:
    """Whether Triton itself fetches `repository` from an object store."""
    return repository.startswith(("s3://", "gs://", "as://"))


def resolved_repository(repository: str) -> str:
    """`repository` as it must be passed to a server that starts in another directory."""
    return repository if is_remote(repository) else str(Path(repository).absolute())


def check_repository(repository: str, may_be_empty: bool) -> None:
    """Refuse a repository that Triton would hang on or could serve nothing from.

    Args:
        repository: local path, absolute; object-store URLs are Triton's to check.
        may_be_empty: models may arrive later (model control poll or explicit).
    """
    if is_remote(repository):
        return
    path = Path(repository)
    if not path.is_dir():
        why = "it is a file" if path.exists() else "it does not exist"
        raise Refused(f"{repository} is not a model repository", why, _LAYOUT)
    check_path(path, "model repository")
    if _is_model(path):
        raise Refused(
            f"{repository} is one model, not a repository",
            "it holds a config.pbtxt or version folders itself",
            f"Name the folder above it: {path.parent}",
        )
    models = model_folders(path)
    for model in models:
        check_path(model, "model")
    if not models and not may_be_empty:
        raise Refused(f"{repository} holds no model", "no folder in it has a version folder or a config.pbtxt", _LAYOUT)


def model_folders(repository: Path) -> list[Path]:
    """The folders of a local repository that are meant as models: those with a version folder or a config.pbtxt."""
    return [child for child in sorted(repository.iterdir()) if child.is_dir() and _is_model(child)]


def check_path(path: Path, role: str) -> None:
    """Refuse a path that does not survive Triton's way of starting a stub: unquoted, through `bash -c`.

    A space, a quote or a bracket makes the stub die before it reports, and the load hangs for ever with no message
    (measured on 24.10); outside ASCII the stub fails to import the model.

    Args:
        path: what will be on a stub's command line.
        role: what it is to the user, such as `model repository`.
    """
    bad = sorted(set(_UNSAFE.findall(str(path))))
    if bad:
        named = ", ".join("a space" if character == " " else repr(character) for character in bad)
        raise Refused(
            f"the {role} path '{path}' holds {named}",
            "Triton starts its Python backend through a shell without quoting, and such a path makes the load hang",
            "Rename the folder, or name it through a symbolic link of ASCII letters and digits",
        )


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports of `host` that nobody listens on now; below 32768, where Linux gives none to a client's connection."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10240, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            found.append(port)
    return found


def check_port(host: str, port: int, flag: str) -> None:
    """Refuse a port that cannot be listened on.

    Args:
        host: address that will be listened on.
        flag: the option that sets the port, such as `--http-port`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        raise Refused(f"cannot listen on {host}", str(error.strerror), "Name an address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise Refused(f"cannot listen on {host}", "this machine has no such address", "Name another") from error
        in_use = error.errno == errno.EADDRINUSE
        raise Refused(
            f"port {port} is in use" if in_use else f"cannot listen on port {port}",
            f"another program listens on {host}:{port}" if in_use else str(error.strerror),
            f"Choose another with {flag}",
        ) from error


def check_python(server: Server) -> None:
    """Refuse a Python that `server` cannot run, or whose tensors its stub would corrupt."""
    here = running_python()
    if server.pythons and here not in server.pythons:
        raise Refused(
            f"{server.executable} cannot run Python {here}",
            f"its Python backend is built for Python {_listed(server.pythons)}",
            f"Install triton-unified-backend in an environment of Python {server.pythons[-1]} and run it from there",
        )
    if server.origin == "embedded" and shared_libpython() is None:
        raise Refused(
            f"this Python {here} cannot run inside the embedded Triton",
            "it was built without a shared libpython, which Triton's Python backend links",
            "Use a distribution's Python with its libpython package, or one built with --enable-shared",
        )
    numpy = _installed_version("numpy")
    if server.corrupts_numpy2 and numpy is not None and int(numpy.split(".")[0]) >= 2:
        raise Refused(
            f"numpy {numpy} does not work with {server.executable}",
            "its Python backend was built before NumPy 2 and would return wrong numbers without a word",
            "Run `pip install 'numpy<2'` here, or use Triton 24.11 or newer",
        )


def _is_model(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return (folder / "config.pbtxt").is_file() or any(
        child.name.isdecimal() for child in folder.iterdir() if child.is_dir()
    )


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
