"""Whether a regular expression that someone else wrote can be matched in bounded time.

peft matches module names with regular expressions out of its options, so an adapter file can carry
one. Python's matcher backtracks: `(a+)+$` takes longer than anyone waits. Only expressions whose
number of ways to match is bounded by their text are taken.
"""

import re

_UNBOUNDED = 50
"""Ways in which `*`, `+` or `{m,n}` can match within a module's name, which is about so long."""

_TOKEN = re.compile(
    r"""(?P<escape>\\[^0-9gk]) | (?P<class>\[\^?\]?(?:\\.|[^\]\\])*\]) | (?P<open>\((?:\?:)?)
    | (?P<close>\)) | (?P<bar>\|) | (?P<repeat>[*+]|\{\d*,?\d*\}) | (?P<optional>\?)
    | (?P<other>[^\\()\[\]|*+?{}])""",
    re.VERBOSE | re.DOTALL,
)


def ways_to_match(pattern: str) -> float:
    """At most how many ways the matcher may try at a place; infinity where no bound is known.

    Bounds are known for literals, classes and escapes with quantifiers, and for groups of
    alternatives, also optional ones; not for repeated groups, references and assertions.
    """
    ways, position, previous = 1.0, 0, ""
    alternatives = [1]
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or ways > 1e12:
            return float("inf")
        kind = str(token.lastgroup)
        position = token.end()
        if kind == "open":
            if pattern.startswith("?", position):
                return float("inf")
            alternatives.append(1)
        elif kind == "close":
            if len(alternatives) == 1:
                return float("inf")
            ways *= alternatives.pop()
        elif kind == "bar":
            alternatives[-1] += 1
        elif kind == "repeat":
            if previous == "close":
                return float("inf")
            ways *= _UNBOUNDED
        elif kind == "optional" and previous not in ("repeat", "optional"):
            ways *= 2
        previous = kind
    return ways * alternatives[0]
