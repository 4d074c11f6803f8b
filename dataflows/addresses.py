"""Places of bundles that are not folders: which addresses are asked, and what may stand in one.

What a record names is asked by the process of the flow, with its rights and from its network; an
address stands in the journal, in logs and in dead letters as it was written.
"""

from __future__ import annotations

__all__ = ["ARCHIVES", "SCHEMES", "address_fault", "is_elsewhere"]

SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss")
"""Kinds of places that are asked. Others of fsspec write elsewhere (caches), run templates
(`reference`), or reach other machines as somebody (`ssh`)."""

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def is_elsewhere(place: str) -> bool:
    """Whether a place is an archive or a URL, so that its bundle must be brought first."""
    return "://" in place or place.lower().endswith(ARCHIVES)


def address_fault(place: str) -> str | None:
    """What is wrong with a place as an address; None of one that may be asked, and of a folder."""
    scheme, url, _ = place.partition("://")
    if url and (scheme not in SCHEMES or "::" in place):
        return (
            f"the address begins with {scheme!r}; expected one of"
            f" {', '.join(f'{name}://' for name in SCHEMES)}, and no chain (`::`)"
        )
    return None
