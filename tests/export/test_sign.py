"""What is signed is told from what is not, and from what was changed since; a key that is none is refused at once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Finished
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from compress.cli import main
from compress.errors import UsageError
from compress.export import sign
from compress.export.verify import digest, verify

BUDGET = "60kMACs"
PRIVATE = {"pem": (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8),
           "ssh": (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)}  # fmt: skip
PUBLIC = {"pem": (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
          "ssh": (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)}  # fmt: skip


def pair(folder: Path, kind: str = "pem", number: int = 1) -> tuple[Path, Path]:
    """A private and a public key, each in a file of its own."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    secret, public = folder / f"{kind}{number}", folder / f"{kind}{number}.pub"
    secret.write_bytes(key.private_bytes(*PRIVATE[kind], serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(*PUBLIC[kind]))
    return secret, public


@pytest.fixture
def folder(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.out, tmp_path / "out"))


@pytest.mark.parametrize("kind", PRIVATE)
@pytest.mark.parametrize("other", PUBLIC)
def test_a_folder_is_signed_by_one_key_and_no_other(kind: str, other: str, folder: Path, tmp_path: Path) -> None:
    secret, stranger = pair(tmp_path, kind)[0], pair(tmp_path, other, 2)[1]
    sign.sign(folder, sign.private_key(secret))
    public = pair(tmp_path, other)[1]
    for path in (folder, folder / "model.onnx"):
        assert verify(path, BUDGET, signed_by=public).code == 0
        verdict = verify(path, BUDGET, signed_by=stranger)
        assert (verdict.code, verdict.rows) == (4, ())
        assert "not signed by this key, or changed since" in verdict.lines[0]
        assert verify(path, BUDGET).code == 0
    raw = sign.public_key(public).public_bytes_raw().hex()
    assert verify(folder, BUDGET, signed_by=public).lines[-1] == f"signed by {raw}: model.onnx, report.json"


def test_what_is_signed_can_be_checked_without_us(folder: Path, tmp_path: Path) -> None:
    secret, public = pair(tmp_path)
    sign.sign(folder, sign.private_key(secret))
    content = json.loads((folder / "signatures.json").read_text())
    key = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    assert content["public_key"] == key.public_bytes_raw().hex()
    for name in ("model.onnx", "report.json"):
        key.verify(
            bytes.fromhex(content["signatures"][name]), f"compress: {name} sha256 {digest(folder / name)}\n".encode()
        )


def test_equal_files_have_equal_signatures_and_another_budget_another_code(folder: Path, tmp_path: Path) -> None:
    secret, public = pair(tmp_path)
    sign.sign(folder, sign.private_key(secret))
    first = (folder / "signatures.json").read_bytes()
    sign.sign(folder, sign.private_key(secret))
    assert (folder / "signatures.json").read_bytes() == first
    assert verify(folder, "1MACs", signed_by=public).code == 1


def forged(folder: Path) -> None:
    """Make the digests anew after an edit that nothing seals."""
    from compress.export.canonical import fingerprint

    story = json.loads((folder / "report.json").read_text()) | {"notes": ["as good as new"]}
    del story["digest"]
    (folder / "report.json").write_text(json.dumps(story | {"digest": fingerprint(story)}))


