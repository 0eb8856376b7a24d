"""Prints test/vectors/manifest.json. Needs blake3 and cryptography from PyPI.

A second implementation of contract §8 and §9: nothing here calls the code under test. json.dumps with sorted keys
and without spaces is RFC 8785 for what these vectors hold (ASCII keys, integers, no fractions but 2.5).
"""

import base64
import copy
import hashlib
import json
import struct

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

# RFC 8410 §10.3, and a key that no verifier of these vectors has pinned.
PRIVATE_KEY = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC"
KEY = load_der_private_key(base64.b64decode(PRIVATE_KEY), None)
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HASHES = {"blake3": lambda b: blake3.blake3(b).digest(), "sha256": lambda b: hashlib.sha256(b).digest()}
CODECS = {"none": 0, "zstd": 1, "lz4": 2, "brotli": 3}


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text16(text):
    return struct.pack(">H", len(text)) + text.encode()


def leaf_hash(h, session, c):
    leaf = b"LUCID-LEAF\0\x01" + text16(session) + struct.pack(">Q", c["chunk_index"]) + text16(c["chunk_id"])
    leaf += struct.pack(">BQQ", CODECS[c["codec"]], c["original_bytes"], c["stored_bytes"])
    leaf += bytes.fromhex(c["blob_blake3"] + c["key_commit"] + c["plain_mac"])
    return h(b"\0" + leaf)


