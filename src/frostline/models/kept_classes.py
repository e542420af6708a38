"""Which class of the data each logit of a kept classifier stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from frostline.errors import ModelError

_SHOWN = 8


def own_order(classes: Sequence[str], own: Sequence[str] | None) -> tuple[str, ...]:
    """The data's classes in the order of the classifier's own names, where it has them.

    Capitals and underscores do not count. Where no name is the same, as with numbers or ids for
    names, the order stays.

    Raises:
        ModelError: some names are the classifier's, and others are not.
    """
    place = {_plain(name): number for number, name in enumerate(own or ())}
    unknown = [name for name in classes if _plain(name) not in place]
    if len(unknown) == len(classes):
        return tuple(classes)
    places = {place.get(_plain(name)) for name in classes}
    if unknown or len(places) < len(classes):
        raise ModelError(
            f"{len(classes) - len(unknown)} of the data's {len(classes)} classes are named like "
            f"those of the kept classifier, and others are not: {', '.join(unknown[:3]) or 'twice'}"
            ". Name all like the classifier's, or by their numbers from 0; or replace it "
            "(--on classifier)."
        )
    return tuple(sorted(classes, key=lambda name: place[_plain(name)]))


def mapping_words(order: Sequence[str], own: Sequence[str] | None) -> str:
    """One line on what each logit is taken for."""
    names = own if own is not None and len(own) == len(order) else ()
    named = [*map(_plain, names)] == [*map(_plain, order)]
    shown = list(enumerate(order))[:_SHOWN]
    if named or not names:
        pairs = [f"{number} is {name}" for number, name in shown]
    else:
        pairs = [f"{number} ({names[number]}) is {name}" for number, name in shown]
    how = "by its own names" if named else "in the order of the data's names"
    more = ", ..." if len(order) > _SHOWN else ""
    return f"of the kept classifier {how}: logit {', '.join(pairs)}{more}"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ")
