"""Signatures, for teams that a seal is not enough for: who signed model.onnx and report.json, and neither has changed.

    signatures.json   {"algorithm": "ed25519", "public_key": hex, "signatures": {"model.onnx": hex, "report.json": hex}}

What is signed is one line for each file, `compress: NAME sha256 DIGEST` and a newline. Keys are those of openssl or of
ssh-keygen, without a password. The package `cryptography` is imported where a key is read, and nowhere else.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import ArtifactError, UsageError
from compress.export.canonical import read_json
from compress.export.seal import MODEL, REPORT, SIGNATURES
from compress.export.verify import digest
from compress.packages import demand

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HOW = (
    "make a pair with `openssl genpkey -algorithm ed25519 -out key.pem` and `openssl pkey -in key.pem -pubout -out "
    "key.pub`, or with `ssh-keygen -t ed25519 -N '' -f ssh-key`"
)
LONGEST = 2**16  # bytes of a file with a key; a key has 32 of its own


def private_key(path: Path | str) -> "Ed25519PrivateKey":
    """Read a private ed25519 key, PEM or OpenSSH. Raises UsageError, with how to make one, where there is none."""
    data = _key_file(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    ssh = data.startswith(b"-----BEGIN OPENSSH")
    try:
        key = (serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key)(data, None)
    except TypeError:
        raise UsageError(f"{path}: this key has a password; sign with one that has none.") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: holds no private ed25519 key; {HOW}, and give key.pem or ssh-key.")
    return key


def public_key(path: Path | str) -> "Ed25519PublicKey":
    """Read a public ed25519 key, PEM or OpenSSH. Raises UsageError, with how to make one, where there is none."""
    data = _key_file(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    ssh = data.startswith(b"ssh-")
    try:
        key = (serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key)(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: holds no public ed25519 key; {HOW}, and give key.pub or ssh-key.pub.")
    return key


def sign(folder: Path, key: "Ed25519PrivateKey") -> None:
    """Write signatures.json beside model.onnx and report.json. The same files and key give the same bytes."""
    content = {
        "algorithm": "ed25519",
        "public_key": key.public_key().public_bytes_raw().hex(),
        "signatures": {name: key.sign(_line(name, folder / name)).hex() for name in (MODEL, REPORT)},
    }
    text = json.dumps(content, indent=1, sort_keys=True)
    (folder / SIGNATURES).write_text(text + "\n", encoding="utf-8")


def check(path: Path, key: "Ed25519PublicKey") -> str:
    """Say who signed a folder, or a model.onnx; raises ArtifactError where it is not signed by that key as it is.

    Raises UsageError for a file of another kind, and for a folder that lacks one of the two that are signed.
    """
    from cryptography.exceptions import InvalidSignature

    whole = path.is_dir()
    if not whole and path.suffix != ".onnx":
        raise UsageError(f"{path}: only model.onnx and report.json are signed; verify the folder.")
    signed = {name: path / name for name in (MODEL, REPORT)} if whole else {MODEL: path}
    if lacking := [name for name, file in signed.items() if not file.is_file()]:
        raise UsageError(f"{path}: holds no {lacking[0]}; give the output folder of a finished run.")
    signatures = _signatures((path if whole else path.parent) / SIGNATURES)
    for name, file in signed.items():
        text = signatures.get(name)
        try:
            key.verify(bytes.fromhex(text if isinstance(text, str) else ""), _line(name, file))
        except (InvalidSignature, ValueError):
            raise ArtifactError(f"{file}: not signed by this key, or changed since it was signed.") from None
    return f"signed by {key.public_bytes_raw().hex()}: {', '.join(signed)}"


def _signatures(path: Path) -> dict[str, object]:
    """The signatures in a file; none where there are none."""
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: not signed; it holds no {path.name}, which --sign KEY writes.")
    try:
        content = read_json(path.read_bytes()[: LONGEST + 1])
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged ({error}).") from None
    signatures = content.get("signatures") if isinstance(content, dict) else None
    return signatures if isinstance(signatures, dict) else {}


def _line(name: str, file: Path) -> bytes:
    """What is signed of a file."""
    return f"compress: {name} sha256 {digest(file)}\n".encode()


def _key_file(path: Path | str) -> bytes:
    demand("cryptography")
    try:
        with Path(path).open("rb") as file:
            return file.read(LONGEST).lstrip()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {HOW}.") from None
