#!/usr/bin/env python3
"""Checks what session-processor recorded. Written from docs/formats.md (the § in comments), not from the program's code.

  verify.py session MANIFEST --key KEY [--blobs FOLDER [--secret FILE]]
  verify.py proof FILE --key KEY [--checkpoint FILE] [--manifest FILE] [--index N] [--leaf-hash HEX]

KEY: an Ed25519 public key in base64, hex, or a PEM file; may be repeated. FOLDER: the blobs as <chunk index>.blob. --secret: a file
with the session secret, or a line `VERSION SECRET` for each key version. A consistency proof takes two --checkpoint or --manifest.
Exit code 0: verified, 1: refused, 2: wrong usage.
"""
import argparse, base64, hashlib, hmac, json, os, pathlib, re, struct, sys
import blake3, rfc8785
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

ID, SAFE, HEX64 = "[A-Za-z0-9][A-Za-z0-9_-]{0,99}", 2**53 - 1, re.compile("[0-9a-f]{64}")
CODECS = {"none": 0, "zstd": 1, "lz4": 2, "brotli": 3}
TYPES = ["recording", "data", "compression", "encryption", "blockchain"]
HASHES = {"blake3": lambda b: blake3.blake3(b).digest(), "sha256": lambda b: hashlib.sha256(b).digest()}
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}T"
UTC, TIME = re.compile(DATE + r"[0-9:]{8}\.[0-9]{3}Z"), re.compile(DATE + "[0-9:.]{5,40}(?:Z|[+-][0-9]{2}:?[0-9]{2})")
LINE = re.compile(  # §8.2
    rb'{"blob_blake3":"([0-9a-f]{64})","blob_id":"([A-Za-z0-9][A-Za-z0-9_:.-]{0,255})","chunk_id":"(' + ID.encode() +
    rb')","chunk_index":(0|[1-9][0-9]{0,9}),"codec":"(brotli|lz4|none|zstd)","encryption_format":1,'
    rb'"key_commit":"([0-9a-f]{64})","key_version":([1-9][0-9]{0,9}),"leaf_hash":"([0-9a-f]{64})",'
    rb'"level":(0|-?[1-9][0-9]{0,5}),"original_bytes":([1-9][0-9]{0,15}),"plain_mac":"([0-9a-f]{64})"'
    rb'(?:,"recorded_at":"[0-9][0-9T:.Z+-]{15,63}")?,"stored_bytes":([1-9][0-9]{0,15})}\n')

u = lambda form, *numbers: struct.pack(">" + form, *numbers)  # §1
text16 = lambda text: u("H", len(text)) + text.encode()
node = lambda h, left, right: h(b"\1" + left + right)  # §6

class Refused(Exception): ...
def need(holds, why):
    if not holds: raise Refused(why)

def b64(text, length=None):  # §1: strict, with padding
    raw = base64.b64decode(text, validate=True)
    need(raw and base64.b64encode(raw).decode() == text and length in (None, len(raw)), "not strict base64 of its length")
    return raw

def signed_by(key, signature, message):
    try:
        return Ed25519PublicKey.from_public_bytes(key).verify(signature, message) is None
    except InvalidSignature:
        return False

