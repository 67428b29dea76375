"""
Write made-up children's stories from a seeded grammar, for a machine that cannot download TinyStories.

    python -m extras.synthetic_stories         # print three stories
    python -m extras.synthetic_stories 7       # with another seed
    python -m extras.synthetic_stories 7 zh    # in Chinese: extras/story_plots_zh.py has the words and plots

tinystories.py synthesize calls write_stories(), which fills a folder with files in the format of the real
data. The same (seed, shards, megabytes) gives the same files on every machine.

Each story follows one of ten plots. Its characters keep their name, sex and belongings, because whatever
a story has picked is remembered in one dict. Every story has a creature, a pet or a toy whose name is put
together from syllables, letters or pieces of words, and seldom comes twice. Such names cannot be learned by
heart: to write "the Brindlewump" again, a model must learn to look back and copy. That is what lets it
continue the prompt "One day, Lily met a Shoggoth" about the Shoggoth, a word that no story has.

All that is random in a story is a choice whose probability is known. So we know, too, how well the stories
can be predicted at best: see the limit, below.

This is no substitute for TinyStories, which has far more plots, words and turns. A model trained on this
learns these plots, reaches a very low loss, and can tell nothing else.
"""

import functools
import math
import random
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from configurator import write_json
from extras import story_plots_zh as zh
from extras.story_plots import PLOTS, TRIED

# --------------------------------------------------------------------------------------------------------
# The limit. A perfect model needs -log2 P bits for a story of probability P. A choice of probability p costs
# -log2 p bits, and the bits of the choices that made a story add up to those of the story. Two things make
# the sum a little too high, so it bounds P from below and the entropy from above: several choices may give
# the same text, and names that were rejected leave their probability to the others (0.28 bits per name).
#
# Not every choice shows in the story: of "[a [big|small] tear|nothing]" both are made, and "nothing" hides
# the first. So a choice leaves a mark after its text, a character that Unicode keeps for private use, and
# those that are in the finished story count, each once. tell() removes the marks.

FIRST_MARK = 0xF0000
MARK = re.compile("[\U000f0000-\U000fffff]")


def mark(p: float, s: dict) -> str:
    """The mark of a choice of probability p in the story whose memory is `s`."""
    s["bits"].append(-math.log2(p))
    return chr(FIRST_MARK + len(s["bits"]) - 1)


def choose(options: list[str], s: dict, rng: random.Random) -> str:
    """One of the options, and its mark."""
    option = rng.choice(options)
    return option + mark(options.count(option) / len(options), s)


def sum_of_bits(text: str, s: dict) -> float:
    """The bits of the choices that show in a text which still has its marks."""
    return sum(s["bits"][ord(m) - FIRST_MARK] for m in set(MARK.findall(text)))


# --------------------------------------------------------------------------------------------------------
# Made-up names, of every kind that people may type: a model copies only what it has had to copy. Syllables
# (onset, vowel, middle, ending, as in Sh-o-gg-oth), any letters, pieces of English words, an echo, a thing.
# What is listed twice comes twice as often.

ONSETS = """b bl br ch cl cr d dr dw f fl fr g gl gr h j k kl kn kr l m n p pl pr qu r s sh shr sk sl sm sn sp
    spl spr squ st str sw t th thr tr tw v w wh y z zw b d g m p sh t z""".split()
VOWELS = "a e i o u a e i o u a e i o u oo ee ai oa ou y ea".split()
MIDDLES = """b bb bl br d dd ddl dl dr ff fr g gg ggl gl gr h j k ck kl l ll lb ld lf lm lt m mm mb mbl mp mpl
    n nn nd ndl ndr ng ngl nk nt nz p pp ppl pl r rr rb rd rg rl rm rn rt s ss sh sk sp st t tt th v w x z zz
    zzl""".split()
ENDINGS = """ab ack aff ak am an and ank ap ar arb ark arp ash at atch ax az eb eck ed eeb eek eem een eep el
    elf elk elt em en ent er erd erk esh est et ib ick if ig ill im imp in ind ing ink int ip irp ish isk
    ist ix iz ob ock od og ol omp on onk oo oof ook oom oon oop op or orb ord ork orn orp osh oss ost ot
    oth ox oz ub uck uff ug ulk um umf ump un unk up urb urk urp ush usk ust uth ux uzz amble imble omble
    umble addle iddle oodle uddle aggle iggle oggle uggle ipple opple azzle izzle uzzle ingle angle a a o
    o i y ie oo ia
    us is""".split()

