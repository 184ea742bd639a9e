"""Attacks B1 to B10 of the threat model on the bundle file. The signature stays valid in all of them: it is
the framing that the attacker changes. Nothing touches a disk, for the reader never makes a name from the
file; it compares names with the ones that it expects."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import unicodedata
from typing import BinaryIO, cast

import pytest
from tests.builders import BundleBuilder
from tests.contract.bundles import Endless, Layout, accept, header, member, refuse

from skerry_contract.bundle import BundleReader
from skerry_contract.envelope import Signer
from skerry_contract.errors import BundleFormatError, ManifestError
from skerry_contract.signing import EcdsaSigner, sign_bundle, verify_bundle

pytestmark = pytest.mark.attack


@pytest.fixture
def valid(builder: BundleBuilder) -> Layout:
    layout = Layout.of(builder.build())
    accept(layout.data, [builder.signer.verifier])
    assert len(layout.starts) == 2 + len(builder.manifest().blobs())
    return layout


def repacked(
    layout: Layout,
    *,
    before: tuple[tarfile.TarInfo, ...] = (),
    after: tuple[tarfile.TarInfo, ...] = (),
    rename: str = "",
) -> bytes:
    """The bundle as another program would write it, with entries of the attacker's."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(layout.data)) as source,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for index, entry in enumerate(source.getmembers()):
            for extra in before if index == 2 else ():
                target.addfile(extra)
            content = source.extractfile(entry)
            entry.pax_headers = {}
            if rename and index == 2:
                entry.name = rename
            target.addfile(entry, content)
        for extra in after:
            target.addfile(extra)
    return out.getvalue()