# ---- §6 tree, §7 proofs
def root_of(h, level):  # RFC 9162 §2.1.1, from the leaves up: an odd one out goes up as it is
    while len(level) > 1:
        level = [node(h, *level[i:i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]

def walk(h, fn, sn, start, path):
    """The loop that RFC 9162 §2.1.3.2 and §2.1.4.2 share: the roots of the older and of the newer tree."""
    fr = sr = start
    for p in path:
        need(sn > 0, "path too long")
        if fn & 1 or fn == sn:
            fr, sr = node(h, p, fr), node(h, p, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(h, sr, p)
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "path too short")
    return fr, sr

def check_inclusion(h, index, size, leaf, path, root):
    need(index < size and walk(h, index, size - 1, leaf, path)[1] == root, "index beyond the size, or another root")

def check_consistency(h, size1, size2, root1, root2, path):
    if size1 >= size2:
        return need(size1 == size2 and not path and root1 == root2, "sizes reversed, or not the same tree")
    path, shift = ([root1] if size1 & (size1 - 1) == 0 else []) + path, (size1 & -size1).bit_length() - 1
    need(path, "path too short")
    need(walk(h, (size1 - 1) >> shift, (size2 - 1) >> shift, path[0], path[1:]) == (root1, root2), "the path leads to other roots")

# ---- §9 checkpoint
def read_checkpoint(raw, keys):
    """(session, hash algorithm, size, root) of a note that a pinned key has signed."""
    note = raw.decode()
    need(len(note) <= 262144 and note.endswith("\n") and not re.search("[\0-\x09\x0b-\x1f]", note), "malformed checkpoint")
    text, found, signatures = note.rpartition("\n\n")
    head = re.fullmatch(f"lucid/session/({ID})/(blake3|sha256)\n([1-9][0-9]{{0,9}})\n([A-Za-z0-9+/=]+)", text)
    lines, good = signatures[:-1].split("\n"), 0
    need(found and head and int(head[3]) <= 2**32 and len(lines) <= 32, "malformed checkpoint")
    name = text.split("\n")[0]
    for line in lines:
        sig = re.fullmatch(r"\u2014 ([^\s+]+) ([A-Za-z0-9+/=]+)", line)
        need(sig and len(b64(sig[2])) > 4, "malformed signature line")
        for key in keys:
            if sig[1] == name and b64(sig[2])[:4] == hashlib.sha256(name.encode() + b"\n\1" + key).digest()[:4]:
                need(signed_by(key, b64(sig[2], 68)[4:], (text + "\n").encode()), "checkpoint: wrong signature")
                good += 1
    need(good, "checkpoint: no signature of a pinned key")
    return head[1], head[2], int(head[3]), b64(head[4], 32)

# ---- §8 manifest and chunks file
def parse_canonical(raw, limit):
    need(len(raw) <= limit, "too large")
    value = json.loads(raw.decode(), parse_int=lambda s: int(s) if abs(int(s)) <= SAFE else float(s))  # doubles, as RFC 8785 says
    need(rfc8785.dumps(value) == raw, "not in RFC 8785 form")
    return value

def fits(v, want, where=""):
    if isinstance(want, dict):
        return has_form(v, want, where)
    if isinstance(want, re.Pattern):
        return isinstance(v, str) and want.fullmatch(v)
    return isinstance(v, str) and v in want if isinstance(want, list) else want(v)

def has_form(value, form, where):
    """Exactly the fields of `form`: each a pattern, a list of texts, a predicate or a form."""
    need(isinstance(value, dict) and value.keys() == form.keys(), f"{where}: not its fields")
    for name, want in form.items():
        need(fits(value[name], want, f"{where}.{name}"), f"{where}.{name}: not of its form")
    return True

integer = lambda low, high: lambda v: type(v) is int and low <= v <= high
or_null = lambda want: lambda v: v is None or fits(v, want)
COUNT, TEXT = integer(1, 2**32), lambda v: isinstance(v, str) and len(v.encode("utf-16-le")) <= 400  # 200 UTF-16 units
MANIFEST = {
    "manifest_id": TEXT, "manifest_version": ["2.0"], "manifest_type": [f"session_{t}" for t in TYPES],
    "session_metadata": {
        "session_id": re.compile(ID), "owner_address": or_null(TEXT), "session_type": TYPES, "started_at": or_null(TIME),
        "ended_at": or_null(TIME), "duration_seconds": or_null(lambda v: type(v) in (int, float) and v >= 0),
        "total_size": integer(1, SAFE), "chunk_count": COUNT,
        "compression_algorithms": lambda v: isinstance(v, list) and v and v == sorted(set(v)) and set(v) <= CODECS.keys(),
        "encryption_algorithm": ["AES-256-GCM"], "metadata": lambda v: isinstance(v, dict)},
    "merkle": {"hash_algorithm": list(HASHES), "tree_size": COUNT, "root_hash": HEX64},
    "merkle_root": HEX64, "chunks_file": {"name": TEXT, "count": COUNT, "blake3": HEX64}, "total_checksum": HEX64,
    "generated_at": UTC, "generated_by": ["session-processor"],
    "signature": {"algorithm": ["Ed25519"], "key_id": re.compile("[0-9a-f]{16}"), "public_key": lambda v: b64(v, 32),
                  "value": lambda v: b64(v, 64)}}

def read_manifest(raw, keys):
    m = parse_canonical(raw, 65536)
    has_form(m, MANIFEST, "manifest")
    key, value = b64(m["signature"]["public_key"]), b64(m["signature"].pop("value"))
    need(key in keys and hashlib.sha256(key).hexdigest()[:16] == m["signature"]["key_id"], "manifest: key not pinned")
    need(signed_by(key, value, rfc8785.dumps(m)), "manifest: wrong signature")
    s, root, size, sid = m["session_metadata"], m["merkle_root"], m["merkle"]["tree_size"], m["session_metadata"]["session_id"]
    kind = m["manifest_type"].removeprefix("session_")
    need((m["manifest_id"], s["session_type"], m["merkle"]["root_hash"], s["chunk_count"], m["chunks_file"]["count"]) ==
         (f"{sid}-{kind}-manifest", kind, root, size, size), "manifest contradicts itself")
    need(m["chunks_file"]["name"] == f"{sid}_{kind}_manifest.chunks.ndjson", "manifest: another chunks file")
    return m, (sid, m["merkle"]["hash_algorithm"], size, bytes.fromhex(root))

def check_chunks(path, m, check_blob):
    sid, h = m["session_metadata"]["session_id"], HASHES[m["merkle"]["hash_algorithm"]]
    leaves, count, total, codecs, digest, checksum = [], 0, 0, set(), blake3.blake3(), blake3.blake3()
    with open(path, "rb") as file:
        while line := file.readline(1025):
            f = LINE.fullmatch(line)
            need(f, f"chunks file, line {count + 1}: not in canonical form")
            blob, commit, leaf, mac = (bytes.fromhex(f[i].decode()) for i in (1, 6, 8, 11))
            chunk_id, codec = f[3].decode(), f[5].decode()
            index, version, level, original, stored = (int(f[i]) for i in (4, 7, 9, 10, 12))
            need(index == count and version < 2**32 and -131072 <= level <= 22 and max(original, stored) <= SAFE,
                 f"chunks file, line {count + 1}: index or number out of range")
            entry = (b"LUCID-LEAF\0\1" + text16(sid) + u("Q", index) + text16(chunk_id)
                     + u("BQQ", CODECS[codec], original, stored) + blob + commit + mac)  # §5
            need(h(b"\0" + entry) == leaf, f"chunks file, line {count + 1}: wrong leaf hash")
            leaves.append(leaf), digest.update(line), checksum.update(blob), codecs.add(codec)
            count, total = count + 1, total + original
            check_blob(sid, index, chunk_id, codec, original, stored, version, blob, commit, mac)
    need(count == m["merkle"]["tree_size"] and root_of(h, leaves).hex() == m["merkle_root"], "chunks file: another count or root")
    need((digest.hexdigest(), checksum.hexdigest()) == (m["chunks_file"]["blake3"], m["total_checksum"]), "chunks file: other bytes")
    need((total, sorted(codecs)) == (m["session_metadata"]["total_size"], m["session_metadata"]["compression_algorithms"]),
         "chunks file: another size or other codecs")
    return count

def check_anchor(raw, m):  # §10
    a, text = parse_canonical(raw, 16384), lambda v: isinstance(v, str) and 0 < len(v) <= 1024
    form = {"session_id": [m["session_metadata"]["session_id"]], "tree_size": lambda v: v == m["merkle"]["tree_size"],
            "root_hash": [m["merkle_root"]], "hash_algorithm": [m["merkle"]["hash_algorithm"]], "anchored_at": UTC}
    more = {"anchoring_id": text, "transaction": text, "block": integer(0, SAFE)}
    has_form(a, {**form, **{k: v for k, v in more.items() if k in a}}, "anchor file")

# ---- §3 blobs, §4 keys; each decoder imports its package when it is needed, and its result is held against the plain mac
DECODERS = {
    "none": lambda data: data, "brotli": lambda data: __import__("brotli").decompress(data),
    "zstd": lambda data: __import__("zstandard").ZstdDecompressor().decompress(data, allow_extra_data=False),
    "lz4": lambda data: __import__("lz4.frame").frame.decompress(data)}

def blob_checker(folder, secrets, counts, derived={}):
    def check(sid, index, chunk_id, codec, original, stored, version, digest, commit, mac):
        where, path = f"blob of chunk {index}", pathlib.Path(folder, f"{index}.blob")
        need(path.is_file(), f"{where}: missing")
        blob = path.read_bytes()
        need(len(blob) == stored >= 60 and blake3.blake3(blob).digest() == digest, f"{where}: other bytes than recorded")
        counts["hashed"] += 1
        if not secrets: return
        need(version in secrets, f"{where}: no secret of its key version")
        salt, secret = blob[:32], secrets[version].encode()
        if (secret, salt) not in derived:
            derived[secret, salt] = hashlib.pbkdf2_hmac("sha256", secret, salt, 100_000, 32)
        key = derived[secret, salt]
        need(hmac.digest(key, b"lucid-commit-v1" + salt, "sha256") == commit, f"{where}: another key than it commits to")
        aad = (b"LUCID-CHUNK\0\1" + text16(sid) + u("Q", index) + text16(chunk_id) + u("BQI", CODECS[codec], original, version))
        try:
            compressed = AESGCM(key).decrypt(blob[32:44], blob[44:], aad)
            counts["opened"] += 1
            plain = DECODERS[codec](compressed)
        except InvalidTag:
            raise Refused(f"{where}: doesn't open") from None
        except ModuleNotFoundError:
            return  # counted as opened and not as compared
        mac_key = HKDF(hashes.SHA256(), 32, None, b"lucid-plain-mac-v1").derive(secret)
        need((len(plain), hmac.digest(mac_key, blake3.blake3(plain).digest(), "sha256")) == (original, mac),
             f"{where}: another content than recorded")
        counts["compared"] += 1
    return check

# ---- commands
def verify_session(args, keys):
    path = pathlib.Path(args.manifest_file)
    m, head = read_manifest(path.read_bytes(), keys)
    checkpoint, anchor = (path.with_name(m["chunks_file"]["name"][:-14] + end) for end in (".checkpoint", ".anchor.json"))
    need(read_checkpoint(checkpoint.read_bytes(), keys) == head, "checkpoint: not of the manifest's tree")
    if anchor.exists():
        check_anchor(anchor.read_bytes(), m)
    counts, lines = {"hashed": 0, "opened": 0, "compared": 0}, pathlib.Path(args.secret or os.devnull).read_text().split("\n")
    secrets = {int(parts[0]) if len(parts) > 1 else 1: parts[-1] for parts in map(str.split, lines) if parts}
    check = blob_checker(args.blobs, secrets, counts) if args.blobs else lambda *_: None
    count = check_chunks(path.with_name(m["chunks_file"]["name"]), m, check)
    return {"session_id": head[0], "chunks": count, "root_hash": m["merkle_root"], "anchor": anchor.exists(), "blobs": counts}

def verify_text_proof(text, args, keys):  # §7.3
    body, found, note = text.partition("\n\n")
    form = r"c2sp\.org/tlog-proof@v1\n(?:extra ([A-Za-z0-9+/=]+)\n)?index (0|[1-9][0-9]{0,9})((?:\n[A-Za-z0-9+/=]+){0,33})"
    parts = re.fullmatch(form, body)
    need(found and parts, "malformed tlog-proof")
    session, algorithm, size, root = read_checkpoint(note.encode(), keys)
    h, index, leaf = HASHES[algorithm], int(parts[2]), bytes.fromhex(args.leaf_hash) if args.leaf_hash else None
    if parts[1]:
        need(b64(parts[1]).startswith(b"LUCID-LEAF\0\1" + text16(session) + u("Q", index)), "the leaf is of another place")
        need(leaf in (None, h(b"\0" + b64(parts[1]))), "not the expected leaf")
        leaf = h(b"\0" + b64(parts[1]))
    need(leaf and args.index in (None, index), "not the expected index, or no leaf: give --leaf-hash")
    check_inclusion(h, index, size, leaf, [b64(p, 32) for p in parts[3].split("\n")[1:]], root)
    return {"session_id": session, "tree_size": size, "leaf_index": index, "leaf_hash": leaf.hex()}

def verify_proof(args, keys):
    raw = pathlib.Path(args.file).read_bytes()[:524289]
    if raw.startswith(b"c2sp.org/tlog-proof@"):
        return verify_text_proof(raw.decode(), args, keys)
    heads = [read_checkpoint(pathlib.Path(p).read_bytes(), keys) for p in args.checkpoint]
    heads += [read_manifest(pathlib.Path(p).read_bytes(), keys)[1] for p in args.manifest]
    p, body = json.loads(raw.decode()), raw.decode().removesuffix("\n")  # §7.2
    need(body[:1] + body[-1:] == "{}" and json.dumps(p, separators=(",", ":"), ensure_ascii=False)
         == re.sub("[ \t\r\n]", "", body), "malformed proof")
    path = lambda v: isinstance(v, list) and len(v) <= 33 and all(fits(hash_, HEX64) for hash_ in v)
    form, consistency = {"hash_algorithm": list(HASHES), "path": path}, "size1" in p
    has_form(p, {**form, "size1": COUNT, "size2": COUNT, "root1": HEX64, "root2": HEX64} if consistency else
             {**form, "tree_size": COUNT, "leaf_index": integer(0, 2**32 - 1), "leaf_hash": HEX64, "root_hash": HEX64}, "proof")
    hex_, h, hops = bytes.fromhex, HASHES[p["hash_algorithm"]], [bytes.fromhex(hash_) for hash_ in p["path"]]

    def signed(size, root):  # the size is a signed head's, with which the proof's is compared
        sessions = {head[0] for head in heads if head[1:] == (p["hash_algorithm"], size, hex_(root))}
        need(sessions, "no checkpoint or manifest of this size and root was given")
        return sessions
    if consistency:
        sessions = signed(p["size1"], p["root1"]) & signed(p["size2"], p["root2"])
        need(sessions, "the two sizes are of two sessions")
        check_consistency(h, p["size1"], p["size2"], hex_(p["root1"]), hex_(p["root2"]), hops)
        return {"session_id": sessions.pop(), "size1": p["size1"], "size2": p["size2"]}
    session = signed(p["tree_size"], p["root_hash"]).pop()
    need(args.index in (None, p["leaf_index"]) and args.leaf_hash in (None, p["leaf_hash"]), "not the expected leaf")
    check_inclusion(h, p["leaf_index"], p["tree_size"], hex_(p["leaf_hash"]), hops, hex_(p["root_hash"]))
    return {"session_id": session, **{k: p[k] for k in ("tree_size", "leaf_index", "leaf_hash")}}

def public_key(text):
    if pathlib.Path(text).is_file():
        return load_pem_public_key(pathlib.Path(text).read_bytes()).public_bytes(Encoding.Raw, PublicFormat.Raw)
    return bytes.fromhex(text) if re.fullmatch("[0-9a-fA-F]{64}", text) else b64(text, 32)

def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    session, proof = commands.add_parser("session"), commands.add_parser("proof")
    session.add_argument("manifest_file"), session.add_argument("--blobs"), session.add_argument("--secret")
    proof.add_argument("file"), proof.add_argument("--index", type=int), proof.add_argument("--leaf-hash")
    proof.add_argument("--checkpoint", action="append", default=[]), proof.add_argument("--manifest", action="append", default=[])
    [command.add_argument("--key", action="append", required=True, type=public_key) for command in (session, proof)]
    args = parser.parse_args(argv)
    try:
        result, code = (verify_session if args.command == "session" else verify_proof)(args, args.key), 0
    except Exception as why:  # fails closed: what can't even be read is refused too
        result, code = {"reason": str(why) if isinstance(why, Refused) else f"can't be read: {type(why).__name__}"}, 1
    print(json.dumps({"verified": code == 0, **result}))
    return code

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