# What a vocabulary of 1,024 pieces, trained on these stories, has: a piece that no name has is never copied.
STARTS = """
    Ad After An And Anna At Ava Ben Billy Bob But Crack Dan David Ella Em Emma Eva Every Fe Felix Finn
    Fr From He Hugo In Iris It Ja Jack James Jane Kate Li Lily Lu Mary Maya Mia Nick Nina No Noah Nora
    Oliver On Once One Os Oscar Peter Ru Ruby Sam Sara She Simon Soon Sop Sophie Sp St Th That The Then
    There They This Tim To Toby Tom Zoe b c d f g h j k l m n p r s t v w x y z
""".split()
PIECES = """
    ab ad age ah ai aid ail ain ais ait ake al all am amed an and ane ang ange ap ar ara ard ark ars ary
    as ast at ate au av avid aw ax ay aya ayed ble bout by bye ca car cau cause ce ch ched ck ct cy day
    de dea ea ear eb ed ee eet el ell ellow en end ent eo ep er ere ered es et eter ether etter ff fore
    fr fraid ft fter fu ful gain gan ge ger gg gh ght ha hank hant hat he hed hen her here hi hie hind
    hing his ho ht hy ia ick id ide ie ig ight il iled ill illow illy im imals imon in ina ind ing ink
    inn iny ip ir irl is it ite ith itt ittle ive iz ke ked ket key la lag ld le lea lease led leep lep
    lf li liver lix ll lla lled lly lo los lp ls ly ma mall mals mb me mes my na nd nder ne ned new ng
    nk no now nt ntil ny ob od ody oe og oi oise old olden olly om ome on one ong onkey oo ood ook ooked
    ool oon oor op ope or ora ore orn orry os ot other ou oud ought ould ound ous out ow own ox oy pa
    ped ple pp pped ppy qu quoise ra rack rave re ree ret ri ried riend ris ro roke rong roud round row
    rown ry se side sket st te ter to ty ub uck ud udd ue ug ugo um ump un ung unny up ur us ut va ve
    ved ver very way xt yes zz
""".split()
THINGS = """Teapot Mitten Spoon Candle Lantern Pillow Kettle Ladder Hammer Sock Zipper Sponge Broom Bottle
    Chimney Carpet Saddle Fiddle Compass Anchor Cactus Turnip Radish Mango Noodle Dumpling Pickle Thimble
    Doorbell Snowflake Raindrop Icicle Rainbow Cloud Cobweb""".split()

# No rude word by accident (rough patterns, so that few are spelled out).
UNWANTED = re.compile(
    """[fdcgkb][aeiouy]+c?k | pr.ck | f[ae]g | sh.t | [ck][uo]+n | n[ie]g | [ct]l?[iu]t |
    t.rd | ass | [ck]um | p[ie]s | p[eo]n | wh?o+r | sl.[tg] | tw.t | w.nk | b.[st] | r.p[eiy] | an[ua]s |
    sp.c?k | j[ae]p | j.w | naz | hell | s.x | p.rn | boob | dr.nk | k.ll | d[ie].$ | dumb | d.mn | d.ng |
    shag | h.m[ou] | ^uni | ^eu""",
    re.X,
)


def syllables(s: dict, rng: random.Random) -> str:
    """Brindlewump. No name can be put together in two ways."""
    if rng.random() < 0.9:
        marked = choose(ONSETS, s, rng) + mark(0.9, s)
    else:
        marked = mark(0.1, s)
    middles = rng.choice((0, 1, 1, 1, 1, 2))
    marked += mark(4 / 6 if middles == 1 else 1 / 6, s)
    for _ in range(middles):
        marked += choose(VOWELS, s, rng) + choose(MIDDLES, s, rng)
    return marked + choose(ENDINGS, s, rng)


def letters(s: dict, rng: random.Random) -> str:
    """Kuzoviy: any letters, but no three consonants or vowels in a row."""
    name = ""
    marks = ""
    for _ in range(rng.choice(range(4, 12))):
        vowels = [c in "aeiouy" for c in name[-2:]]
        if len(vowels) == 2 and vowels[0] == vowels[1]:
            pool = "bcdfghjklmnpqrstvwxz" if vowels[0] else "aeiouy"
        else:
            pool = "abcdefghijklmnopqrstuvwxyz" + "aeiou" * 3
        letter = rng.choice(pool)
        name += letter
        marks += mark(pool.count(letter) / len(pool), s)
    return name + marks + mark(1 / 8, s)