def root(h, leaves):
    """RFC 9162 §2.1.1."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return h(b"\1" + root(h, leaves[:k]) + root(h, leaves[k:]))


def chunk(algorithm, session, index, codec, level, recorded_at):
    c = {
        "chunk_index": index,
        "chunk_id": f"{session}-chunk-{index:06d}",
        "codec": codec,
        "level": level,
        "original_bytes": 1000 + index,
        "stored_bytes": 400 + index,
        "blob_id": f"{session}:{index}:0a1b2c",
        "blob_blake3": f"{0x10 + index:02x}" * 32,
        "key_commit": f"{0x20 + index:02x}" * 32,
        "plain_mac": f"{0x30 + index:02x}" * 32,
        "encryption_format": 1,
        "key_version": 1,
    }
    if recorded_at is not None:
        c["recorded_at"] = recorded_at
    c["leaf_hash"] = leaf_hash(HASHES[algorithm], session, c).hex()
    return c


def raw_public(key):
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(key):
    return hashlib.sha256(raw_public(key)).hexdigest()[:16]


def sign(unsigned, key=KEY, **signer):
    signature = {"algorithm": "Ed25519", "key_id": key_id(key), "public_key": base64.b64encode(raw_public(key)).decode()}
    signature |= signer
    signed = canonical(unsigned | {"signature": signature})
    value = base64.b64encode(key.sign(signed.encode())).decode()
    return canonical(unsigned | {"signature": signature | {"value": value}})


def unsigned_manifest(algorithm, session, kind, chunks, **metadata):
    lines = "".join(canonical(c) + "\n" for c in chunks)
    top = root(HASHES[algorithm], [bytes.fromhex(c["leaf_hash"]) for c in chunks]).hex()
    checksum = blake3.blake3(b"".join(bytes.fromhex(c["blob_blake3"]) for c in chunks)).hexdigest()
    return lines, {
        "manifest_id": f"{session}-{kind}-manifest",
        "manifest_version": "2.0",
        "manifest_type": f"session_{kind}",
        "session_metadata": {
            "session_id": session,
            "owner_address": None,
            "session_type": kind,
            "started_at": None,
            "ended_at": None,
            "duration_seconds": None,
            "total_size": sum(c["original_bytes"] for c in chunks),
            "chunk_count": len(chunks),
            "compression_algorithms": sorted({c["codec"] for c in chunks}),
            "encryption_algorithm": "AES-256-GCM",
            "metadata": {},
        }
        | metadata,
        "merkle": {"hash_algorithm": algorithm, "tree_size": len(chunks), "root_hash": top},
        "merkle_root": top,
        "chunks_file": {
            "name": f"{session}_{kind}_manifest.chunks.ndjson",
            "count": len(chunks),
            "blake3": blake3.blake3(lines.encode()).hexdigest(),
        },
        "total_checksum": checksum,
        "generated_at": "2026-01-02T03:04:05.678Z",
        "generated_by": "session-processor",
    }


def valid():
    first = [
        chunk("blake3", "sess-1", 0, "zstd", 3, "2026-01-02T03:00:00Z"),
        chunk("blake3", "sess-1", 1, "none", 0, None),
        chunk("blake3", "sess-1", 2, "zstd", -5, "2026-01-02T04:00:00.25+01:00"),
    ]
    second = [chunk("sha256", "S_2", 0, "brotli", 4, None)]
    cases = [
        ("BLAKE3, every field", first, unsigned_manifest("blake3", "sess-1", "recording", first,
            owner_address="Zo\u00eb \u20ac", started_at="2026-01-02T03:00:00Z", ended_at="2026-01-02T04:00:02.5+01:00",
            duration_seconds=2.5, metadata={"b": [1, True, None], "a": {"\u00e9": "\u2028"}, "__proto__": 1})),
        ("SHA-256, one chunk, nothing optional", second, unsigned_manifest("sha256", "S_2", "blockchain", second)),
    ]
    return [{"name": n, "chunks": c, "unsigned": u, "chunks_file": l, "manifest": sign(u)} for n, c, (l, u) in cases]


def changed(base, *path, to):
    copied = copy.deepcopy(base)
    at = copied
    for step in path[:-1]:
        at = at[step]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return copied


def bad_manifests(good):
    u, text = good["unsigned"], good["manifest"]
    signed = json.loads(text)
    value = signed["signature"]["value"]
    form = lambda *path, to=None: sign(changed(u, *path, to=to))
    flip = lambda *path, to: canonical(changed(signed, *path, to=to))
    names = [
        ("a field changed after signing", "signature-invalid", flip("session_metadata", "total_size", to=1)),
        ("a changed metadata value", "signature-invalid", flip("session_metadata", "metadata", "b", to=[])),
        ("a changed time", "signature-invalid", flip("generated_at", to="2026-01-02T03:04:05.679Z")),
        ("another signature of 64 bytes", "signature-invalid", flip("signature", "value", to="A" * 85 + "g" + "==")),
        ("the signature of a key that is not pinned", "key-not-pinned", sign(u, STRANGER)),
        ("a pinned key id on a key that is not pinned", "key-not-pinned", sign(u, STRANGER, key_id=key_id(KEY))),
        ("a pinned public key under another key id", "key-not-pinned", sign(u, KEY, key_id=key_id(STRANGER))),
        ("a pinned public key over a stranger's signature", "signature-invalid",
            sign(u, STRANGER, key_id=key_id(KEY), public_key=base64.b64encode(raw_public(KEY)).decode())),
        ("merkle_root unlike merkle.root_hash", "inconsistent", form("merkle_root", to="00" * 32)),
        ("chunk_count unlike tree_size", "inconsistent", form("session_metadata", "chunk_count", to=4)),
        ("chunks_file.count unlike tree_size", "inconsistent", form("chunks_file", "count", to=2)),
        ("the chunks file of another session", "inconsistent",
            form("chunks_file", "name", to="S_2_recording_manifest.chunks.ndjson")),
        ("a path as chunks file", "inconsistent", form("chunks_file", "name", to="../x.ndjson")),
        ("a session_type unlike manifest_type", "inconsistent", form("session_metadata", "session_type", to="data")),
        ("the manifest_id of another session", "inconsistent", form("manifest_id", to="S_2-recording-manifest")),
        ("an unknown field", "wrong-form", form("extra", to=1)),
        ("an unknown field below", "wrong-form", form("merkle", "extra", to=1)),
        ("an unknown field in signature", "wrong-form", sign(u, extra="1")),
        ("a missing field", "wrong-form", form("total_checksum")),
        ("a missing field below", "wrong-form", form("session_metadata", "owner_address")),
        ("a missing signature", "wrong-form", canonical(u)),
        ("another version", "wrong-form", form("manifest_version", to="2.1")),
        ("an unknown type", "wrong-form", form("manifest_type", to="session_other")),
        ("another signature algorithm", "wrong-form", sign(u, algorithm="none")),
        ("an unknown hash algorithm", "wrong-form", form("merkle", "hash_algorithm", to="md5")),
        ("tree size 0", "wrong-form", form("merkle", "tree_size", to=0)),
        ("a tree size that is a text", "wrong-form", form("merkle", "tree_size", to="3")),
        ("a fraction of a chunk", "wrong-form", form("merkle", "tree_size", to=2.5)),
        ("a tree size above 2^32", "wrong-form", form("merkle", "tree_size", to=2**32 + 1)),
        ("uppercase hex", "wrong-form", form("merkle_root", to=u["merkle_root"].upper())),
        ("a short root", "wrong-form", form("merkle", "root_hash", to="00" * 31)),
        ("unsorted codecs", "wrong-form", form("session_metadata", "compression_algorithms", to=["zstd", "none"])),
        ("a codec named twice", "wrong-form", form("session_metadata", "compression_algorithms", to=["zstd", "zstd"])),
        ("no codec", "wrong-form", form("session_metadata", "compression_algorithms", to=[])),
        ("metadata that is an array", "wrong-form", form("session_metadata", "metadata", to=[])),
        ("a local generated_at", "wrong-form", form("generated_at", to="2026-01-02T03:04:05.678+00:00")),
        ("a negative duration", "wrong-form", form("session_metadata", "duration_seconds", to=-1)),
        ("base64 with stray bits at its end", "wrong-form", flip("signature", "value", to=value[:85] + "B==")),
        ("base64 without padding", "wrong-form", flip("signature", "value", to=value[:86])),
        ("a signature of 63 bytes", "wrong-form",
            flip("signature", "value", to=base64.b64encode(bytes(63)).decode())),
        ("a line feed at the end", "not-canonical", text + "\n"),
        ("a space", "not-canonical", text.replace(",", ", ", 1)),
        ("keys in another order", "not-canonical", json.dumps(signed, separators=(",", ":"), ensure_ascii=False)
            .replace('"chunks_file":' + canonical(signed["chunks_file"]) + ",", "", 1)[:-1]
            + ',"chunks_file":' + canonical(signed["chunks_file"]) + "}"),
        ("a repeated key", "not-canonical", text[:-1] + ',"total_checksum":"' + u["total_checksum"] + '"}'),
        ("an escape that isn't needed", "not-canonical", text.replace("sess-1", "\\u0073ess-1", 1)),
        ("a number with an exponent", "not-canonical", text.replace('"tree_size":3', '"tree_size":3e0')),
        ("a number with a fraction of zero", "not-canonical", text.replace('"tree_size":3', '"tree_size":3.0')),
        ("a cut end", "not-json", text[:-1]),
        ("two manifests", "not-json", text + text),
        ("no text", "not-json", ""),
        ("an array", "wrong-form", "[" + text + "]"),
        ("null", "wrong-form", "null"),
    ]
    cases = [{"name": n, "reason": r, "base64": base64.b64encode(t.encode()).decode()} for n, r, t in names]
    raw = text.encode()
    for name, reason, data in [
        ("a byte order mark", "not-json", b"\xef\xbb\xbf" + raw),
        ("a byte that isn't UTF-8", "not-utf8", raw.replace("\u00e9".encode(), b"\xff", 1)),
    ]:
        cases.append({"name": name, "reason": reason, "base64": base64.b64encode(data).decode()})
    return cases


def bad_lines(good):
    line = good["chunks_file"].split("\n")[0] + "\n"
    c = good["chunks"][0]
    wrong = lambda **fields: canonical(c | fields) + "\n"
    without = lambda name: canonical({k: v for k, v in c.items() if k != name}) + "\n"
    cases = [(f"no {name}", without(name)) for name in sorted(c) if name != "recorded_at"]
    cases += [
        ("an unknown field", wrong(extra=1)),
        ("an unknown field in front", wrong(a=1)),
        ("no line feed", line[:-1]),
        ("two line feeds", line + "\n"),
        ("a carriage return", line[:-1] + "\r\n"),
        ("a space", line.replace(":", ": ", 1)),
        ("a space in front", " " + line),
        ("two lines", line + line),
        ("no text", ""),
        ("a line feed alone", "\n"),
        ("keys in another order", '{"blob_id":"' + c["blob_id"] + '",' + line[1:].replace('"blob_id":"' + c["blob_id"] + '",', "")),
        ("a repeated key", line.replace('{"blob_blake3"', '{"blob_blake3":"' + "00" * 32 + '","blob_blake3"')),
        ("an escape", line.replace("zstd", "\\u007astd")),
        ("uppercase hex", wrong(blob_blake3="AB" * 32)),
        ("a short digest", wrong(leaf_hash="00" * 31)),
        ("a long digest", wrong(leaf_hash="00" * 33)),
        ("a digest that is null", wrong(key_commit=None)),
        ("an unknown codec", wrong(codec="gzip")),
        ("encryption format 0", wrong(encryption_format=0)),
        ("key version 0", wrong(key_version=0)),
        ("a key version above 2^32 - 1", wrong(key_version=2**32)),
        ("an index that is a text", wrong(chunk_index="0")),
        ("a negative index", wrong(chunk_index=-1)),
        ("an index above 2^32 - 1", wrong(chunk_index=2**32)),
        ("a leading zero", line.replace('"chunk_index":0', '"chunk_index":00')),
        ("minus zero", line.replace('"chunk_index":0', '"chunk_index":-0')),
        ("an exponent", line.replace('"original_bytes":1000', '"original_bytes":1e3')),
        ("a fraction", line.replace('"original_bytes":1000', '"original_bytes":1000.0')),
        ("an empty chunk", wrong(original_bytes=0)),
        ("a length above 2^53 - 1", wrong(original_bytes=2**53)),
        ("a level above 22", wrong(level=23)),
        ("a level below -131072", wrong(level=-131073)),
        ("a chunk id with a slash", wrong(chunk_id="a/b")),
        ("a chunk id of 101 characters", wrong(chunk_id="a" * 101)),
        ("a blob id with a quote", wrong(blob_id='a"b')),
        ("recorded_at that is null", wrong(recorded_at=None)),
        ("recorded_at that is no time", wrong(recorded_at="yesterday")),
        ("a null byte after the end", line + "\0"),
        ("more than 1024 characters", wrong(blob_id="a" * 1000)),
    ]
    return [{"name": n, "line": t} for n, t in cases]


def bad_files(good, other):
    a, b, c = (line + "\n" for line in good["chunks_file"].split("\n")[:-1])
    chunks = good["chunks"]
    edit = lambda i, **fields: canonical(chunks[i] | fields) + "\n"
    moved = chunk("blake3", "sess-other", 2, "zstd", -5, None)
    resealed = chunk("blake3", "sess-1", 2, "zstd", -5, None) | {"blob_blake3": "99" * 32}
    resealed["leaf_hash"] = leaf_hash(HASHES["blake3"], "sess-1", resealed).hex()
    cases = [
        ("swapped lines", "TREE_CORRUPT", b + a + c),
        ("a line missing in the middle", "TREE_CORRUPT", a + c),
        ("the last line missing", "MANIFEST_INVALID", a + b),
        ("a line more", "MANIFEST_INVALID",
            a + b + c + canonical(chunk("blake3", "sess-1", 3, "zstd", 3, None)) + "\n"),
        ("a repeated line", "TREE_CORRUPT", a + b + c + c),
        ("the last line feed missing", "MANIFEST_INVALID", (a + b + c)[:-1]),
        ("a line feed more", "MANIFEST_INVALID", a + b + c + "\n"),
        ("nothing", "TREE_CORRUPT", ""),
        ("another codec", "TREE_CORRUPT", edit(0, codec="lz4") + b + c),
        ("another length", "TREE_CORRUPT", edit(0, original_bytes=999) + b + c),
        ("another leaf hash", "TREE_CORRUPT", edit(0, leaf_hash="00" * 32) + b + c),
        ("another chunk id", "TREE_CORRUPT", edit(0, chunk_id="sess-1-chunk-000009") + b + c),
        ("a chunk of another session", "TREE_CORRUPT", a + b + canonical(moved) + "\n"),
        ("a chunk sealed again", "MANIFEST_INVALID", a + b + canonical(resealed) + "\n"),
        ("another blob id, which no leaf covers", "MANIFEST_INVALID", edit(0, blob_id="sess-1:0:ffff") + b + c),
        ("another level, which no leaf covers", "MANIFEST_INVALID", edit(0, level=4) + b + c),
        ("the file of another manifest", "TREE_CORRUPT", other["chunks_file"]),
    ]
    return [{"name": n, "code": code, "file": t} for n, code, t in cases]


def main():
    cases = valid()
    public = raw_public(KEY)
    vkey_id = hashlib.sha256(b"lucid\n\x01" + public).hexdigest()[:8]
    print(json.dumps({
        "about": "Contract §9. Written by another implementation (make-manifest-vectors.py). must_fail: a verifier with `pinned` refuses each.",
        "private_key_pkcs8": PRIVATE_KEY,
        "pinned": {
            "key_id": key_id(KEY),
            "hex": public.hex(),
            "base64": base64.b64encode(public).decode(),
            "pem": KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            "vkey": f"lucid+{vkey_id}+{base64.b64encode(bytes([1]) + public).decode()}",
        },
        "valid": cases,
        "must_fail": {
            "manifests": bad_manifests(cases[0]),
            "chunk_lines": bad_lines(cases[0]),
            "chunks_files": bad_files(*cases),
        },
    }, indent=1, ensure_ascii=True))


main()
