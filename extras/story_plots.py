"""
The ten plots of extras/synthetic_stories.py, by their summaries.

A template holds [choices|between bars] and {slots}, which the story's memory fills: see expand(). {trouble}
is what {meet} may tell of the creature. "together" is a table: its first row names slots, and each other
row fills them with what fits together. ¶ starts a new paragraph.
"""

PLOTS = {
    "{hero} helps a lost {kind} to find the way home.": {
        "trouble": "[was lost|looked lost|was far from home|could not find the way home]",
        "together": """home: house/in a cave behind the waterfall: cave/in a nest on the hill: nest/in a
        hollow log in the woods: log/in a burrow under the roses: burrow/in a tent: tent/in a hut by the
        sea: hut/in a tower of stones: tower/in a crooked little house: house/on an island in the lake:
        island/in a
        castle: castle/in the tallest treehouse: treehouse""",
        "story": """{meet} {looks}
    ¶ {hello} "[What is wrong|Why do you look so sad|Are you all right]?" asked {hero}. "I [am lost|cannot
    find my way home|walked too far and now I am lost]," said the {kind}. "I live {home}." [A [big|small]
    tear ran down {c_his} [face|cheek|nose].|The {kind} [sighed|sniffed|looked at the ground].|] ¶ "[Do
    not worry|Do not cry|Cheer up], {call}," said {hero}. "[I will help you|We will look for it
    together]." They walked [past|around] the {landmark} and [past|along] the {landmark2}. [The {kind}
    stayed close to {hero}.|{aside}] [They asked a {forest} for help. "[Go straight on|Turn left at the
    big rock|Follow the little path|Look behind those trees]," said the {forest}.|They took a wrong turn,
    but {hero} did not give up.|] ¶ [At last|Finally|Soon|After a long walk], they saw the {house}. "[That
    is it|There it is|That is my home]!" [shouted|cried|cheered] the {kind}. [The {kind}'s
    [mother|father|family] came out and gave {c_him} a [big|long|warm] hug.|The {kind} [danced|jumped|spun
    around] for joy.] "Thank you, {hero}[. You are [very kind|a true friend]|]," said the {kind}. {end}
    [|{hero} learned that [nobody is lost for long when a
    friend helps|it is good to help someone who is lost].]""",
    },
    "{hero} shares a {food} with a hungry {kind}, who gives something back.": {
        "trouble": "[was very hungry|had nothing to eat|was looking for food]",
        "story": """{meet} {looks}
    ¶ {hello} "[I am so hungry|My tummy is empty]," said the {kind}. "[I have not eaten all day|I looked
    for {fruits2}, but I found none|I have no food at home]." [{C_his} tummy [rumbled|growled]
    [loudly|like thunder].|] ¶ {hero} had a {food} in {his} [bag|basket|lunch box]. [{His} {kin} had made
    it for {him}.|It was still warm.|It smelled so good.] {hero} was [a little |]hungry too[, and {he}
    wanted to keep it all|]. But {he} [felt sorry for|looked at] the {kind} and said, "[Let us share|You
    can have half|We can eat it together], {call}." {He} broke the {food} in two and gave [one half|the
    bigger half|half of it] to the {kind}. ¶ "[Yum|Mmm|Wow]! This is the best {food} [in the world|I have
    ever had]," said the {kind}. {aside} When the {food} was gone, the {kind} [ran away and came back
    with|went behind a bush and brought|reached into a hole and took out] a [basket of {fruits}|{colour}
    {treasure}]. "This is for you, {hero}[, because you were kind to me|]," said the {kind}. [{hero} was
    so [happy|surprised].|"Thank you!" said {hero}.] {end} [|{hero} learned that [food tastes better when
    you share it|sharing makes everyone happy|it feels good to
    share].]""",
    },
    "Everyone fears the {kind}, but {hero} finds out why it growls and helps.": {
        "trouble": "[looked very scary|had a very loud voice|growled all day|was all alone]",
        "together": """pain: cure/there is a thorn in my foot: pulled out the thorn/a bee stung me on the
        nose: put a cool, wet leaf on {c_his} nose/I am cold: gave {c_him} a warm coat/my tail is stuck under
        a rock: pushed the rock away/I have sand in my eyes: washed out the sand/my tooth hurts: pulled out
        the bad tooth/a rope is tied around my leg: untied the rope/nobody plays with me: gave {c_him} a big
        hug/I bumped my head: put a bandage on {c_his} head""",
        "story": """{meet} {looks} [Everyone|Everybody] in the town of {town} was [afraid|scared] of the
    {kind}. [They said {c_he} was mean.|When they heard {c_his} voice, they hid under their beds.|They
    locked their doors when {c_he} came.] ¶ [{hero} was scared too, but {he} did not run away.|{hero}
    wanted to run, but {he} stopped.|{His} legs were shaking, but {hero} took a step closer.] "Why do you
    [roar|growl|shout], {kind}?" {he} asked. "[I do not want to scare anyone|I do not mean to be loud],"
    said the {kind}. "I [roar|cry|shout] because {pain}." [A tear ran down {c_his} [cheek|nose].|] ¶ "[Oh
    no|Poor {kind}|You poor thing]! [I can help|Let me help you]," said {hero}. [Slowly|Carefully|Very
    gently], {he} {cure}. "[That feels much better|Oh, that is better|Thank you]!" said the {kind}
    {happily}. {aside} ¶ Then {hero} took the {kind} to {town}. At first, [everyone ran away|the people
    hid]. "[Do not be afraid|Wait|Come back]!" called {hero}. "The {kind} is [kind|gentle|nice]. [Please
    say hello|The {kind} is my friend]." The [{job}|old {job}] came out first and gave the {kind} a
    {food}. [Soon, everyone wanted to play with the {kind}.|Soon, all the children came to play.|"Sorry,
    {kind}," said the people of {town}.] {end} [|{hero} learned that [you should not judge others by how
    they look|someone who looks scary can be
    kind].]""",
    },
    "{hero} teaches a {kind} to {skill}.": {
        "trouble": "[could not|wanted to learn to|did not know how to] {skill}",
        "together": """skill: fail: tip: success/whistle: only air came out: make your lips round and blow
        softly: there was a clear, high sound/ride a bike: {c_he} fell into a bush: look ahead and keep
        going: {c_he} rode all the way down the path/jump rope: the rope got stuck: jump when the rope
        taps the ground: {c_he} jumped ten times in a row/catch a ball: the ball bounced off {c_his} nose:
        keep your eyes on the ball: {c_he} caught it/count to ten: {c_he} got mixed up after six: count
        slowly: {c_he} counted all the way to ten/tie a bow: there was only a big knot: make two loops
        like rabbit ears: there was a perfect bow/fly a kite: the kite crashed into a hedge: run into the
        wind: the kite sailed up into the sky/draw a star: it looked like a potato: start at the top:
        there was a beautiful star on the paper/sing: {c_he} croaked like a frog: take a deep breath: a
        sweet song filled the air/bake bread: the bread was as hard as a rock: wait until the dough is
        big: the bread was soft and golden/ build a tower: the tower fell over: put the big blocks at the
        bottom: the tower was as tall as
        {hero}""",
        "story": """{meet} {looks}
    ¶ {hello} "[I am sad|I feel silly]," said the {kind}. "[Everyone else|Every other {kind}|My brother]
    can {skill}, but I can't." "[Show me|Let me see], {call}," said {hero}. The {kind} tried to {skill},
    but {fail}. [A {forest} saw it and laughed.|The {kind} [sighed|hung {c_his} head].|"See?" said the
    {kind}.] ¶ "[I can teach you|I will show you how|That was a good try]," said {hero}. "[You have to|You
    must|Try to] {tip}." The {kind} tried again[. And again|]. [It did not work the second time either.|It
    was still hard.|It was a little better.] "[I will never learn it|This is too hard]," said the {kind}.
    "[Do not give up|Try once more|You can do it], {call}," said {hero}. {aside} ¶ The {kind} [tried one
    more time|practiced all [day|afternoon|week]], and [at last|suddenly|this time] {success}! "[I did
    it|Look at me|I can {skill}]!" [shouted|cried] the {kind}. {hero} [clapped|cheered|was so proud]. [To
    say thank you, the {kind} gave {hero} a {colour} {treasure}.|"You are a good teacher, {hero}," said
    the {kind}.] {end} [|{hero} learned that [you get better when you practice|you should never
    give up|everyone can learn with a little help].]""",
    },
    "A {kind} has taken {hero}'s {toy}, and says sorry.": {
        "trouble": "was hiding something behind {c_his} back",
        "story": """{meet} {looks} [{hero} had lost {his} {colour} {toy} [the day before|that morning], and
    {he} was [still |]sad.|] ¶ {hello} "What do you have behind your back, {call}?" asked {hero}. The
    {kind} [looked at {c_his} feet|turned red|did not want to say]. "[Nothing|It is nothing]," {c_he}
    said. But {hero} could see [a {colour} {toy}|something {colour}]. "That is my {toy}!" {he} said. "[I
    looked for it everywhere|I was so sad when it was gone]." ¶ [{hero} was angry.|{hero} felt like
    shouting.|] "[Did you take it|Why did you take it]?" {he} asked. The {kind} [began to cry|sniffed|hid
    {c_his} face]. "I am [so |]sorry, {hero}," said the {kind}. "[I have no toys of my own|It is so
    pretty, and I only wanted to hold it|Nobody ever gave me a {toy}]." And {c_he} gave the {colour} {toy}
    back. ¶ {hero} thought about it. {aside} "[It is okay|I forgive you], {call}," {he} said. "[But next
    time, please ask me|You only had to ask]. [Do you want to play with it together|Shall we play with my
    {toy} together]?" The {kind} [smiled from ear to ear|nodded happily|jumped for joy]. They [took turns
    with|played with] the {colour} {toy} until [it was time for dinner|the sun went down|{his} {kin}
    called]. {end} [|{hero} learned that [it is better to ask than to take|you should ask before you take
    something|it
    is good to tell the truth].]""",
    },
    "{hero} helps a {kind} who is afraid of {fear}.": {
        "trouble": "was [afraid|scared] of {fear}",
        "together": """fear: event: cure/the dark: the sun went down: gave {c_him} a little lamp that looked
        like a moon/thunder: the sky turned black and the thunder rumbled: held {c_his} hand and counted
        after every flash/deep water: they came to a stream: showed {c_him} which stones to step on/loud
        noises: a truck honked: covered {c_his} ears and hummed a song/spiders: a spider came down on a
        thread: showed {c_him} how the spider made its web/high places: they came to a high bridge: walked
        in front and told {c_him} to look at the sky/dogs: a big dog ran up to them: showed {c_him} how to
        hold out a hand and let the dog sniff it/the wind: the wind howled in the trees: made {c_him} a
        paper windmill that spun
        around and around/the rain: big drops began to fall: held a large leaf over {c_his} head""",
        "story": """{meet} {looks}
    ¶ {hello} They [walked and talked|ran and played|walked and sang] [together |]until {event}. The
    {kind} [jumped|began to shake|closed {c_his} eyes|hid behind {hero}]. "What is wrong, {call}?" asked
    {hero}. "I am [scared|afraid] of {fear}," said the {kind}. "[Please do not laugh|All the others laugh
    at me|I want to go home]." ¶ {hero} did not laugh. "[I am scared of some things too|My {kin} is afraid
    of mice|I was scared of {fear} when I was small]," {he} said. "[Stay with me|I will help you|I have an
    idea]." Then {he} {cure}. {aside} The {kind} opened one eye and then the other. "[Oh|Look]," said the
    {kind}. "It is not so bad[ with you|]." ¶ [After a while|Soon|Little by little], the {kind} was not
    [scared|afraid] any more. "[I did it|I feel brave now|I am a brave {kind}]!" {c_he} said {happily}.
    "[You are the bravest {kind} I know|I knew you could do it]," said {hero}. {end} [|{hero} learned that
    [being brave means trying even when you are
    scared|everyone is afraid of something|friends make you brave].]""",
    },
    "{hero} and a {kind} play hide and seek, but {hero} cannot find the {kind}.": {
        "trouble": "[wanted to play a game|loved to play hide and seek|was looking for a friend]",
        "story": """{meet} {looks}
    ¶ {hello} "[Come and|Let us] play hide and seek, {hero}!" said the {kind}. "[Yes|Great|What fun]!"
    said {hero}. "[You hide first|I will count to [ten|twenty]]." {hero} [closed {his} eyes|put {his}
    hands over {his} eyes] and counted. The {kind} [ran away|tiptoed away|giggled and ran]. ¶ "Here I
    come, {call}!" called {hero}. {He} looked [behind the {landmark2}|under the bench]. No {kind}. {He}
    looked [in the bushes|behind a big rock]. [There was only a {forest}.|There was only a {bug}.|No
    {kind} there.] Soon it was [getting dark|late|starting to rain], and {hero} began to worry. "[Please
    come out|You win|I give up], {call}!" {he} [shouted|called]. But the {kind} did not [answer|come]. ¶
    {hero} asked the {job} to help. They [took a lamp and |]looked and looked. Then {hero} heard a
    [soft|funny|tiny] sound. It was a snore! There was the {kind}, fast asleep {hideout}. "[I found
    you|There you are], {call}!" said {hero}. The {kind} [yawned|rubbed {c_his} eyes|stretched]. "[Did I
    win|Is the game over|Were you looking for me]?" asked the {kind}. [{hero} laughed.|They all laughed.]
    {end} [|{hero}
    learned that [you should tell your friends where you are|a good friend keeps looking].]""",
    },
    "{hero} finds an egg, and a {kind} comes out of it.": {
        "story": """[One {sky} [morning|day], {hero}|Once upon a time, there was a {trait} {boy} named {hero}.
    One day, {he}|{hero} liked to {hobby}. One {sky} day, {he}] found a [big |]{colour} egg {place}.
    "[What is inside|Whose egg is this]?" {he} asked. Nobody came for the egg, so {hero} [carried it
    home|took it home in {his} hat]. {His} {kin} said, "[Keep it warm|Be gentle with it|You must take good
    care of it]." ¶ {hero} [wrapped the egg in a {colour2} blanket|put the egg in a basket by the fire|sat
    next to the egg every day]. [{He} waited and waited.|Every night, {he} sang to it.] On {weekday}, the
    egg began to [shake|wobble]. Crack! [Out came|There was] a baby {kind}! {C_he} had {feature} and
    {feature2}. "[Hello|Welcome], little {kind}," said {hero}. {He} gave the {kind} some {fruits}. ¶ The
    {kind} [grew and grew|grew bigger every day]. {C_he} ate all the {fruits2} and [slept in the
    bathtub|chased a {bird}|broke a chair]. But [at night|when the moon came out], the {kind} [looked out
    of the window|cried softly]. "[I think the {kind} misses {c_his} mother|A {kind} should live with
    other {kind}s]," said {his} {kin}. {hero} was sad, but {he} [nodded|knew it was true]. ¶ [The next
    day|In the spring], they took the {kind} to the [hills|forest|sea]. A big {kind} was waiting there.
    "[Mama|My mother]!" cried the little {kind}. "[Goodbye|I will miss you], {kind}," said {hero}. The
    {kind} gave {him} [a hug|a piece of the {colour} egg]. [Every {weekday2}, the {kind} came back to
    visit.|{hero} never forgot the {kind}.|And on every birthday, {hero} found a {treasure} at the door.]
    [|{hero} learned that [if you love someone, you want them to be happy|good things need time].]"""
    },
    "{hero} loses {cname}, the toy {plush}, and finds it again.": {
        "story": """[Once upon a time, there was a {boy} named {hero}.|{hero} was a {trait} {boy}.] {He} had a
    {colour} toy {plush} [named|called] {cname}. {hero} [took {cname} everywhere|loved {cname} more than
    any other toy|told {cname} all {his} secrets]. {cname} had [one button eye|a {colour2} ribbon|a patch
    on one leg|a soft round tummy]. ¶ One [night|{sky} day|evening], {hero} could not find {cname}. "Where
    is {cname}?" {he} cried. "[I can't sleep without {cname}|I had {cname} this morning]." {His} {kin}
    said, "[Do not worry|Let us think]. Where did you play [today|last]?" They looked {spot2}. No {cname}.
    There was only a {toy}. ["Is this {cname}?" asked {his} {kin}. But it was only an old {colour2}
    sock.|{hero} began to cry.|They looked in every room.] ¶ [Then|At last], {hero} had an idea. {He}
    [remembered a game|thought of one more place]. {He} looked {spot}, and there was a {colour}
    [ear|leg|nose]. It was {cname}! "[I found you|There you are], {cname}!" [shouted|said] {hero}. {cname}
    was [a little dusty|wet|covered in crumbs], so {his} {kin} [washed|cleaned] the toy {plush} and [hung
    it in the sun|dried it with a towel]. ¶ That night, {hero} [held {cname} tight|put {cname} on the
    pillow]. "[Never get lost again|Good night], {cname}," {he} [whispered|said][, and {he} fell asleep
    with a smile|]. [|{hero} learned that [it helps to
    put things back in their place|it is good to ask for help].]"""
    },
    "{cname}, the little {small}, is too small to play, but helps a {large}.": {
        "together": """trap: rescue/could not move. A rope was tied around one leg: bit the rope until it
        broke/had a thorn in one ear, where nobody could reach it: climbed up and pulled out the thorn/was
        locked in the barn, and the key was under the floor: went through a tiny hole and got the key/had
        dropped a {colour} {treasure} into a narrow hole: crawled down into the hole and brought it back""",
        "story": """[Once upon a time, there was|Once there was|In a green valley lived] a [little|tiny|very
    small] {small} named {cname}. [{C_he} wanted to play with the big animals.|Every day, {cname} watched
    the big animals play.] But the {large} said, "[You are too small|Go away], {cname}. [You might get
    hurt|We only play with big animals]." {cname} [felt sad|went home and cried|sat alone under a leaf]. ¶
    One {sky} [morning|day], {cname} heard a loud cry. {C_he} hurried to see what was wrong. The {large}
    {trap}. "[Help|Please help me]!" cried the {large}. The {large2} tried, but the {large2} was [much
    |]too big. ¶ "[I can do it|Let me try]," said {cname}. [The other animals laughed.|"You?" asked the
    {large2}.|Everyone looked at the {small}.] But {cname} was [brave|clever|quick]. {C_he} {rescue}.
    "[Hooray|Look at that]!" shouted the {large2}. "{cname} did it!" ¶ "[Thank you|I am sorry that I was
    mean], {cname}," said the {large}. "[You are small, but you are very brave|I was wrong about you]."
    [From then on, {cname} rode on the back of the {large}.|After that, {cname} played with the big
    animals every day.|They had a party with {fruits} for {cname}.] [|{cname} learned that
    [even small friends can be a big help|you do not have to be big to be brave].]""",
    },
}