def pieces(s: dict, rng: random.Random) -> str:
    """Normaliver: pieces of words."""
    number = rng.choice((1, 2, 3))
    inner = "".join(choose(PIECES, s, rng) for _ in range(number))
    return choose(STARTS, s, rng) + inner + mark(1 / 3, s)


def echo(s: dict, rng: random.Random) -> str:
    """Trabombombo: syllables, one of which is said again."""
    first = choose(ONSETS, s, rng) + choose(VOWELS, s, rng) if rng.random() < 0.5 else ""
    syllable = choose(ONSETS, s, rng) + choose(VOWELS, s, rng)
    again = rng.choice((1, 2, 3))
    end = choose(ENDINGS, s, rng) if rng.random() < 0.5 else ""
    marks = mark(0.5, s) + mark(1 / 3, s) + mark(0.5, s)
    return first + syllable + MARK.sub("", syllable) * again + end + marks


def thing(s: dict, rng: random.Random) -> str:
    return choose(THINGS, s, rng)


WAYS = [syllables] * 3 + [letters] * 4 + [pieces] * 6 + [echo] * 2 + [thing]


def made_up_name(s: dict, rng: random.Random) -> str:
    """A name and its marks. Prompts that are tried with a model hold none of them."""
    while True:
        way = rng.choice(WAYS)
        marked = way(s, rng) + mark(WAYS.count(way) / len(WAYS), s)
        name = MARK.sub("", marked).capitalize()
        fits = 4 <= len(name) <= 12 and re.search("[aeiouy]", name.lower())
        if fits and name not in TRIED and not UNWANTED.search(name.lower()):
            return name + "".join(MARK.findall(marked))


# --------------------------------------------------------------------------------------------------------
# The lexicon: words, or phrases between slashes, which may hold [choices] and {slots}: see expand().

GIRLS = """Lily Lily Lily Mia Mia Anna Sue Lucy Emma Ella Zoe Amy Sara Daisy Molly Ruby Nina Maya Rosie Kate
    Jane Mary Alice Nora Eva Sophie Ava Holly Betty Iris Kim""".split()
BOYS = """Tom Tom Tom Ben Ben Tim Max Sam Jack Leo Finn Noah Adam Dan Joe Billy Bob Oscar Peter Toby Luke Jake
    Nick Paul Alex David Felix Hugo James Oliver Simon""".split()

