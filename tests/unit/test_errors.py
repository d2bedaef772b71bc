"""Messages of errors quote names from damaged files and still are one line of characters that can be printed."""

import pytest

from nerfit.errors import NerfitError


@pytest.mark.parametrize("odd", ["\n", "\x00\x1b", "\u2028", "\ud800", "\u202e", "\u00ad", "\u0378", "\ue000"])
def test_what_can_not_be_printed_is_a_space_in_messages(odd: str) -> None:
    """Control characters, halves of pairs, changes of direction, unassigned and private characters; letters of any language stay."""
    assert str(NerfitError(f"é {odd}ü 深.")) == "é  ü 深."
