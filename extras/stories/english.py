"""
English for extras/synthetic_stories.py: what names are made of, the people, the words, the plots.

Words stand between spaces, phrases between slashes; what is listed twice comes twice as often. A template
holds [choices|between bars] and {slots}, which the story's memory fills: see expand(). {trouble} is what
{meet} may tell of the creature. "together" is a table: its first row names slots, and each other row fills
them with what fits together. ¶ starts a new paragraph.

Three rules make the stories easier to learn. They are short: with a vocabulary of 1,024, half have at
most 256 tokens, and hardly one has 400, so the hero's name is in the context to the end, or nearly so. No
name follows a ¶ or a quotation mark, since without a space before it, "Lily" is another token. And {he}
stands only where {boy} has told whether it is "he" or "she": elsewhere the hero is named, since a typed
name does not tell it.
"""

import re

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
    Ad After An And Anna At Ava Ben Billy Bob But Crack Dan David Ella Em Emma Eva Every Fe Fel
    Felix Finn Fr From He Hugo In Iris It Ja Jack James Jane Kate Li Lily Lu Mary Maya Mia Nick Nina
    No Noah Nora Oliver On Once One Os Oscar Pa Peter Ru Ruby Sam Sara She Simon So Soon Sop Sophie
    Sp St Th That The Then There They This Tim To Toby Tom Zoe b c d f g h j k l m n p r s t v w x y
    z
""".split()
PIECES = """
    ab ad age ah ai aid ail ain ais ait ake al all als am amed an and ane ang ange ant ap ar ara ard
    ark arm ars ary as ase asket ast at ate av avid aw ax ay aya ayed ble bout by bye ca car cau
    cause ce ch ched ck ct cy day dea ea ear eb ed ee eet el ell ellow en end ent eo ep er ere ered
    es et eter ether etter ff fore fr fraid ft fter ful gain gan ge ger gg gh ght ha han hank hant
    hat he hed hen her here hi hie hind hing his ho ht hy ia ick id ide ie ig ight il iled ill illow
    illy ily im imals imon in ina ind ing ings ink inn iny ip ir irl is it ith ittle ive ix iz ke
    ked ket key ki ky la lag ld le lease led leep lep lf li liver ll lla lled lly lo lp ly ma mall
    mb me mes my na nd nder ne ned new now nt ny ob obody od ody oe oi oise ol old olden ole olly om
    ome on one ong onkey oo ood ook ooked ool oon oor op ope or ora ore orn orry os ot oth other ou
    oud ought ould ound ous ouse out ow own ox oy pa ped ple pp pped ppy qu quoise ra rack rave re
    ree ret ri ried riend ris ro roke rong roud round rown ru ry se side st te ter ting tle to ty ub
    uck ud udd ue ug ugo ul um ump un ung unny up ur us ut va ve ved ver very way xt yes zz
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