WORDS = {
    "colour": "red blue green yellow orange purple pink white brown golden silver turquoise striped",
    "size": "big small tiny huge tall round little enormous chubby skinny strange shy sleepy wrinkly",
    "trait": "happy kind brave curious clever cheerful friendly polite gentle quiet funny careful",
    "sky": "sunny cloudy warm windy bright chilly foggy rainy quiet hot cool lovely frosty",
    "prize": "star badge cup cap cape medal scarf sticker",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "toy": """kite ball drum doll truck robot balloon scooter wagon boat train whistle airplane bus crown hat
        scarf bucket shovel puppet flute tractor rocket hoop trumpet umbrella backpack""",
    "plush": "rabbit bear lion monkey elephant giraffe penguin tiger sheep duck whale panda",
    "food": """sandwich cookie muffin pancake bun pretzel waffle bagel biscuit pie doughnut cupcake cracker
        brownie burrito""",
    "fruits": """apples pears plums cherries grapes berries peaches oranges bananas strawberries melons nuts
        carrots figs""",
    "treasure": "shell pebble feather marble button ring bell key coin pearl acorn flower ribbon",
    "forest": """fox rabbit squirrel hedgehog owl deer badger mouse turtle bear frog mole beaver raccoon crow
        lizard""",
    "small": "mouse ant hamster beetle kitten mole gecko squirrel gerbil chipmunk",
    "large": "bear moose horse elephant bull camel buffalo hippo donkey rhino lion cow",
    "bug": "butterfly ladybug bee moth beetle grasshopper dragonfly cricket",
    "bird": "robin sparrow crow pigeon blackbird duck goose parrot woodpecker swallow",
    "landmark": """mill well pond bridge church school fence barn library fountain bakery hedge garden station
        market farm statue swamp meadow orchard lighthouse""",
    "place": """in the park/in the forest/near the pond/by the river/at the beach/in the garden/on the hill/
        under a big tree/behind the school/in the meadow/at the playground/near the old barn/by the lake/
        behind the house/in the woods/next to the library/under the old oak tree/near the train station/on
        the
        farm/at the edge of the village""",
    "hobby": """pick flowers/climb trees/draw pictures/sing songs/ride a bike/read books/splash in puddles/
        chase butterflies/collect shells/build towers/bake cakes/dance in the rain/look at the
        clouds/count the stars/feed the ducks/paint with bright colors/tell jokes/play outside/dig in the
        sand/watch the trains/jump rope/swing on the swings/help in the kitchen/listen to stories/make mud
        pies/roll down the hill/play the piano/explore the woods/catch frogs/plant seeds/wear silly
        hats/visit the library/skip
        stones/whistle tunes""",
    "feature": """[[soft|curly|shaggy|silky|woolly] fur|[smooth|shiny|rough] scales]/[two|three|four]
        [crooked|shiny|curly|pointed] horns/a [long|short|fluffy|curly|bushy] tail/
        [big|round|sleepy|golden|sparkling|purple] eyes/[floppy|pointy|long|enormous] ears/a
        [wide|crooked|friendly|toothy] [smile|grin]/[silver|feathery|thin] wings/a [pink|wobbly|wet|long]
        nose/[wide|muddy|hairy|flat] feet/a [deep|squeaky|soft|funny] voice/a [stripy|spotty|round] belly/
        [sharp|crooked|tiny] teeth""",
    "comparison": """soft as a pillow/warm as toast/colorful as a rainbow/shiny as a new coin/cute as a
        kitten/slow as a snail/funny as a clown/pretty as a butterfly/round as an apple""",
    # The bare "One day, Lily met a ..." of the README's prompt is the most common meeting.
    "meet": """One day, {hero} met a {kind}{named}[.| {place}.| who {trouble}.]/One day, {hero} met a
        {kind}{named}[.| {place}.| who {trouble}.]/One day, {hero} met a [{size} |]{kind}{named}[ {place}|
        who {trouble}]./One day, a [little |young |{trait} |]{boy} named {hero} met a [{size}
        |]{kind}{named}[ {place}|]./One {sky} [morning|afternoon|day], {hero} was
        [walking|playing|sitting] {place} when {he} met a {kind}{named}./Once upon a time, there was a
        {trait} {boy} named {hero}. {He} [loved|liked] to {hobby}. One [{sky} |]day, {hero} met a
        {kind}{named}[ {place}| who {trouble}|]./{hero} was a {trait} {boy} who [loved|liked] to {hobby}.
        One {sky} day, {he} [saw|met|found] a {kind}{named} {place}. [A {bird} was [singing|calling]
        nearby.|]/Once upon a time, there was a {size} {kind}{named} who
        {trouble}. One day, a {boy} named {hero} met the {kind} {place}.""",
    "looks": """The {kind} was {colour2} all over, with {feature}./The {kind} had {feature} and {feature2}./
        The {kind} was {colour2} and had {feature}./{hero} had never seen a {kind} before. It had
        {feature}[ and {feature2}|]./The {kind} was as {comparison}, and it had {feature}./""",
    "spot": """under the bed/in the washing basket/behind the couch/in the bathtub/under the kitchen table/on
        the swing/in the garden shed/inside a big boot/behind the curtain/in the dog's bed""",
    "hideout": """under a pile of leaves/inside an old barrel/behind the {landmark}/up in an apple tree/in the
        tall grass/under a wheelbarrow/behind a stack of hay""",
    "end": """From that day on, {hero} and the {kind} were [best|good|very good] friends./After that, {hero}
        and the {kind} [played together|went for a walk|ate {fruits} together|told each other stories] every
        [day|{weekday}]./Then {hero} waved goodbye and [ran|walked|skipped] home. {He} [never forgot the
        {kind}|always remembered the {kind}|could not wait to see the {kind} again]./That night, {hero} told
        {his} {kin} all about the {kind}. "[What a [good|kind|clever|brave] {boy} you are|I am proud of you|I
        would like to meet a {kind} too]," said {his} {kin}./{hero} and the {kind} sat [on the grass|on a
        log|side by side] and watched [the stars come out|the moon rise|the birds fly home]. [They felt
        happy.|It was a perfect day.|]/{hero} smiled, and the {kind} smiled too. It had been a
        [good|wonderful|lovely|very special] day./{hero} and the {kind} [laughed and hugged|danced around and
        sang|held hands and jumped for joy]. They stayed friends [forever|for a long, long time].""",
}


def phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split("/")]


def entries(words: dict[str, str]) -> dict[str, list[str]]:
    return {slot: phrases(text) if "/" in text else text.split() for slot, text in words.items()}


WORDS = entries(WORDS)


# --------------------------------------------------------------------------------------------------------
# From a template to text, and who is in it.


def expand(text: str, s: dict, rng: random.Random) -> str:
    """
    "[Hi|Hello], {hero}" -> "Hello, Lily". Choices are made first, the innermost first; then slots are
    filled.

    A slot that is not in the story's memory `s` is drawn from the language's words and stays: the red kite
    that is lost is the red kite that is found. {toy2} is another toy than {toy}; {He} is {he} with a capital.
    """
    while "[" in text:
        text = re.sub(r"\[([^][]*)\]", lambda match: choose(match[1].split("|"), s, rng), text)

    def fill(match: re.Match) -> str:
        slot = match[1][0].lower() + match[1][1:]
        if slot not in s:
            words = s["words"][slot.rstrip("234")]
            entry = rng.choice(words)
            while entry in s["taken"]:
                entry = rng.choice(words)
            free = [other for other in words if other not in s["taken"]]
            s[slot] = entry + mark(free.count(entry) / len(free), s)
            s["taken"].add(entry)
        s[slot] = value = expand(s[slot], s, rng) if "{" in s[slot] or "[" in s[slot] else s[slot]
        return value if slot == match[1] else value[:1].upper() + value[1:]

    return re.sub(r"\{(\w+)\}", fill, text)


KINS = ("mom", "dad", "grandma", "grandpa")
PRONOUNS = {"boy": ("he", "him", "his"), "girl": ("she", "her", "her")}  # of the hero; a creature is "it"


def chinese_name(s: dict, rng: random.Random) -> str:
    """A name and its marks: one of story_plots_zh's templates for a name, filled with characters."""
    while True:
        own = {"bits": s["bits"], "taken": set(), "words": CHINESE.words}
        marked = expand("{name}", own, rng)
        if not zh.UNWANTED.search(MARK.sub("", marked)):
            return marked


class Language(NamedTuple):
    """What differs between the languages."""

    words: dict[str, list[str]]  # the lexicon
    plots: dict[str, dict[str, str]]
    heroes: dict[str, list[str]]  # of each sex
    sexes: dict[str, str]  # the word for each
    pronouns: dict[str, tuple[str, ...]]
    kins: tuple[str, ...]
    make_name: Callable[[dict, random.Random], str]
    named: str  # what tells the name that one creature in five has; "": none has one
    space: str  # between words


ENGLISH = Language(
    WORDS, PLOTS, {"girl": GIRLS, "boy": BOYS}, {"girl": "girl", "boy": "boy"}, PRONOUNS, KINS,
    made_up_name, named=" named {cname}", space=" ",
)  # fmt: skip
CHINESE = Language(
    entries(zh.WORDS), zh.PLOTS, zh.HEROES, {"girl": "女孩", "boy": "男孩"}, zh.PRONOUNS, zh.KINS,
    chinese_name, named="", space="",
)  # fmt: skip
LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


def cast(rng: random.Random, language: Language = ENGLISH) -> dict:
    """Who is in a story: {hero} {he} {his}, {his} {kin}, and a {kind}, spoken to as {call}."""
    s = {"bits": [], "taken": set(), "words": language.words}
    sex = rng.choice(("boy", "girl"))
    sex_mark = mark(1 / 2, s)
    s["boy"] = language.sexes[sex] + sex_mark
    s["kin"] = choose(language.kins, s, rng)
    s["kind"] = language.make_name(s, rng)
    if language is ENGLISH:  # some write it small
        small = rng.random() < 0.1
        s["kind"] = (s["kind"].lower() if small else s["kind"]) + mark(0.1 if small else 0.9, s)
    s["cname"] = language.make_name(s, rng)
    s["hero"] = choose(language.heroes[sex], s, rng) + sex_mark
    for slot, word in zip(("he", "him", "his"), language.pronouns[sex]):
        s[slot] = word + sex_mark
    if language.named and rng.random() < 0.2:  # this creature has a name of its own, by which it is spoken to
        s["named"] = language.named + mark(0.2, s)
        s["call"] = "{cname}"
    else:
        s["named"] = mark(0.8, s) if language.named else ""
        s["call"] = "{kind}"
    return s


