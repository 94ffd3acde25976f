"""Keeping passwords out of everything that is shown, logged or hashed."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^:@/?#\s]*):(?P<password>.*)@")
_PARAMETER = re.compile(r"(?P<key>[?&;][^=&;\s]+)=[^&;\s#]*")
_HIDDEN = "***"


def mask_url(text: str) -> str:
    """Return a text with the password and the query values of a URL in it replaced by `***`."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\g<key>={_HIDDEN}", _USERINFO.sub(rf"\g<scheme>\g<user>:{_HIDDEN}@", text))