ALTERED: dict[str, Callable[[Path], object]] = {
    "no signatures": lambda folder: (folder / "signatures.json").unlink(),
    "empty signatures": lambda folder: (folder / "signatures.json").write_text("{}"),
    "no JSON": lambda folder: (folder / "signatures.json").write_text("signed!"),
    "a list": lambda folder: (folder / "signatures.json").write_text("[]"),
    "a number for one": lambda folder: (folder / "signatures.json").write_text('{"signatures": {"model.onnx": 1}}'),
    "no hexadecimal": lambda folder: (folder / "signatures.json").write_text('{"signatures": {"model.onnx": "xyz"}}'),
    "a signature that is longer": lambda folder: (folder / "signatures.json").write_text(
        (folder / "signatures.json").read_text().replace('"model.onnx": "', '"model.onnx": "00')
    ),
    "signatures that change places": lambda folder: (folder / "signatures.json").write_text(
        (folder / "signatures.json").read_text().replace("model.onnx", "x").replace("report.json", "model.onnx")
        .replace('"x"', '"report.json"')
    ),
    "a forged report": forged,
    "a report in another layout": lambda folder: (folder / "report.json").write_text(
        json.dumps(json.loads((folder / "report.json").read_text()))
    ),
    "a changed file": lambda folder: (folder / "model.py").write_text("load = exit\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_4(name: str, folder: Path, tmp_path: Path) -> None:
    secret, public = pair(tmp_path)
    sign.sign(folder, sign.private_key(secret))
    ALTERED[name](folder)
    assert verify(folder, BUDGET, signed_by=public).code == 4


WRONG: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
    "text": lambda path: path.write_text("open sesame"),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "an ssh key that is none": lambda path: path.write_text("ssh-ed25519 AAAA"),
    "half of a key": lambda path: path.write_bytes(pair(path.parent)[0].read_bytes()[:60]),
    "a key of another kind": lambda path: path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(*PRIVATE["pem"], serialization.NoEncryption())
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_key_is_2_and_says_how_to_make_one(name: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "key"
    WRONG[name](path)
    with pytest.raises(UsageError, match=r"openssl genpkey -algorithm ed25519 -out key\.pem"):
        sign.private_key(path)
    with pytest.raises(UsageError, match=r"openssl pkey -in key\.pem -pubout -out key\.pub"):
        verify(folder, BUDGET, signed_by=path)


def test_neither_key_serves_for_the_other_and_one_with_a_password_is_told(folder: Path, tmp_path: Path) -> None:
    for kind in PRIVATE:
        secret, public = pair(tmp_path, kind)
        with pytest.raises(UsageError, match="holds no private ed25519 key"):
            sign.private_key(public)
        with pytest.raises(UsageError, match="holds no public ed25519 key"):
            verify(folder, BUDGET, signed_by=secret)
    locked = pair(tmp_path)[0]
    key = sign.private_key(locked)
    locked.write_bytes(key.private_bytes(*PRIVATE["pem"], serialization.BestAvailableEncryption(b"open")))
    with pytest.raises(UsageError, match="has a password"):
        sign.private_key(locked)


def test_only_what_is_signed_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    _, public = pair(tmp_path)
    with pytest.raises(UsageError, match=r"only model\.onnx and report\.json are signed"):
        verify(folder / "model.safetensors", "1Mparams", signed_by=public)
    assert verify(folder, BUDGET, signed_by=public).lines == (
        f"{folder}: not signed; it holds no signatures.json, which --sign KEY writes.",
    )
    (folder / "report.json").unlink()
    with pytest.raises(UsageError, match=r"holds no report\.json"):
        verify(folder, BUDGET, signed_by=public)


def test_a_finished_run_is_signed_by_resuming_it_and_a_wrong_key_is_told_before_training(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    shutil.copytree(finished.folder, "work")
    secret, public = pair(tmp_path)
    words = ["run", "work/tiny.yaml", "--seed", "7", "--set", "train.lr=0.05"]
    done = CliRunner().invoke(main, [*words, "--out", "out", "--sign", str(public)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no private ed25519 key" in done.stderr
    assert not Path("out").exists()
    assert not Path("out.partial").exists()
    done = CliRunner().invoke(main, [*words, "--out", "work/runs/tiny", "--resume", "--sign", str(secret)])
    assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(main, ["verify", "work/runs/tiny", "--budget", "sealed", "--signed-by", str(public)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("signed by ")


def test_without_a_key_no_cryptography_is_imported(folder: Path) -> None:
    code = f"""
import sys
from compress.export.verify import verify
assert verify({str(folder)!r}, {BUDGET!r}).code == 0
assert not {{"cryptography", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
