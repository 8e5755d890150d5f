"""A key for people: the same thumbprint as a short code to type and as words to read out.

An operator who approves a board has two lines in front of him, the Pi shows the same two. The code (bytes 0 to 4 of the
RFC 7638 thumbprint, in Crockford's base 32, which has no I, L, O and U) finds the device; the words (bytes 5 to 12, one
of 256 words each) make sure that it is this key and no other. They share no byte: whoever wants to pass for a board
would have to find a key that agrees in all 104 bits.

The list has no two words that begin with the same four letters, and none that one slip of the pen turns into another.
It is part of the format: it never changes.
"""

from __future__ import annotations

from pi_agent.errors import UsageError
from pi_agent.jws import b64url_decode

WORDS = """
    acorn actor adobe agent alarm album almond amber anchor ankle apple april arrow atlas autumn avenue bacon
    badge baker bamboo banjo barley basket bench berry bicycle bishop blanket bonfire border bottle bridge
    bronze bucket butter cabin cactus camel candle canyon carbon castle cedar cellar cherry chimney cider cinema
    circus clock clover cobalt coffee comet copper coral cotton cousin cradle crystal cuckoo dagger daisy dancer
    dawn delta denim desert diamond dinner dolphin domino dragon drum eagle earth echo eight elbow elder engine
    envelope evening falcon farmer feather fence fiddle flame flute forest fossil fox garden garlic gentle giant
    ginger glacier goblet golden granite grape guitar hammer harbor harvest hazel helmet hermit hippo hollow
    honey horizon hunter igloo indigo island ivory jacket jaguar jasmine jelly jigsaw jungle kayak kettle
    kitchen kiwi knight ladder lagoon lantern laurel lemon leopard library lilac linen lobster lotus lumber
    lunar magnet maple marble meadow melon mirror mitten monkey morning mosaic mountain museum mustard napkin
    nectar needle nickel noble north nutmeg oasis oatmeal ocean octopus olive onion opera orange orbit orchid
    otter oxygen oyster palace panda paper parrot peach pebble pepper piano picnic pigeon pilot planet plum poem
    polar pony potato prairie pumpkin puzzle quartz queen quiver rabbit radish raven ribbon river robin rocket
    rubber saddle saffron salmon sandal satin saturn scarlet seven shadow shell silver sister snow spider spring
    square summer sunset swan table tango teapot thunder tiger timber tomato topaz tractor trumpet tulip turtle
    twelve umbrella uncle valley vanilla velvet village violin walnut walrus water willow window winter wizard
    yellow yogurt zebra
""".split()  # noqa: SIM905  # 256 quoted words would hide the list in punctuation

CODE_LENGTH = 8
CODE_BYTES = slice(0, 5)
WORD_BYTES = slice(5, 13)

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SLIPS = str.maketrans({"I": "1", "L": "1", "O": "0", "-": "", " ": ""})


def code(kid: str) -> str:
    """The short code of a key by its ``kid``, such as ``7QK2-0XWM``. Raises MalformedTokenError for what is no thumbprint."""
    number = int.from_bytes(b64url_decode(kid)[CODE_BYTES], "big")
    digits = "".join(DIGITS[number >> shift & 31] for shift in range(35, -1, -5))
    return f"{digits[:4]}-{digits[4:]}"


def words(kid: str) -> tuple[str, ...]:
    """The eight words of a key by its ``kid``. Raises MalformedTokenError for what is no thumbprint."""
    return tuple(WORDS[byte] for byte in b64url_decode(kid)[WORD_BYTES])


def read_code(text: str) -> str:
    """The code as ``code`` writes it, from how somebody typed it. Raises UsageError."""
    digits = text.upper().translate(_SLIPS)
    if not text.isascii() or len(digits) != CODE_LENGTH or any(digit not in DIGITS for digit in digits):
        raise UsageError(f"{text!r} is not a code", hint="it looks like 7QK2-0XWM; the Pi shows it: pi-agent key show")
    return f"{digits[:4]}-{digits[4:]}"
