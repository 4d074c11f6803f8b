"""Places of bundles that are not folders: which addresses are asked, and what may stand in one.

What a record names is asked by the process of the flow, with its rights and from its network; an
address stands in the journal, in logs and in dead letters as it was written.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

__all__ = ["SCHEMES", "address_fault", "file_name", "is_archive", "is_elsewhere", "masked"]

SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss")
"""Kinds of places that are asked. Others of fsspec write elsewhere (caches), run templates
(`reference`), or reach other machines as somebody (`ssh`)."""

_CONTAINERS = ("az", "abfs", "abfss")
"""In whose addresses a container stands where others have a user."""

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


_USER = re.compile(r"(:\\*/\\*/)[^/?#\s\"]*@")
"""A user and password of an address, in a text or in JSON."""

_QUERY = re.compile(r"(:\\*/\\*/[^\s\"'?#]*)\?[^\s\"'#]*")
"""What stands behind the `?` of an address: it may be a signature that lets its reader in."""


def file_name(place: str) -> str:
    """Name of the file at a place: of a URL without what is asked of its server."""
    if place.startswith(("http://", "https://")):
        place = urlsplit(place).path
    return PurePosixPath(place).name


def is_archive(place: str) -> bool:
    """Whether a place is an archive, by its name."""
    return file_name(place).lower().endswith(_ARCHIVES)


def is_elsewhere(place: str) -> bool:
    """Whether a place is an archive or a URL, so that its bundle must be brought first."""
    return "://" in place or is_archive(place)


def masked(text: str) -> str:
    """A text without the users, passwords and queries (signatures) of the addresses in it.

    >>> masked("bundle https://me:secret@host/b.tgz?sig=x not there")
    'bundle https://***@host/b.tgz?*** not there'
    """
    return _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", text))


def address_fault(place: str) -> str | None:
    """What is wrong with a place as an address; None of one that may be asked, and of a folder."""
    scheme, url, _ = place.partition("://")
    if url and (scheme not in SCHEMES or "::" in place):
        return (
            f"the address begins with {scheme!r}; expected one of"
            f" {', '.join(f'{name}://' for name in SCHEMES)}, and no chain (`::`)"
        )
    try:
        user, at, _ = urlsplit(place).netloc.rpartition("@") if url else ("", "", "")
    except ValueError:
        return "the address is none; expected https://host/path or the like"
    if at and (scheme not in _CONTAINERS or ":" in user):
        return (
            "the address has a user or password in it, which the journal and logs would show; leave"
            " them out, and give them to the flow as the library for this kind of place reads them"
            " (its environment, fsspec's configuration)"
        )
    return None