def entry(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


NAMES = [
    "../evil",
    "blobs/../../evil",
    "/etc/cron.d/evil",
    "..\\evil",
    "blobs\\evil",
    "C:\\evil",
    "C:evil",
    "//server/evil",
    "./manifest.json",
    "blobs/./evil",
    "blobs//evil",
    "blobs/evil\n",
    "",
    ".",
    "blobs/",
]


@pytest.mark.parametrize("name", NAMES)
def test_b1_names_that_leave_the_folder(valid: Layout, signer: EcdsaSigner, name: str) -> None:
    size = int(valid.data[valid.starts[2] + 124 : valid.starts[2] + 135], 8)
    refuse(valid.replace_header(2, header(name, size)), [signer.verifier], "not canonical")
    refuse(valid.insert(2, member(name, b"evil")), [signer.verifier])
    refuse(valid.data[:-1024] + member(name, b"evil") + bytes(1024), [signer.verifier], "after the end")
    refuse(repacked(valid, rename=name or "evil"), [signer.verifier])
    refuse(valid.replace_header(0, header(name, 10)), [signer.verifier], "not a Skerry bundle")


KINDS = {
    "old regular": b"\0",
    "hard link": b"1",
    "symlink": b"2",
    "character device": b"3",
    "block device": b"4",
    "directory": b"5",
    "FIFO": b"6",
    "contiguous": b"7",
    "pax": b"x",
    "global pax": b"g",
    "GNU long name": b"L",
    "GNU long link": b"K",
    "GNU sparse": b"S",
    "GNU multi-volume": b"M",
    "volume label": b"V",
    "vendor": b"Z",
}


@pytest.mark.parametrize("kind", KINDS)
def test_b2_entries_that_are_no_plain_file(valid: Layout, signer: EcdsaSigner, kind: str) -> None:
    size = int(valid.data[valid.starts[2] + 124 : valid.starts[2] + 135], 8)
    name = valid.data[valid.starts[2] :][:100].rstrip(b"\0").decode()
    for link in ("", "/etc/passwd", "manifest.json"):
        refuse(
            valid.replace_header(2, header(name, size, KINDS[kind], link)), [signer.verifier], "not canonical"
        )
        refuse(valid.insert(2, member(name, b"", KINDS[kind], link)), [signer.verifier], "not canonical")
        refuse(
            valid.insert(1, member(name, b"", KINDS[kind], link)), [signer.verifier], "not a Skerry bundle"
        )
        refuse(
            valid.insert(0, member("manifest.json", b"", KINDS[kind], link)),
            [signer.verifier],
            "not a Skerry",
        )
    plain = tarfile.REGTYPE if kind == "old regular" else KINDS[kind]
    if plain not in (b"x", b"g", b"L", b"K", b"S"):  # tarfile writes those by itself only
        refuse(repacked(valid, after=(entry("evil", plain, "/etc/passwd"),)), [signer.verifier])


def test_b3_chains_of_symlinks(valid: Layout, signer: EcdsaSigner) -> None:
    chain = (entry("a", tarfile.SYMTYPE, "/tmp"), entry("blobs", tarfile.SYMTYPE, "a"))  # noqa: S108 - never made
    refuse(repacked(valid, before=chain), [signer.verifier])
    refuse(repacked(valid, after=chain), [signer.verifier])
    links = member("blobs", kind=b"2", link="..") + member("blobs/up", kind=b"2", link="../..")
    refuse(valid.insert(2, links), [signer.verifier], "not canonical")
    refuse(valid.insert(0, links), [signer.verifier], "not a Skerry bundle")


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("after", range(5))
def test_b4_the_same_name_twice(valid: Layout, signer: EcdsaSigner, index: int, after: int) -> None:
    copy = valid.data[valid.starts[index] : valid.starts[index + 1]]
    refuse(valid.insert(after, copy), [signer.verifier])
    refuse(valid.data[:-1024] + copy + bytes(1024), [signer.verifier], "after the end")


def test_b5_names_that_some_file_systems_take_for_equal(valid: Layout, signer: EcdsaSigner) -> None:
    name = valid.data[valid.starts[2] :][:100].rstrip(b"\0").decode()
    for twin in (
        name.upper(),
        name.title(),
        name.replace("blobs", "Blobs"),
        unicodedata.normalize("NFD", "blöbs/x"),
        name + " ",
        name + ".",
    ):
        refuse(valid.insert(3, member(twin, b"evil")), [signer.verifier])
        refuse(valid.data[:-1024] + member(twin, b"evil") + bytes(1024), [signer.verifier], "after the end")
    refuse(valid.insert(0, member("MANIFEST.JSON", b"{}")), [signer.verifier], "not a Skerry bundle")
    refuse(valid.insert(1, member("Manifest.json", b"{}")), [signer.verifier], "not a Skerry bundle")


def test_b6_headers_that_disagree_and_entries_that_overlap(valid: Layout, signer: EcdsaSigner) -> None:
    at = valid.starts[2]
    name = valid.data[at : at + 100].rstrip(b"\0").decode()
    size = int(valid.data[at + 124 : at + 135], 8)
    for other in (0, 1, size - 1, size + 1, size + 512):  # the next header lies inside the data, or beyond
        refuse(valid.replace_header(2, header(name, other)), [signer.verifier], "not canonical")
    for record in (
        b"12 size=0\n",
        b"14 path=evil\n",
        b"24 linkpath=/etc/passwd\n",
        b"21 GNU.sparse.major=1\n",
    ):
        refuse(valid.insert(2, member("pax", record, b"x")), [signer.verifier], "not canonical")
        refuse(valid.insert(0, member("pax", record, b"x")), [signer.verifier], "not a Skerry bundle")
        refuse(valid.insert(0, member("pax", record, b"g")), [signer.verifier], "not a Skerry bundle")
    # The comment that aligns a blob has no room for anything else.
    comment = valid.data.index(b"comment=")
    hidden = valid.data[:comment] + b"path=ev=" + valid.data[comment + 8 :]
    refuse(hidden, [signer.verifier], "not canonical")
    split = valid.replace_header(2, header(name.removeprefix("blobs/"), size, prefix="blobs"))
    refuse(split, [signer.verifier], "not canonical")


SIZES = {
    "8 GiB": b"77777777777\0",
    "12 digits": b"777777777777",
    "base-256": b"\x80" + bytes(10) + b"\1",
    "negative base-256": b"\xff" * 12,
    "negative": b"-0000000001\0",
    "signed": b"+0000000001\0",
    "spaces": b"         12\0",
    "decimal": b"00000000099\0",
    "hexadecimal": b"0x000000010\0",
    "no digits": b"\0" * 12,
    "underscore": b"0000000_001\0",
    "unterminated": b"000000000010",
    "other digits": "٣".encode() * 6,
}


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_b7_lying_sizes(valid: Layout, signer: EcdsaSigner, form: str, index: int) -> None:
    name = valid.data[valid.starts[index] :][:100].rstrip(b"\0").decode()
    lie = valid.replace_header(index, header(name, 0, raw_size=SIZES[form]))
    refuse(lie, [signer.verifier])


def test_b7_a_lying_size_makes_nobody_read_or_allocate(valid: Layout, signer: EcdsaSigner) -> None:
    stream = Endless(header("manifest.json", 0, raw_size=b"77777777777\0"), bytes(512))
    with pytest.raises(BundleFormatError, match="at most 1048576 are accepted"):
        BundleReader(cast(BinaryIO, stream))
    assert stream.taken == 512


def test_b8_bytes_before_the_archive(valid: Layout, signer: EcdsaSigner) -> None:
    for extra in (
        b"\0",
        b"#!/bin/sh\n",
        bytes(512),
        bytes(1024),
        b"MZ" + bytes(510),
        member("README", b"hello"),
    ):
        refuse(extra + valid.data, [signer.verifier], "not a Skerry bundle")


def test_b8_bytes_after_the_archive(valid: Layout, signer: EcdsaSigner) -> None:
    for extra in (b"\0", bytes(512), bytes(9216), b"PK\5\6" + bytes(18), member("evil", b"x"), valid.data):
        refuse(valid.data + extra, [signer.verifier], "after the end")


def test_b8_a_file_that_the_manifest_does_not_list(valid: Layout, signer: EcdsaSigner) -> None:
    extra = member("blobs/" + "0" * 64, b"extra")
    for index in range(2, len(valid.starts)):
        refuse(valid.insert(index, extra), [signer.verifier], "not canonical")
    refuse(valid.data[:-1024] + extra + bytes(1024), [signer.verifier], "after the end")


def test_b8_a_file_of_the_manifest_is_missing(valid: Layout, signer: EcdsaSigner) -> None:
    ends = (*valid.starts[1:], len(valid.data) - 1024)
    for start, end in zip(valid.starts, ends, strict=True):
        refuse(valid.data[:start] + valid.data[end:], [signer.verifier])


def test_b8_blobs_in_another_order(valid: Layout, signer: EcdsaSigner) -> None:
    a, b, c = valid.starts[3], valid.starts[4], valid.starts[5]
    swapped = valid.data[:a] + valid.data[b:c] + valid.data[a:b] + valid.data[c:]
    assert len(swapped) == len(valid.data)
    refuse(swapped, [signer.verifier], "not canonical")


def test_b9_a_bundle_is_never_inflated(valid: Layout, signer: EcdsaSigner) -> None:
    bomb = valid.data[:-1024] + member("blobs/" + "f" * 64, bytes(1 << 20)) + bytes(1024)
    for packed in (gzip.compress(bomb), lzma.compress(bomb)):
        refuse(packed, [signer.verifier], "not a Skerry bundle|truncated")


def test_b9_no_more_is_read_of_a_blob_than_the_manifest_says(builder: BundleBuilder) -> None:
    data = builder.build()
    manifest = builder.manifest()
    last = Layout.of(data).starts[-1] + 512
    stream = Endless(data[:last], bytes(1 << 16))
    reader = BundleReader(cast(BinaryIO, stream))
    with pytest.raises(BundleFormatError, match="was altered"):
        for _ in reader.blobs(manifest):
            pass
    assert stream.taken == last + manifest.blobs()[-1].size


def test_b10_a_million_entries(builder: BundleBuilder) -> None:
    data = builder.build()
    manifest = builder.manifest()
    entries = Endless(data[: Layout.of(data).starts[1]], member("x"))
    with pytest.raises(BundleFormatError, match="not a Skerry bundle"):
        BundleReader(cast(BinaryIO, entries))
    assert entries.taken == Layout.of(data).starts[1] + 512
    entries = Endless(data[: Layout.of(data).starts[3]], member("x"))
    with pytest.raises(BundleFormatError, match="not canonical"):
        for _ in BundleReader(cast(BinaryIO, entries)).blobs(manifest):
            pass
    assert entries.taken < len(data)


def signed_raw(builder: BundleBuilder, manifest_bytes: bytes, signer: Signer) -> tuple[bytes, bytes]:
    """Any bytes as a manifest, signed by a trusted key."""
    return manifest_bytes, sign_bundle(builder.manifest(), manifest_bytes, signer)


HOSTILE_JSON = {
    "deep": b'{"a":' * 500_00 + b"1" + b"}" * 500_00,
    "duplicate keys": b'{"skerry_manifest":1,"skerry_manifest":1}',
    "NaN": b'{"skerry_manifest":1,"release":NaN}',
    "infinity": b'{"skerry_manifest":1,"release":1e999}',
    "a number of a million digits": b'{"release":' + b"9" * 1_000_000 + b"}",
    "huge": b'{"x":"' + b"a" * (1 << 20) + b'"}',
    "a million entries": b"[" + b"{}," * 300_000 + b"{}]",
    "half a character": b'{"skerry_manifest":1,"name":"\\ud800"}',
    "not UTF-8": b'{"skerry_manifest":1,"name":"\xff"}',
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_b10_hostile_json_in_a_signed_manifest(builder: BundleBuilder, kind: str) -> None:
    manifest_bytes, signature = signed_raw(builder, HOSTILE_JSON[kind], builder.signer)
    with pytest.raises(ManifestError) as caught:
        verify_bundle(manifest_bytes, signature, [builder.signer.verifier])
    assert len(str(caught.value)) < 400