# Who and what the stories tell of.
HEROES = {
    "girl": """Lily Lily Lily Mia Mia Anna Sue Lucy Emma Ella Zoe Amy Sara Daisy Molly Ruby Nina Maya Rosie
        Kate Jane Mary Alice Nora Eva Sophie Ava Holly Betty Iris Kim""".split(),
    "boy": """Tom Tom Tom Ben Ben Tim Max Sam Jack Leo Finn Noah Adam Dan Joe Billy Bob Oscar Peter Toby Luke
        Jake Nick Paul Alex David Felix Hugo James Oliver Simon""".split(),
}
WORDS = {
    # Two heroes in five have a name that is put together, as Priya or Oskar: visitors bring their own.
    "hero_name": """{first}{last}/{first}{last}/{first}{last}/{first}{last}/{first}{inner}{last}/
        {first}{inner}{last}/{first}{inner}{last}/{first}{inner}{last}/{first}{inner}{inner2}{last}/
        {first}{inner}{inner2}{last}/{short}""",
    "short": "Al Bo Cy Di Ed Jo Ki Li Lu Mo Ny Pi Ro Su Ty Vi Wu Xi Ye Yu",
    "first": """A E I O U Al An Ar Ay Ba Be Bo Bri Bru Ca Ce Cha Chlo Cla Co Da De Di Do Dra Du E El Em
        Es Fa Fe Fi Flo Fre Ga Ge Gi Gre Gu Ha He Hi Ho Hu In Is Ja Je Ji Jo Ju Ka Ke Khi Ki Ko Kri La
        Le Li Lo Lu Ma Me Mi Mo Mu Na Ne Ni No Nu Ol Or Os Pa Pe Phi Pi Po Pri Qui Ra Re Ri Ro Ru Sa Sha
        She Si So Ste Su Sve Ta Te Thi Ti To Tri Ty Va Ve Vi Wa We Wi Xi Ya Ye Yo Yu Za Ze Zo""",
    "inner": """ba be bi bri co da di do dri fa fi ga ge gi go ha hi ja ka ki ko la le li lo lu ma me mi
        mo na ne ni no nu pa pe ra re ri ro ru sa se shi si so sta ta te ti to tri va ve vi wa ya ye za
        zi""",
    "last": """a a a a a ah al am an an ana and ane anna ar ar ard as ash at bel ben bert beth by c
        ca ck cy d da dan dar de del den der di do don dra dro dy e el el ela elle en en ena er er
        ert es et eth ette ey ez fa ga gar go h i i i ia ia ian ic ick ie ie ik il ila ill im in in
        ina ine io ion ip ir is is isha it ita iya ja k ka kar ke ki ko l la lan las le len ley li
        lia lie lin lo lor ly lyn m ma man mar mas mi mir mo my n n n na nan nard nas nd nda nds ne
        nel ner nia nie nor nus ny o o o ol ola old on on ong or ora os ott r ra ram rd ren ri ric
        rid rik rin ris ro rol ron rt ry s s sa san sar sel sey sha shi son ssa sta ston sy t ta tan
        tar ten ter tha thy ti tin to ton tor ty u us us va van ver vi vin vy win x y y ya yan yn
        yra z za zo""",
    "colour": "red blue green yellow orange purple pink white brown golden silver turquoise striped",
    "size": "big small tiny huge little enormous",
    "nature": "big small tiny huge tall round little enormous chubby skinny strange shy sleepy wrinkly",
    "noise": "roar growl shout",
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
        {kind}{named}[.| {place}.| who {trouble}.]/One day, {hero} met a [{nature} |]{kind}{named}[ {place}|
        who {trouble}]./One day, a [little |young |{trait} |]{boy} named {hero} met a [{nature}
        |]{kind}{named}[ {place}|]./One {sky} [morning|afternoon|day], {hero} was
        [walking|playing|sitting] {place} and met a {kind}{named}./Once upon a time, there was a
        {trait} {boy} named {hero}. {He} [loved|liked] to {hobby}. One [{sky} |]day, {hero} met a
        {kind}{named}[ {place}| who {trouble}|]./{hero} was a {trait} {boy} who [loved|liked] to {hobby}.
        One {sky} day, {he} [saw|met|found] a {kind}{named} {place}. [A {bird} was [singing|calling]
        nearby.|]/Once upon a time, there was a {nature} {kind}{named} who
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
        [day|{weekday}]./Then {hero} waved goodbye and [ran|walked|skipped] home. {hero} [never forgot the
        {kind}|always remembered the {kind}|could not wait to see the {kind} again]./That night, {hero} told
        everyone at home about the {kind}. "[[How [kind|clever|brave] you are|I am proud of you], {hero}|I
        would like to meet a {kind} too]," said {hero}'s {kin}./{hero} and the {kind} sat [on the grass|on a
        log|side by side] and watched [the stars come out|the moon rise|the birds fly home]. [They felt
        happy.|It was a perfect day.|]/{hero} smiled, and the {kind} smiled too. It had been a
        [good|wonderful|lovely|very special] day./{hero} and the {kind} [laughed and hugged|danced around and
        sang|held hands and jumped for joy]. They stayed friends [forever|for a long, long time].""",
}


def is_hero(name):
    """Whether a name that was put together may be a hero's."""
    known = name in (*TRIED, *TRIED_HEROES) or name in HEROES["girl"] + HEROES["boy"]
    return 1 < len(name) < 12 and not known and not UNWANTED.search(name.lower())


