"""
What extras/story_check.py asks of a story, asked of one in Chinese.

Chinese has neither spaces nor capitals to tell words and names by. So a story's own names become signs, and
then each pair of neighbours must be one that the grammar writes: "那只修斯说" has two that it does not, and
between them stands what another name would stand for.
"""

import functools
import itertools
import random
import re

from extras.stories import chinese
from extras.synthetic_stories import CHINESE, of_one_row, tables, tell

HEROES = chinese.TRIED_HEROES
CREATURES = ("修格斯", "皮卡丘", "霸王龙", "独角兽")
TRIED = chinese.KEPT_OUT
MEETING = "有一天，{hero}遇到了一只{creature}"
PLACE = "。"

KIND, OWN, HERO = "◆", "■", "●"  # the signs: the creature's word, a toy's own name, the hero
SEXES = {name: sex for sex, names in chinese.HEROES.items() for name in names}
SEX_WORDS = {"他": "boy", "男孩": "boy", "她": "girl", "女孩": "girl"}
PUNCTUATION = "，。！？：；“”"
NAME = rf"([^{PUNCTUATION}]{{1,13}})"


def one_of(words):
    return "|".join(sorted(words, key=len, reverse=True))


COLOUR = one_of(CHINESE.words["colour"])
HERO_NAME = re.compile(one_of(SEXES))
FIRST_HERO = re.compile(  # who may have any name
    rf"(?:^[^{PUNCTUATION}]*，(?!有个)|孩叫)([^的{PUNCTUATION}]{{2,8}}?)(?:在|来到|遇到|[，。])"
)


def with_signs(text):
    """A text without white space, with signs for its names, and the names: (text, {sign: name}, heroes)."""
    text = "".join(text.split())
    names = {}
    for sign, pattern in ((KIND, f"一只(?!(?:{COLOUR})的){NAME}[，。]"), (OWN, f"名字叫{NAME}[，。]")):
        if match := re.search(pattern, text):
            names[sign] = match[1]
            text = text.replace(match[1], sign)
    pattern = HERO_NAME
    if match := FIRST_HERO.search(text):
        pattern = re.compile(one_of([*SEXES, match[1]]))
    heroes = pattern.findall(text)
    if heroes:
        names[HERO] = heroes[0]
    return pattern.sub(HERO, text), names, set(heroes)


@functools.cache
def pairs_of_grammar():
    """The pairs of neighbours in some thousands of the grammar's stories; all colours are one sign."""
    rng = random.Random("the grammar's pairs")
    texts = [with_signs(tell(rng, CHINESE)["story"])[0] for _ in range(8000)]
    return {pair for text in texts for pair in itertools.pairwise(re.sub(COLOUR, "▲", text))}


def strange_places(text):
    """[(clause, first, last)], one for each clause that has unknown pairs: where the two begin."""
    known = pairs_of_grammar()
    text = re.sub(COLOUR, "▲", text)
    places = []
    for match in re.finditer(f"[^{PUNCTUATION}]+", text):
        clause = text[max(0, match.start() - 1) : match.end() + 1]  # with what is before and after it
        unknown = [i for i, pair in enumerate(itertools.pairwise(clause)) if pair not in known]
        if unknown:
            places.append((clause, unknown[0], unknown[-1]))
    return places


def role_of(place, names):
    """The sign for which something else stands in a strange place; None: it is no name."""
    known = pairs_of_grammar()
    clause, first, last = place
    fits = []
    for before, after, sign in itertools.product(range(3), range(3), names):  # it may reach further
        start, end = first + 1 - before, last + 1 + after
        between = clause[start:end]
        if start < 1 or end >= len(clause) or not 0 < len(between) < 8:
            continue
        left, right = clause[start - 1], clause[end]
        alike = bool(set(between) & set(names[sign]))
        if {left, right} - {sign} and (alike or before == after == 0):
            if (left == sign or (left, sign) in known) and (right == sign or (sign, right) in known):
                fits.append((not alike, sign))
    return min(fits)[1] if fits else None


def unknown_words(text):
    """Pieces of a text that the grammar does not write, and that stand for no name."""
    text, names, _ = with_signs(text)
    places = [place for place in strange_places(text) if role_of(place, names) is None]
    return [clause[first : last + 2] for clause, first, last in places]


# --------------------------------------------------------------------------------------------------------
# Things and colours.


def column(name):
    """What the plots' tables have for a slot."""
    found = []
    for slots, rows in itertools.chain(*map(tables, chinese.PLOTS.values())):
        if name in slots:
            found += [row[slots.index(name)] for row in rows]
    return set(found)


FEATURES = [has[2:].split("的") for has in CHINESE.words["has"]]  # after 一条 and the like: 毛茸茸, 尾巴
THINGS = (
    re.compile(one_of(column("thing"))),
    re.compile(one_of(column("food"))),
)
LOOKS = re.compile(f"(?:{one_of(f[0] for f in FEATURES)})的(?:{one_of(f[1] for f in FEATURES)})")
COLOUR_OF_KIND = re.compile(f"(?<=是)({COLOUR})的|({COLOUR})的(?={KIND})")
COLOUR_OF_THING = re.compile(f"(?<!是)({COLOUR})的(?!{KIND})")


def check_things(text):
    """Whether the thing and the food stay what they are; None: there is none."""
    kinds = [set(pattern.findall(text)) for pattern in THINGS]
    return all(len(kind) <= 1 for kind in kinds) if any(kinds) else None


def check_colours(text):
    """Whether creature and thing keep their colours; None: none is told twice."""
    found = [COLOUR_OF_THING.findall(text), [a or b for a, b in COLOUR_OF_KIND.findall(text)]]
    return all(len(set(colours)) <= 1 for colours in found) if max(map(len, found)) > 1 else None


def check_pronouns(text, hero):
    sexes = {SEX_WORDS[word] for word in re.findall("[他她](?!们)|[男女]孩", text)}
    return len((sexes | {SEXES.get(hero)}) - {None}) < 2 if hero else None


def check_story(text, ended=None):
    """{property: True, False, or None where it does not apply}; ended: None judges by the last sentence."""
    signs, names, heroes = with_signs(text)
    strangers = {role_of(place, names) for place in strange_places(signs)}
    looks = set(LOOKS.findall(signs))
    complete = re.search("[。！？]”?$", text) and text.count("“") == text.count("”")
    return {
        "ended by itself": bool(complete) if ended is None else ended,
        "hero keeps the name": len(heroes) == 1 and HERO not in strangers if heroes else None,
        "creature's word kept": KIND not in strangers if KIND in names else None,
        "own name kept": OWN not in strangers if OWN in names else None,
        "pronouns fit the hero": check_pronouns(signs, names.get(HERO)),
        "thing keeps its kind": check_things(signs),
        "thing keeps its colour": check_colours(signs),
        "help fits the trouble": of_one_row("".join(text.split()), CHINESE, 5),
        "tail or ears stay": len(looks) == 1 if looks else None,
        "every word is one": not unknown_words(text),
    }


def is_about(text, word):
    """Whether the creature of a story is this word, and stays so."""
    kept = check_story(text)["creature's word kept"]
    return bool(kept) and with_signs(text)[1][KIND] == word and text.count(word) > 2
