"""One file over HTTP: resumed where it broke off, from several places, checked, there whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from common.shell import progress
from kornia_hardnet8.errors import HardNet8Error, UsageError, need

log = logging.getLogger(__name__)
_BLOCK = 1 << 15  # what a broken connection loses at most
_TRIES = 4  # of one place without a new byte
_KINDS = {32: "md5", 64: "sha256"}  # by the digits of a checksum
_RESERVE = 64 << 20  # bytes of the disk that stay free


class DownloadError(HardNet8Error, OSError):
    """A file that no place gave whole and right."""


class _WrongError(Exception):
    """What a place gives is wrong: try the next one."""


def download(urls: Iterable[str], target: Path, checksums: Iterable[str] = (), wait_s: float = 1.0) -> Path:
    """Fetch ``target`` from the first of ``urls`` that gives it; a file that is there and right is left alone.

    A broken download goes on where it ended, also in a later call (``.NAME.<hash>.part`` beside the target), if the
    server can; proxies come from the environment (``HTTPS_PROXY``).

    Args:
        urls: places of the file, best first.
        target: where it goes.
        checksums: accepted MD5 or SHA-256 sums (hex); none: anything complete is accepted.
        wait_s: pause before the first new try, doubled for each further one.

    Raises:
        UsageError: a checksum of another form.
        DownloadError: no place gave it; the message says why not, place by place.
        OSError: the disk is too small or full.
    """
    accepted = tuple(checksums)
    check_checksums(accepted)
    if target.is_file() and is_accepted(target, accepted):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        part = target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
        try:
            _fetch(url, part, wait_s)
            if not is_accepted(part, accepted):
                part.unlink()
                raise _WrongError("its checksum is wrong")
        except _WrongError as error:
            reasons.append(f"{url}: {error}")
            log.warning("%s: %s", url, error)
            continue
        part.replace(target)
        return target
    raise DownloadError(f"{target.name} could not be fetched ({'; '.join(reasons) or 'no place is known'})")


def check_url(url: str) -> None:
    """Raise a UsageError for what is no address of a file that can be fetched."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url!r} cannot be fetched: an address begins with http:// or https:// and a host")
    if file_name(url) in ("", ".", ".."):
        raise UsageError(f"{url!r} names no file: its path ends in none")


def file_name(url: str) -> str:
    """The last part of the path of a URL; empty where it has none."""
    return urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1]


def check_checksums(checksums: Iterable[str]) -> None:
    """Raise a UsageError for what is no MD5 or SHA-256 sum."""
    for value in checksums:
        if len(value) not in _KINDS or set(value.lower()) - set("0123456789abcdef"):
            raise UsageError(f"{value!r} is no checksum: an MD5 has 32, a SHA-256 64 hexadecimal digits")


def is_accepted(path: Path, checksums: Iterable[str]) -> bool:
    """Whether the MD5 or SHA-256 of a file is one of ``checksums``; anything is when there are none."""
    accepted = {value.lower() for value in checksums}
    if not accepted:
        return True
    for length in {len(value) for value in accepted}:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, _KINDS[length]).hexdigest() in accepted:
                return True
    return False


def _fetch(url: str, part: Path, wait_s: float) -> None:
    """Complete ``part``; raises :class:`_WrongError` when the place does not give any more."""
    requests = need("requests", "train")
    fruitless, restarted = 0, False
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            whole = _read_on(requests, url, part, have)
            size = part.stat().st_size
            if whole is None or size == whole:
                return
            reason = f"it ended after {size} of {whole} bytes"
            if size > whole:
                part.unlink()
                raise _WrongError(f"it sent {size} bytes and announced {whole}")
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 416 and not restarted:  # nothing after what is there, and that is not the whole
                restarted, reason = True, "it has fewer bytes than it announced"
                part.unlink(missing_ok=True)
            elif status == 416:
                part.unlink(missing_ok=True)
                raise _WrongError("it has fewer bytes than it announced") from None
            elif status in (408, 429) or status >= 500:
                reason = f"HTTP status {status}"
            else:
                raise _WrongError(f"HTTP status {status}") from None
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:  # also where it redirects
            raise _WrongError(_root_reason(error)) from None
        except requests.RequestException as error:
            reason = _root_reason(error)
        grown = (part.stat().st_size if part.exists() else 0) > have
        fruitless = 0 if grown else fruitless + 1
        if fruitless >= _TRIES:
            raise _WrongError(reason)
        log.info("%s: %s; trying again", url, reason)
        time.sleep(wait_s * 2 ** max(0, fruitless - 1) if wait_s else 0)


def _read_on(requests: object, url: str, part: Path, have: int) -> int | None:
    """Ask for what comes after ``have`` bytes and write it; returns the size of the whole, None if not told."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(15, 60)) as response:  # type: ignore[attr-defined]
        if response.status_code == 416 and response.headers.get("Content-Range", "") == f"bytes */{have}":
            return have  # it is all there
        response.raise_for_status()
        resumed = response.status_code == 206
        first, whole = _extent(response.headers, resumed)
        if first != have and resumed:
            raise _WrongError(f"it answered with bytes from {first}, asked for those from {have}")
        remaining = None if whole is None else whole - (have if resumed else 0)
        free = shutil.disk_usage(part.parent).free
        if remaining is not None and remaining + _RESERVE > free:
            raise OSError(f"{part.parent} has {free >> 20} MB free, {url} needs {remaining >> 20} MB")
        blocks = response.iter_content(_BLOCK)
        total = None if remaining is None else -(-remaining // _BLOCK)
        with open(part, "ab" if resumed else "wb") as file:
            for block in progress(blocks, total=total, what=file_name(url), unit="block"):
                file.write(block)
        return whole


def _root_reason(error: BaseException) -> str:
    """What the innermost of nested errors says."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:120] or type(error).__name__


def _extent(headers: object, resumed: bool) -> tuple[int, int | None]:
    """First byte and size of the whole, by the headers of an answer."""
    get = headers.get  # type: ignore[attr-defined]
    if not resumed:
        length = get("Content-Length")
        return 0, int(length) if length is not None and length.isdigit() else None
    span, _, whole = get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdigit():
        raise _WrongError("its answer to a request for a range says no range")
    return int(first), int(whole) if whole.isdigit() else None
