"""Whether a request to the pack's routes comes from ComfyUI's own page."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent a request for a page of another origin.

    A page can leave out neither of the two headers that this looks at, nor forge them. What sends
    none of them is no page (a script, curl), which no browser has to be protected from. Under a
    host name that an attacker's DNS points at this machine, every page looks like ComfyUI's own:
    against that, only the address on which ComfyUI listens helps.

    Args:
        headers: of the request, looked up without regard to case.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    # Browsers leave that header out towards other machines over plain http.
    origin = headers.get("Origin")
    try:
        return origin is not None and (
            urlsplit(origin).netloc.lower() != headers.get("Host", "").lower()
        )
    except ValueError:  # no address at all
        return True