# --------------------------------------------------------------------------------------------------------
# Stories and shards.


def tidy(text: str, space: str = " ") -> str:
    """Single spaces, or none in Chinese, and "a owl" -> "an owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni)", r"\1n ", space.join(text.split()))


def compose(rng: random.Random, language: Language = ENGLISH) -> tuple[str, str, dict]:
    """The template of a summary, a story that still has its marks, and the story's memory."""
    s = cast(rng, language)
    summary = rng.choice(list(language.plots))
    plot = language.plots[summary]
    marks = mark(1 / len(language.plots), s)
    s["trouble"] = plot.get("trouble", "")
    for table in filter(None, plot.get("together", "").split("¶")):
        slots, *rows = phrases(table)
        s.update(zip(slots.split(": "), rng.choice(rows).split(": ")))
        marks += mark(1 / len(rows), s)
    # Like the real ones, some have no paragraphs.
    break_ = choose(("\n\n", "\n\n", "\n", language.space), s, rng)
    return summary, expand(plot["story"], s, rng).replace("¶", f"¶{break_}¶") + marks, s


def instruction(story: str, rng: random.Random) -> dict:
    """What TinyStories' authors asked for: words, and what the story has."""
    long_words = list(dict.fromkeys(re.findall(r"\b[a-z]{6,}\b", story)))
    words = rng.sample(long_words, min(3, len(long_words)))  # about one story in 60,000 has two
    features = ["Dialogue"] * ('"' in story) + ["MoralValue"] * (" learned that " in story)
    prompt = "Write a short story for a small child. Use the words " + " and ".join(words) + "."
    prompt += " It should teach a lesson." if "MoralValue" in features else ""
    return {"prompt:": prompt, "words": words, "features": features}


def tell(rng: random.Random, language: Language = ENGLISH) -> dict:
    """A story in the format of TinyStories, and its "bits": a perfect model needs at most so many."""
    summary, marked, s = compose(rng, language)
    parts = MARK.sub("", marked).split("¶")  # paragraphs, and breaks, of which tidy() leaves nothing
    story = "".join(tidy(part, language.space) or part for part in parts)
    return {
        "story": story,
        "instruction": instruction(story, rng) if language is ENGLISH else {},
        "summary": tidy(MARK.sub("", expand(summary, s, rng)), language.space),
        "source": "synthetic",
        "bits": round(sum_of_bits(marked, s), 2),
    }


def write_shard(seed: int, index: int, num_bytes: int, language: str = "en") -> list[dict]:
    """The stories of one shard, about num_bytes of text: the last one is the first that reaches num_bytes."""
    rng = random.Random(f"{seed}-{index}")
    stories, size = [], 0
    while size < num_bytes:
        stories.append(tell(rng, LANGUAGES[language]))
        size += len(stories[-1]["story"].encode())
    return stories


def limit_bpb(stories: list[dict]) -> float:
    """The limit of some stories, in bits per byte of their text."""
    return sum(s["bits"] for s in stories) / sum(len(s["story"].encode()) for s in stories)


def write_stories(folder, shards, seed, megabytes, workers, language="en", initializer=None):
    """
    Fill a folder with data00.json, data01.json, ... of equal size, and corpus.json, which says how well the
    stories of data00.json can be predicted. initializer: what each process of the pool calls first.
    """
    num_bytes = int(megabytes * 1e6 / shards)
    write = functools.partial(write_shard, seed, num_bytes=num_bytes, language=language)
    with ProcessPoolExecutor(workers, initializer=initializer) as pool:
        written = tqdm(pool.map(write, range(shards)), "synthesize", shards, unit="shard")
        for i, stories in enumerate(written):
            write_json(f"{folder}/data{i:02}.json", stories)
            if i == 0:
                write_json(f"{folder}/corpus.json", {"limit_bpb": round(limit_bpb(stories), 4)})


if __name__ == "__main__":
    seed, language = (sys.argv[1:] + ["0", "en"][len(sys.argv) - 1 :])[:2]
    rng = random.Random(seed)
    print("\n\n---\n\n".join(tell(rng, LANGUAGES[language])["story"] for _ in range(3)))