KINS = ("mom", "dad", "grandma", "grandpa")
PRONOUNS = {"boy": ("he", "him", "his"), "girl": ("she", "her", "her")}  # of the hero; a creature is "it"

PLOTS = {  # by their summaries
    "{hero} helps a lost {kind} to find the way home.": {
        "trouble": "[was lost|looked lost|was far from home|could not find the way home]",
        "together": """home: house/in a cave behind the waterfall: cave/in a nest on the hill: nest/in a
        hollow log in the woods: log/in a burrow under the roses: burrow/in a tent: tent/in a hut by the sea:
        hut/in a tower of stones: tower/in a crooked little house: house/on an island in the lake: island/in a
        castle: castle/in the tallest treehouse: treehouse""",
        "story": """{meet} {looks} ¶ "[What is wrong|Why do you look so sad|Are you all right], {call}?" asked
        {hero}. "I [am lost|cannot find my way home]," said the {kind}. "I live {home}. A {colour} flag
        [is|hangs] over the {house}." ¶ "[Do not worry|Do not cry|Cheer up]," said {hero}. "[I will help
        you|We will look for it together]." They walked [past|around] the {landmark}. [They asked a {forest}
        for help. "[Go straight on|Turn left|Follow the path]," said the {forest}.|] ¶ [At last|Finally|Soon],
        they saw the {colour} flag over the {house}. "[That is it|There it is|That is my home]!"
        [shouted|cried] the {kind}. "Thank you, {hero}[. You are [very kind|a true friend]|]." {end} [|{hero}
        learned that [nobody is lost for long when a friend helps|it is good to help someone who is
        lost].]""",
    },
    "{hero} shares a {food} with a hungry {kind}, who gives something back.": {
        "trouble": "[was very hungry|had nothing to eat|was looking for food]",
        "together": "gift/basket of {fruits}/{colour} {treasure}/{size} {colour} {treasure}",
        "story": """{meet} {looks} ¶ "[I am so hungry|My tummy is empty|I have no food at home]," said the
        {kind}. {hero} had a {food} in a [bag|basket|lunch box]. [It was still warm.|It smelled so
        good.|{hero} was hungry too.] "[Let us share|You can have half|We can eat it together], {call}," said
        {hero}. Then {hero} broke the {food} in two and gave [one half|the bigger half|half of it] to the
        {kind}. ¶ "[Yum|Mmm|Wow]! This is the best {food} [in the world|I have ever had]," said the {kind}.
        Then the {kind} [ran away and came back with|reached into a hole and took out] a {gift}. "This {gift}
        is for you, {hero}." {hero} [took the {gift} home|held the {gift} in both hands]. {end} [|{hero}
        learned that [sharing makes everyone happy|it feels good to share].]""",
    },
    "Everyone fears the {kind}, but {hero} finds out why it growls and helps.": {
        "trouble": "[looked very scary|had a very loud voice|growled all day|was all alone]",
        "together": """pain: wish/there is a thorn in my foot: pull out the thorn/a bee stung me on the nose:
        find a cool, wet leaf for the sting/I am cold: bring a warm coat/my tail is stuck under a rock: push
        the rock away/I have sand in my eyes: wash out the sand/my tooth hurts: pull the bad tooth/a rope is
        tied around my leg: untie the rope/I am thirsty: fetch a glass of water/I bumped my head: bandage the
        bump""",
        "story": """{meet} {looks} [Everyone|Everybody] in the village was [afraid|scared] of the {kind}. ¶
        [But {hero} did not run away.|At first, {hero} wanted to run, but then stopped.] "Why do you {noise},
        {call}?" asked {hero}. "[I do not want to scare anyone|I do not mean to be loud]," said the {kind}. "I
        {noise} because {pain}. [Could|Can|Will] you {wish}?" ¶ "[Of course|Poor {kind}|You poor thing]," said
        {hero}. [At once|Right away], {hero} [hurried|went] to {wish}. "[That feels much better|Oh, that is
        better|Thank you]!" said the {kind}. ¶ Then {hero} took the {kind} to the village. "[Do not be
        afraid|Wait|Come back]!" called {hero}. "The {kind} is [kind|gentle|my friend]." They gave the {kind}
        a {size} {toy}, and it [played with|liked|was proud of] the {size} {toy}. {end} [|{hero} learned that
        [you should not judge others by how they look|someone who looks scary can be kind].]""",
    },
    "{hero} teaches a {kind} to {skill}.": {
        "trouble": "[could not|wanted to learn to|did not know how to] {skill}",
        "together": """skill: fail: tip: success/whistle: only air came out: make your lips round and blow
        softly: there was a clear, high sound/ride a bike: it fell into a bush: look ahead and keep going: it
        rode all the way down the path/jump rope: the rope got stuck: jump when the rope taps the ground: it
        jumped ten times in a row/catch a ball: the ball bounced off its nose: keep your eyes on the ball: it
        caught it/count to ten: it got mixed up after six: count slowly: it counted all the way to ten/tie a
        bow: there was only a big knot: make two loops like rabbit ears: there was a perfect bow/fly a kite:
        the kite crashed into a hedge: run into the wind: the kite sailed up into the sky/draw a star: it
        looked like a potato: start at the top: there was a beautiful star on the paper/sing: it croaked like
        a frog: take a deep breath: a sweet song filled the air/bake bread: the bread was as hard as a rock:
        wait until the dough is big: the bread was soft and golden/build a tower: the tower fell over: put the
        big blocks at the bottom: the tower was as tall as {hero}""",
        "story": """{meet} {looks} ¶ "[Everyone else|Every other {kind}|My brother] can {skill}, but I can't,"
        said the {kind}. "[Show me|Let me see], {call}," said {hero}. The {kind} tried to {skill}, but {fail}.
        ¶ "[I can teach you|I will show you how|That was a good try]," said {hero}. "[You have to|You must|Try
        to] {tip}." The {kind} tried again[. And again|]. "[Do not give up|Try once more|You can do it],
        {call}," said {hero}. ¶ And [at last|suddenly], {success}! "[I did it|Look at me|I can {skill}]!"
        [shouted|cried] the {kind}. {hero} gave the {kind} a {colour} {prize}. It [looked at|was proud of] the
        {colour} {prize}. {end} [|{hero} learned that [you get better when you practice|you should never give
        up|everyone can learn with a little help].]""",
    },
    "A {kind} has taken {hero}'s {toy}, and says sorry.": {
        "trouble": "was hiding something behind its back",
        "story": """{meet} {looks} ¶ "What do you have behind your back, {call}?" asked {hero}. The {kind}
        [looked at its feet|turned red|did not want to say]. But {hero} could see a {colour} {toy}. "That is
        my {toy}!" said {hero}. "[I looked for it everywhere|I was so sad when it was gone]." ¶ "I am [so
        |]sorry, {hero}," said the {kind}. "[I have no toys of my own|It is so pretty, and I only wanted to
        hold it|Nobody ever gave me a {toy}]." And it gave the {colour} {toy} back. ¶ [For a while|Then],
        {hero} thought about it. "[It is okay|I forgive you], {call}," said {hero}. "[But next time, please
        ask me.|Do you want to play with it together?]" They [took turns with|played with] the {colour} {toy}
        until [it was time for dinner|the sun went down]. {end} [|{hero} learned that [it is better to ask
        than to take|it is good to tell the truth].]""",
    },
    "{hero} helps a {kind} who is afraid of {fear}.": {
        "trouble": "was [afraid|scared] of {fear}",
        "together": """fear: event: tip/the dark: the sun went down: light a little lamp/thunder: the sky
        turned black and the thunder rumbled: count after every flash/deep water: they came to a stream: step
        from stone to stone/loud noises: a truck honked: hum a song/spiders: a spider came down on a thread:
        watch how they make a web/high places: they came to a high bridge: look up at the sky/dogs: a big dog
        ran up to them: hold out a hand and let them sniff it/the wind: the wind howled in the trees: make a
        paper windmill/the rain: big drops began to fall: hold up a large leaf""",
        "story": """{meet} {looks} ¶ They [walked and talked|ran and played|walked and sang] [together |]until
        {event}. The {kind} [jumped|began to shake|closed its eyes|hid behind {hero}]. "What is wrong,
        {call}?" asked {hero}. "I am [scared|afraid] of {fear}," said the {kind}. ¶ "When I am [scared|afraid]
        of {fear}, I {tip}," said {hero}. "[Let us try it|We can do it together|I will show you]." So they
        [both |]tried to {tip}, and it [helped|worked]. ¶ [After a while|Soon|Little by little], the {kind}
        was not [scared|afraid] any more. "[I did it|I feel brave now|I am a brave {kind}]!" it said. "[You
        are the bravest {kind} I know|I knew you could do it]," said {hero}. Then {hero} gave it a {colour}
        {treasure}. The {kind} [kept|loved] the {colour} {treasure}. {end} [|{hero} learned that [everyone is
        afraid of something|friends make you brave].]""",
    },
    "{hero} and a {kind} play hide and seek, but {hero} cannot find the {kind}.": {
        "trouble": "[wanted to play a game|loved to play hide and seek|was looking for a friend]",
        "story": """{meet} {looks} ¶ "[Come and|Let us] play hide and seek, {hero}!" said the {kind}. {hero}
        [closed both eyes|hid behind both hands] and counted to [ten|twenty]. The {kind} [ran away|tiptoed
        away|giggled and ran]. ¶ "Here I come, {call}!" called {hero}. Then {hero} looked [behind the
        {landmark2}|under the bench|in the bushes|behind a big rock]. [No {kind}.|There was only a
        [{forest}|{bug}].] Soon it was [getting dark|late|starting to rain]. "[Please come out|You win|I give
        up], {call}!" [shouted|called] {hero}. ¶ Then {hero} heard a [soft|funny|tiny] sound. It was a snore!
        There was the {kind}, fast asleep {hideout}. "[I found you|There you are], {call}!" said {hero}. The
        {kind} [yawned|rubbed its eyes]. "[Did I win|Is the game over]?" {end} [|{hero} learned that [you
        should tell your friends where you are|a good friend keeps looking].]""",
    },
    "{hero} finds an egg, and a {kind} comes out of it.": {
        "story": """[One {sky} [morning|day], {hero}|Once upon a time, there was a {trait} {boy} named {hero}.
        One day, {he}] found a [big |]{colour} egg {place}. "[What is inside|Whose egg is this]?" asked
        {hero}. Then {hero} [carried it home|took it home in a hat]. ¶ At home, {hero} [wrapped the {colour}
        egg in a blanket|put the {colour} egg in a basket by the fire|sat next to the {colour} egg every day].
        On {weekday}, the egg began to [shake|wobble]. Crack! [Out came|There was] a baby {kind}! It had
        {feature}. "[Hello|Welcome], baby {kind}," said {hero}. Then {hero} gave the {kind} some {fruits}. ¶
        The {kind} [grew and grew|grew bigger every day]. But [at night|when the moon came out], the {kind}
        cried. "[I think the {kind} misses its mother|A {kind} should live with other {kind}s]," said {hero}'s
        {kin}. {hero} was sad, but [nodded|knew it was true]. ¶ [The next day|In the spring], they took the
        {kind} to the [hills|forest|sea]. A grown {kind} was waiting there. "[Goodbye|I will miss you],
        {kind}," said {hero}. [Every {weekday2}, the {kind} came back to visit.|{hero} never forgot the
        {kind}.] [|{hero} learned that [if you love someone, you want them to be happy|good things need
        time].]""",
    },
    "{hero} loses {cname}, the toy {plush}, and finds it again.": {
        "story": """[Once upon a time, there was a {boy} named {hero}.|{hero} was a {trait} {boy}.] {He} had a
        {colour} toy {plush} [named|called] {cname}. {hero} [took {cname} everywhere|loved {cname} more than
        any other toy|told {cname} all {his} secrets]. ¶ One [night|{sky} day|evening], {hero} could not find
        {cname}. "[I can't sleep without {cname}|I had {cname} this morning]," {he} said. {His} {kin} [said,
        "[Do not worry|Let us think]. Where did you play?"|helped {him} look.] They looked {spot2}. No
        {cname}. There was only a {toy}. ¶ [Then|At last], {hero} had an idea. {He} looked {spot}, and there
        was the {colour} toy {plush}. It was {cname}! "[I found you|There you are], {cname}!" [shouted|said]
        {hero}. {cname} was [a little dusty|wet|covered in crumbs], so {his} {kin} [washed|cleaned] the toy
        {plush}. ¶ That night, {hero} [held {cname} tight|put {cname} on the pillow]. "[Never get lost
        again|Good night], {cname}," {he} [whispered|said]. [|{hero} learned that [it helps to put things back
        in their place|it is good to ask for help].]""",
    },
    "{cname}, the little {small}, is too small to play, but helps a {large}.": {
        "together": """trap: rescue/could not move. A rope was tied around one leg: bit the rope until it
        broke/had a thorn in one ear, where nobody could reach it: climbed up and pulled out the thorn/was
        locked in the barn, and the key was under the floor: went through a tiny hole and got the key/had
        dropped a {colour} {treasure} into a narrow hole: crawled down and brought the {colour} {treasure}
        back""",
        "story": """[Once upon a time, there was|Once there was|In a green valley lived] a [little|tiny|very
        small] {small} named {cname}. [It wanted to play with the big animals.|Every day, {cname} watched the
        big animals play.] But the {large} said, "[You are too small|Go away], {cname}." {cname} [felt
        sad|went home and cried|sat alone under a leaf]. ¶ One {sky} [morning|day], {cname} heard a loud cry.
        The {large} {trap}. "[Help|Please help me]!" cried the {large}. The {large2} tried, but the {large2}
        was [much |]too big. ¶ "[I can do it|Let me try]," said {cname}. It {rescue}. "[Hooray|Look at that]!"
        shouted the {large2}. "Look, {cname} did it!" ¶ "[Thank you|I am sorry that I was mean], {cname},"
        said the {large}. [From then on, {cname} rode on the back of the {large}.|After that, {cname} played
        with the big animals every day.] [|{cname} learned that [even small friends can be a big help|you do
        not have to be big to be brave].]""",
    },
}

# Words that people try in prompts, of animals, of tales, names, nonsense: no story has one of them.
TRIED_HEROES = ("Lily", "Tom", "Priya", "Oskar")  # no story has the last two
TRIED = """
    Shoggoth Axolotl Pangolin Velociraptor Hippopotamus Quokka Emu Stegosaurus Narwhal Pikachu
    Totoro Shrek Yoda Godzilla Doraemon Gollum Creeper Moomin Bulbasaur Gizmo Kirby Phoenix Kitsune
    Minotaur Anansi Leprechaun Domovoi Garuda Chupacabra Troll Rusalka Quetzalcoatl Tengu Astronaut
    Refrigerator Bartholomew Nguyen Oluwaseun Svetlana Giuseppe Priyanka Blorp Snufflewump
    Wibblewobble Zozozo Mippy Bumbadoodle Tralalala Yumyum Glimmerfrizz elf
""".split() + ["Sea Dragon", "Baba Yaga", "toy maker"]
