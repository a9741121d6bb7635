"""The words that made-up texts are made of; all short, common and lower-case."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

QUALITIES = tuple(
    "amber ancient blue brave bright calm clever copper crimson distant early eager emerald faint "
    "famous gentle golden green hidden honest humble ivory kind lively lonely lucky mellow narrow "
    "noble orange pale patient plain proud purple quick quiet rare round royal rustic scarlet "
    "silent silver simple slender smooth solid steady strong sunny swift tall tender tiny violet "
    "warm white wild yellow young".split()
)
THINGS = tuple(
    "anchor apple badger barrel basket bell bottle bridge bucket button cabin camel candle canyon "
    "castle cedar chapel circle clock cloud comet cottage crane crown desert dolphin eagle engine "
    "falcon feather fiddle forest fountain garden glacier hammer harbour harp heron horse island "
    "jacket kettle ladder lantern lemon lion magnet maple market meadow mirror monkey mountain "
    "needle ocean orchard otter oven owl palace panther pencil penguin pepper piano pillow planet "
    "pocket pond prairie rabbit raven ribbon river rocket saddle sailor salmon shepherd spider "
    "station statue temple thunder tiger tower tunnel turtle valley violin wagon walnut willow "
    "window winter wizard".split()
)
_PEOPLE = tuple(
    "gardener baker teacher sailor painter doctor farmer miller judge carpenter mayor librarian "
    "student traveller watchman tailor fisherman musician neighbour clerk".split()
)
_DEEDS = tuple(
    "carried;cleaned;counted;described;drew;found;fetched;forgot;kept;lifted;mended;moved;noticed;"
    "opened;packed;polished;returned;sold;studied;washed;watched;weighed".split(";")
)
_GOODS = tuple(
    "ladder;map;box of nails;loaf of bread;letter;wooden chair;pair of boots;lamp;basket of pears;"
    "bicycle;clay jar;coat;fishing net;newspaper;wheel;sack of flour;table;umbrella;shovel;"
    "picture;rope;bundle of reeds".split(";")
)
_PLACES = tuple(
    "near the mill;behind the school;at the market;by the old well;under the bridge;in the yard;"
    "beside the church;along the canal;in front of the inn;at the edge of the village;on the quay;"
    "in the barn;by the railway;below the hill;near the town hall".split(";")
)
_TIMES = tuple(
    "before noon;after the rain;in the evening;early in the morning;while the others slept;"
    "on a Tuesday;before the frost came;late in spring;without a word;for the second time;"
    "as the bells rang;in no great hurry;when the work was done".split(";")
)
_FORMS = (
    "The {person} {deed} the {good} {place} {time}.",
    "The {person} {deed} a {good} {place}, and the {person} {deed} another.",
    "It was said that the {person} {deed} the {good} {time}.",
    "{time}, the {person} and the {person} {deed} the {good} {place}.",
    "Nobody knew why the {person} {deed} the {good} {place}.",
)
_SLOTS = {
    "person": _PEOPLE,
    "deed": _DEEDS,
    "good": _GOODS,
    "place": _PLACES,
    "time": _TIMES,
}


def sentences(rng: Random) -> Iterator[str]:
    """Plain sentences about nothing that is ever asked, without end."""
    while True:
        words = []
        for part in rng.choice(_FORMS).split("{"):
            name, brace, rest = part.partition("}")
            word = rng.choice(_SLOTS[name]) + rest if brace else part
            words.append(word)
        text = "".join(words)
        yield text[0].upper() + text[1:]


def names(rng: Random, count: int) -> list[str]:
    """`count` different two-word names, such as ``amber falcon``."""
    chosen = rng.sample(range(len(QUALITIES) * len(THINGS)), count)
    return [
        f"{QUALITIES[i % len(QUALITIES)]} {THINGS[i // len(QUALITIES)]}" for i in chosen
    ]


def codes(rng: Random, count: int) -> list[str]:
    """`count` different numbers of seven digits."""
    return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]


def invented(rng: Random, count: int) -> list[str]:
    """`count` different words of six letters that no language has, to be counted."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[
            "".join(rng.choice("bdfglmnprstvz") + rng.choice("aeiou") for _ in range(3))
        ] = None
    return list(made)
