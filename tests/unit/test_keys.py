"""Cold keys on disk: what is a key, and that no error shows any of it."""

import json
import subprocess
import sys
from hashlib import pbkdf2_hmac
from pathlib import Path

import pytest
from eth_keyfile.keyfile import encrypt_aes_ctr
from eth_utils.crypto import keccak

from app.errors import SettingsError
from app.keys import create_keystore, load_cold_key, open_signer, stated_address
from app.secret_file import Secret
from app.settings import load_settings
from tests.support.cold_keys import (
    ADDRESS,
    KEY,
    PASSWORD,
    PASSWORD_NAME,
    KeyFiles,
    changed_keystore,
    keystore_text,
    refusal,
)

pytest.importorskip("coincurve", reason="coincurve has no wheel for this Python")

ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
# Web3 Secret Storage Definition, "Test Vectors".
DEFINITION_KEY = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
DEFINITION_KEYSTORE = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}


@pytest.fixture
def write(tmp_path: Path) -> KeyFiles:
    return KeyFiles(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        f"{KEY.hex()}\n",
        f"0x{KEY.hex()}\r\n",
        f"  0X{KEY.hex().upper()}  ",
        KEY.hex().swapcase(),
    ],
)
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_hex_key_is_loaded(write: KeyFiles, text: str, mode: int) -> None:
    key = load_cold_key(write(text.encode(), mode=mode), None)
    assert key.address == bytes.fromhex(ADDRESS[2:])
    assert repr(key) == f"ColdKey({ADDRESS.lower()})"


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_keystore_is_loaded(write: KeyFiles, kdf: str, ending: bytes) -> None:
    path = write(keystore_text(kdf).encode())
    key = load_cold_key(path, write(PASSWORD + ending, "password"))
    assert key.address == bytes.fromhex(ADDRESS[2:])


def test_the_keystore_of_the_definition_is_loaded(write: KeyFiles) -> None:
    path = write(json.dumps(DEFINITION_KEYSTORE, indent=2).encode())
    key = load_cold_key(path, write(b"testpassword", "password"))
    assert key.address == load_cold_key(write(DEFINITION_KEY.encode()), None).address


def test_names_in_a_keystore_may_begin_with_capitals(write: KeyFiles) -> None:
    text = keystore_text().replace('"crypto"', '"Crypto"').replace('"kdf"', '"Kdf"').encode()
    key = load_cold_key(write(text), write(PASSWORD, "password"))
    assert key.address == bytes.fromhex(ADDRESS[2:])


@pytest.mark.parametrize(
    "password", [PASSWORD + b"\n\n", b"\n" + PASSWORD, PASSWORD[:-1], b"other", b"\xff\x00"]
)
def test_another_password_is_refused(write: KeyFiles, password: bytes) -> None:
    path = write(keystore_text().encode())
    assert "can't be opened" in refusal(path, write(password, "password"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        KEY,
        KEY.hex()[:-1].encode(),
        KEY.hex().encode() + b"0",
        b"0x0x" + KEY.hex().encode(),
        KEY.hex()[:32].encode() + b" " + KEY.hex()[32:].encode(),
        KEY.hex().encode() + b"\n" + KEY.hex().encode(),
        KEY.hex()[:-1].encode() + b"g",
        # Digits to Python, not to anyone else.
        KEY.hex()[:-1].encode() + "\uff11".encode(),
        b"\xef\xbb\xbf" + KEY.hex().encode(),
        b'"' + KEY.hex().encode() + b'"',
        b"\xff" * 64,
        b"0" * 64,
        f"{ORDER:064x}".encode(),
        f"{ORDER + 1:064x}".encode(),
        b"f" * 64,
    ],
)
def test_what_is_no_key_is_refused(write: KeyFiles, content: bytes) -> None:
    assert "holds no key" in refusal(write(content))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{}",
        b"{" + KEY.hex().encode(),
        b'{"key": "' + KEY.hex().encode() + b'"}',
        b'{"crypto": "' + KEY.hex().encode() + b'", "version": 3}',
        b'{"version": "' + KEY.hex().encode() + b'"}',
        b'{"\xff": "' + KEY.hex().encode() + b'"}',
        b'{"a":' * 10_000,
        changed_keystore(version=4),
        changed_keystore(version="3"),
        changed_keystore(crypto__cipher="aes-256-gcm"),
        changed_keystore(crypto__kdf=KEY.hex()),
        changed_keystore(crypto__kdfparams=KEY.hex()),
        # 2**40 rounds, or 128 TiB of memory, would be a start that never ends.
        changed_keystore(crypto__kdfparams__n=2**40),
        changed_keystore(crypto__kdfparams__r=2**30),
        changed_keystore(crypto__kdfparams__p=2**30),
        changed_keystore(crypto__kdf="pbkdf2", crypto__kdfparams__c=2**40),
        # The second half of a derived key of 16 bytes authenticates nothing.
        changed_keystore(crypto__kdfparams__dklen=16),
    ],
)
def test_what_is_no_keystore_is_refused(write: KeyFiles, content: bytes) -> None:
    assert "holds no key" in refusal(write(content), write(PASSWORD, "password"))


