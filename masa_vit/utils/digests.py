"""SHA-256 digests in the weight files that the package writes, to detect damage.

A `.pth` file, a zip archive, has one more member, which torch ignores; a `.safetensors` file has it
in its metadata, beside `written_by`.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

DIGEST = 'masa_vit.sha256'


def digest_of_archive(archive: zipfile.ZipFile) -> str:
    """SHA-256 of names, sizes and bytes of all members but the digest itself, in order of names."""
    digest = hashlib.sha256()
    for member in sorted(archive.infolist(), key=lambda member: member.filename):
        if member.filename.rpartition('/')[2] == DIGEST:
            continue
        digest.update(f'{member.filename}\0{member.file_size}\0'.encode())
        with archive.open(member) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def add_digest(data: bytes) -> bytes:
    """Add a member with a SHA-256 digest to the bytes that `torch.save` wrote; torch ignores it."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, 'a') as archive:
        root = archive.namelist()[0].partition('/')[0]
        member = zipfile.ZipInfo(f'{root}/{DIGEST}')  # without the time: equal content, equal bytes
        archive.writestr(member, digest_of_archive(archive))
    return buffer.getvalue()


def save_weights(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a `.safetensors` file, with a digest in its metadata.

    Args:
        tensors: On the CPU, contiguous.
        metadata: Of the file.
    """
    return sign_safetensors(save(dict(tensors), dict(metadata)))


def sign_safetensors(data: bytes) -> bytes:
    """Add a SHA-256 digest to the metadata of a `.safetensors` file."""
    length = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:length])
    metadata = {**header.get('__metadata__', {}), 'written_by': 'masa_vit'}
    metadata.pop(DIGEST, None)
    header = {'__metadata__': metadata, **{k: v for k, v in header.items() if k != '__metadata__'}}
    metadata[DIGEST] = digest_of_tensors(header, memoryview(data)[length:])
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)  # the data are aligned
    return len(text).to_bytes(8, 'little') + text + data[length:]


def digest_of_tensors(header: dict[str, Any], data: Any) -> str:
    """SHA-256 of the header of a `.safetensors` file, without the digest itself, and of its data."""
    metadata = {key: value for key, value in header['__metadata__'].items() if key != DIGEST}
    text = json.dumps({**header, '__metadata__': metadata}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(data)
    return digest.hexdigest()
