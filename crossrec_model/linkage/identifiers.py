"""E-mail addresses, telephone numbers and item codes, each in the one form that both platforms hash.

Rules for an address: spaces around it go; Unicode's compatibility forms become one (NFKC); there is exactly
one @, at most 254 characters, no spaces or control characters; the domain goes to lower-case ASCII by IDNA
(UTS 46) and a dot at its end goes; the local part is case-folded. Strictly speaking mail servers may tell
`Ann` from `ann`; none that matters does. With `gmail` on (the default, both platforms must agree), dots
and anything from + on go from the local part at gmail.com and googlemail.com, which are one.

A telephone number becomes E.164; one without a country code is read as of the stated region. An item code
of 8, 12, 13 or 14 digits must have the right check digit and becomes a GTIN-14.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

import idna
import phonenumbers

from crossrec_model.errors import ConfigError, DataError, shown

_MOST_ADDRESS: Final = 254
_MOST_LOCAL: Final = 64
_MOST_PHONE: Final = 64
_GMAIL: Final = frozenset({"gmail.com", "googlemail.com"})
#: Left out are spaces, controls, halves of surrogates, and what would need quotes.
_LOCAL: Final = re.compile(r'[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff"(),:;<>@\[\]\\]+')
_GTIN: Final = re.compile(r"[0-9]{8}|[0-9]{12,14}")
_SEPARATORS: Final = re.compile(r"[ -]")


class IdentifierError(DataError):
    """A text that is no such identifier. It is not quoted: it may be a person's."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What both platforms agree on: whether Gmail's rules apply, the region of bare phone numbers.

    `region` is ISO 3166, two capital letters, or empty: then numbers need their country code.
    """

    gmail: bool = True
    region: str = ""

    def __post_init__(self) -> None:
        if self.region and self.region not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigError(
                f"region {shown(self.region)} is no country with telephone numbers; give two capital "
                "letters such as DE, or none"
            )

    def email(self, text: str) -> str:
        """Return an address in its one form; raises IdentifierError for anything else."""
        if len(text) > 4 * _MOST_ADDRESS:
            raise IdentifierError("an address is too long")
        local, at, domain = unicodedata.normalize("NFKC", text.strip()).strip().rpartition("@")
        if not at or not _LOCAL.fullmatch(local):
            raise IdentifierError(
                "an address has no local part, no @, or a character that it can't have"
            )
        # Folding can undo the normal form.
        local = unicodedata.normalize("NFKC", local.casefold())
        host = _host(domain)
        if self.gmail and host in _GMAIL:
            local, host = local.partition("+")[0].replace(".", ""), "gmail.com"
        if not local or len(local) > _MOST_LOCAL or len(local) + len(host) >= _MOST_ADDRESS:
            raise IdentifierError("an address is empty or too long")
        return f"{local}@{host}"

    def phone(self, text: str) -> str:
        """Return a telephone number in E.164; raises IdentifierError for anything else."""
        if len(text) > _MOST_PHONE:
            raise IdentifierError("a telephone number is too long")
        try:
            number = phonenumbers.parse(text.strip(), self.region or None)
        except phonenumbers.NumberParseException:
            raise IdentifierError(
                "a telephone number can't be read; does it need --region?"
            ) from None
        if number.extension or not phonenumbers.is_valid_number(number):
            raise IdentifierError("a telephone number is of no country, or has an extension")
        return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def gtin(text: str) -> str:
    """Return an item code as GTIN-14; raises IdentifierError for a wrong length or check digit."""
    bare = _SEPARATORS.sub("", text.strip()) if len(text) <= _MOST_PHONE else ""
    if not _GTIN.fullmatch(bare):
        raise IdentifierError("an item code is not 8, 12, 13 or 14 digits")
    code = bare.zfill(14)
    weighed = sum(int(digit) * (3 - 2 * (place % 2)) for place, digit in enumerate(code[:-1]))
    if (10 - weighed % 10) % 10 != int(code[-1]):
        raise IdentifierError("an item code's check digit is wrong")
    if not int(code):
        raise IdentifierError("an item code is all zeros")
    return code


def _host(domain: str) -> str:
    if len(domain) > _MOST_ADDRESS:
        raise IdentifierError("an address's domain is too long")
    try:
        host = idna.encode(domain.removesuffix("."), uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError, IndexError):
        raise IdentifierError("an address's domain is none") from None
    if "." not in host:
        raise IdentifierError("an address's domain has no dot")
    return host