@pytest.mark.parametrize(
    "content",
    [
        changed_keystore(crypto__mac="00" * 32),
        changed_keystore(crypto__mac=""),
        changed_keystore(crypto__ciphertext=KEY.hex()),
        changed_keystore(crypto__ciphertext=KEY.hex()[:-1]),
        changed_keystore(crypto__kdfparams__salt="x"),
        changed_keystore(crypto__kdfparams__n=3),
        changed_keystore(crypto__kdf="pbkdf2"),
    ],
)
def test_a_keystore_that_was_changed_is_refused(write: KeyFiles, content: bytes) -> None:
    assert "can't be opened" in refusal(write(content), write(PASSWORD, "password"))


@pytest.mark.parametrize("address", ["00" * 20, "", "0x", "zz" * 20, ADDRESS[2:-2]])
def test_a_keystore_that_states_another_address_is_refused(write: KeyFiles, address: str) -> None:
    path = write(changed_keystore(address=address))
    text = refusal(path, write(PASSWORD, "password"))
    assert "another address" in text
    assert ADDRESS in text


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS.lower(), ADDRESS[2:].upper()])
def test_a_stated_address_may_be_written_in_any_way(write: KeyFiles, address: str) -> None:
    path = write(changed_keystore(address=address))
    key = load_cold_key(path, write(PASSWORD, "password"))
    assert key.address == bytes.fromhex(ADDRESS[2:])


@pytest.mark.parametrize("length", [31, 33])
def test_a_keystore_with_a_key_of_another_length_is_refused(write: KeyFiles, length: int) -> None:
    """Its MAC covers what is encrypted, so one of another length can be made."""
    derived = pbkdf2_hmac("sha256", PASSWORD, b"salt", 1, 32)
    ciphertext = encrypt_aes_ctr((KEY * 2)[:length], derived[:16], 0)
    crypto = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "00" * 16},
        "ciphertext": ciphertext.hex(),
        "kdf": "pbkdf2",
        "kdfparams": {"c": 1, "dklen": 32, "prf": "hmac-sha256", "salt": b"salt".hex()},
        "mac": keccak(derived[16:] + ciphertext).hex(),
    }
    path = write(json.dumps({"crypto": crypto, "version": 3}).encode())
    assert "holds no key" in refusal(path, write(PASSWORD, "password"))


def test_a_password_is_needed_for_a_keystore_and_for_nothing_else(
    write: KeyFiles,
) -> None:
    assert f"{PASSWORD_NAME} must name" in refusal(write(keystore_text().encode()))
    password = write(PASSWORD, "password")
    assert PASSWORD_NAME in refusal(write(KEY.hex().encode()), password)
    for empty in (b"", b"\n", b"\r\n"):
        text = refusal(write(keystore_text().encode()), write(empty, "password"))
        assert text.startswith(PASSWORD_NAME)
        assert "is empty" in text


def test_the_address_a_keystore_states_is_told_without_its_password(
    write: KeyFiles,
) -> None:
    assert stated_address("FILE", write(keystore_text().encode())) == bytes.fromhex(ADDRESS[2:])
    assert stated_address("FILE", write(KEY.hex().encode())) is None
    for content in (json.dumps(DEFINITION_KEYSTORE).encode(), changed_keystore(address="0x12")):
        with pytest.raises(SettingsError, match="states no address"):
            stated_address("FILE", write(content))


def test_a_file_that_exists_is_not_replaced_and_no_password_is_asked_for(
    write: KeyFiles, tmp_path: Path
) -> None:
    def never() -> Secret:
        raise AssertionError

    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nothing")
    for path in (write(b"precious"), dangling, tmp_path):
        with pytest.raises(SettingsError, match="exists"):
            create_keystore("FILE", path, never)
    assert (tmp_path / "cold").read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cold.json"

    def slowly() -> Secret:
        path.write_bytes(b"precious")
        return Secret(PASSWORD)

    with pytest.raises(SettingsError, match="exists"):
        create_keystore("FILE", path, slowly)
    assert path.read_bytes() == b"precious"


def test_without_a_cold_key_file_nothing_is_loaded() -> None:
    assert open_signer(load_settings({}), lambda: 0) is None


def test_opening_a_keystore_leaves_the_recursion_limit() -> None:
    """A library below eth-account raises it so far that a nested body overflows the stack."""
    program = (
        "import sys; limit = sys.getrecursionlimit(); "
        "from app.keystore import make_keystore; from app.secret_file import Secret; "
        "make_keystore(Secret(bytes(31) + b'\\1'), Secret(b'password')); "
        "print(limit == sys.getrecursionlimit())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
