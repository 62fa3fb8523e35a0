"""Regular expressions of values in a recipe, and what each allows in words."""

from __future__ import annotations

import difflib

KNOWN_OPTIMIZERS = ("adamw", "sgd", "adafactor", "lion", "muon", "adamw8bit")
OWN_NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # package.module:Name
OPTIMIZER = rf"^({'|'.join(KNOWN_OPTIMIZERS)}|torch\.optim\.\w+|[\w.]+:\w+)$"
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
QUOTE = r"^(none|backslash|[^\w\s])$"
DURATION = r"^[1-9]\d*(s|min|h)$"

_WORDS = {
    OWN_NAME: "write package.module:name, a function or class of your own in a module that Python can import, such as "
    "my_package.my_module:MyClass",
    OPTIMIZER: f"allowed: {', '.join(KNOWN_OPTIMIZERS)}, torch.optim.NAME such as torch.optim.NAdam, and "
    "package.module:Class of your own",
    RUN_NAME: "use letters, digits, '.', '_' and '-', with a letter or digit first",
    QUOTE: "allowed: one punctuation character, none, backslash",
    DURATION: "write a number of steps, or a time such as 30s, 15min or 2h",
}


def in_words(pattern: str, value: object) -> str | None:
    """Return what a value that does not match a pattern of this module should be. None for other patterns."""
    if pattern not in _WORDS:
        return None
    known = KNOWN_OPTIMIZERS if pattern == OPTIMIZER else ()
    near = difflib.get_close_matches(str(value).lower(), known, n=1, cutoff=0.5)
    return f"{value!r} has another form" + (f"; did you mean {near[0]!r}?" if near else "") + f"; {_WORDS[pattern]}"
