"""Which requests come from a page of another origin."""

from __future__ import annotations

import pytest

from perfusion_core.page.origin import is_foreign

HOST = {"Host": "127.0.0.1:8188"}


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),  # a script
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),  # typed into the address bar
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),  # another port of this machine
        ({"Origin": "http://127.0.0.1:8188"}, False),
        ({"Origin": "http://127.0.0.1:9999"}, True),
        ({"Origin": "http://elsewhere.example"}, True),
        ({"Origin": "null"}, True),  # a file, a sandboxed frame
        # Behind a proxy that names another host, the browser knows better.
        ({"Origin": "https://my.example", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_origin(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign({**HOST, **headers}) is foreign
