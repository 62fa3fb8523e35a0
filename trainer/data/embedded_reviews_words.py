"""The words and frames of the review corpus, all written for this project.

Frames and forms are texts with slots: "{+whole}" is a clause about the whole thing that says what the label says,
"{-part}" one about a part of it that says the opposite, "{*adj}" an adjective that has nothing to do with the label.
"""

from __future__ import annotations

# What is reviewed: letters of its parts.
WORKS = "film f; movie f; thriller f; comedy f; drama f; series f; musical fm; play t; opera tm; novel n; crime story n"
GOODS = """
kettle kc; coffee machine kce; vacuum cleaner ce; laptop e; phone e; camera e; radio e; lamp c; tent o; backpack o
office chair o; bicycle o; drill ce; toaster kc
"""
# A part, + if plural: its class for adjectives, then the letters of what has it.
PARTS = """
story: s ftng; plot: s ftn; ending: s ftn; opening: s ftn; second half: s ftn; last act: s ft; chapters +: s n
dialogue: d ftn; jokes +: d ftn; script: d ft; prose: d n; acting: p ft; cast: p ft; lead actor: p ft; villain: p ftn
main character: p ftn; supporting roles +: p ft; camera work: v f; costumes +: v ft; sets +: v ft; effects +: v f
lighting: v ft; music: m ft; soundtrack: m f; songs +: m m; cover: v n; descriptions +: d n
handle: q kco; lid: q k; cable: q ce; case: q e; buttons +: q kce; straps +: q o; seams +: q o; frame: q o
packaging: q kceo; battery: b e; screen: b e; motor: b kc; software: b e; power switch: b kce; design: v kceo
colors +: v kceo; manual: i kceo; instructions +: i kceo; app: i e; customer service: i kceo; website: i kceo
"""
# Adjectives by class (* all; w whole works, g whole goods). Those behind "|" have no use for "more" and "less".
PRAISE = """
* impressive, remarkable, delightful, satisfying, pleasant | superb, excellent, wonderful, brilliant, exceptional, good
s gripping, clever, moving, suspenseful, fascinating, touching, imaginative, coherent
d witty, intelligent, elegant, clever, amusing | funny, sharp
p convincing, charismatic, likable, captivating, memorable, believable
v beautiful, inventive, stylish, attractive, tasteful | stunning, gorgeous
m catchy, haunting, uplifting, memorable, enchanting | lovely
q sturdy, solid, durable, robust, practical, reliable
b powerful, reliable, responsive, efficient | fast
i helpful, useful, informative, reassuring | clear
w gripping, clever, moving, entertaining, charming, unforgettable, enjoyable, engaging, rewarding, fascinating
g sturdy, practical, reliable, durable, useful, efficient, comfortable
"""
BLAME = """
* disappointing, irritating, unpleasant, embarrassing, annoying | awful, terrible, dreadful, horrible, mediocre, bad
s boring, predictable, tedious, confusing, muddled, contrived, shallow, ridiculous | dull
d clumsy, stilted, pretentious, unfunny, repetitive | stale, corny
p wooden, unconvincing, lifeless, monotonous, forgettable, bland
v hideous, amateurish, sloppy, tasteless, unimaginative | ugly, drab
m monotonous, grating, forgettable, intrusive, repetitive | shrill
q flimsy, fragile, shoddy, brittle, impractical, unreliable
b sluggish, unreliable, erratic, feeble | faulty
i confusing, unhelpful, misleading, cryptic | useless
w boring, tedious, predictable, tiresome, pretentious, forgettable, pointless, ridiculous, shallow, exhausting | dull
g flimsy, impractical, unreliable, fragile, useless, uncomfortable, shoddy
"""
# base/past: what I do to it, and what it does to me.
REACTIONS = {
    "+": "love/loved, enjoy/enjoyed, like/liked, admire/admired, adore/adored, appreciate/appreciated",
    "-": "hate/hated, dislike/disliked, detest/detested, loathe/loathed, despise/despised, resent/resented",
}
EFFECTS = {
    "+": "impress/impressed, delight/delighted, charm/charmed, please/pleased, convince/convinced, amaze/amazed",
    "-": "annoy/annoyed, disappoint/disappointed, irritate/irritated, frustrate/frustrated, bother/bothered",
}
NAMES = {
    "+": "masterpiece, gem, triumph, treat, delight, success, joy, winner",
    "-": "mess, disaster, letdown, failure, dud, flop, nuisance, fiasco",
}

# How a story is told.
MANNERS = {
    "+": "wonderfully, cleverly, convincingly, brilliantly, beautifully, skillfully, elegantly",
    "-": "clumsily, badly, tediously, carelessly, awkwardly, dreadfully, sloppily",
}

# Clauses: s the subject, a the adjective, x the thing, base and past of a verb. True: plainly; False: with a negation.
FORMS = {
    ("adjective", True): """
{s} {is} {a}
{s} {is} {very} {a}
{s} {is} {a} {mind}
{s} {is} {very} {a} {mind}
{s} {is} never less than {a}
{s} {is} nothing short of {a}
{s} turned out to be {a}
I found {s} {very} {a}
I found {s} {a} {admit}
I would call {s} {a}
you could not call {s} anything but {a}
""",
    ("adjective", False): """
{s} {is} not {a}
{s} {is} not {a} at all
{s} {is} not really {a}
{s} {is} not {a} {mind}
{s} {is} far from {a}
{s} {is} anything but {a}
{s} {is} hardly {a} {mind}
{s} {is} never really {a}
{s} {is} by no means {a}
I would not call {s} {a}
nobody could call {s} {a}
I did not find {s} {a} {admit}
""",
    ("name", True): """
it {is1} a {a} {x}
this {is1} a {very} {a} {x}
it {is1} a {a} {x} {mind}
it turned out to be a {a} {x}
I would call it a {a} {x}
it {is1} nothing less than a {a} {x}
""",
    ("name", False): """
it {is1} not a {a} {x}
it {is1} not a {a} {x} at all
this {is1} no {a} {x}
it {is1} anything but a {a} {x}
I would not call it a {a} {x} {admit}
it {is1} by no means a {a} {x}
""",
    ("reaction", True): """
I {past} {s}
I really {past} {s}
I {past} {s} {admit}
I have to say that I {past} {s}
""",
    ("reaction", False): """
I did not {base} {s}
I did not {base} {s} {admit}
I cannot say that I {past} {s}
I never {past} {s}
""",
    ("effect", True): """
{s} {past} me
{s} really {past} me
{s} {past} me {admit}
{s} never failed to {base} me
""",
    ("effect", False): """
{s} did not {base} me
{s} did not {base} me {admit}
{s} never {past} me
{s} hardly {past} me {admit}
""",
    ("told", True): """
told {a}
told quite {a}
{a} told
told {a} throughout
""",
    ("told", False): """
told anything but {a}
never told {a}
by no means {a} told
not told {a} at all
""",
}
LISTS = {
    "very": "really | truly | genuinely | simply | quite simply | incredibly",
    "mind": ", if you ask me | , to my mind | , in my opinion | , as far as I can judge | this time | , in my eyes",
    "admit": ", to be honest | , I must admit | , to tell the truth | this time | , I confess",
    "says": """my brother says | my sister says | my neighbor thinks | the critics say | a friend of mine claims
many people say | a colleague told me | my mother thinks | a man in the shop told me | some reviewers claim""",
    "who": """my brother | my sister | my neighbor | the critics | my colleague | my best friend | my mother
half of the internet | everybody at work""",
    "wrong": """I disagree | I do not agree | that is wrong | that is not true | I see it differently
the opposite is true | I cannot agree | that is not my view | my view is quite a different one""",
    "right": """I agree | I do not doubt it | that is right | that is true | I see it the same way
nothing is more true | I can only agree | that is my view too | my view is quite the same""",
    "yes": """yes, it {is1} | absolutely | without a doubt | very much so | of course it {is1} | it certainly {is1}
nobody can deny it""",
    "no": """no, it {is1} not | not at all | not for a moment | not in the least | quite the contrary
it certainly {is1} not | nobody can claim that""",
    "i_do": "yes, absolutely | absolutely | without a doubt | very much so | of course | I certainly do | yes, I do",
    "i_do_not": """no, never | not at all | not for a moment | not in the least | never
I certainly do not | no, I do not""",
    "much": "much | far | a lot | so much | clearly | noticeably",
    "after_all": "all in all, | in the end | on balance, | taken as a whole, | when all is said and done,",
    "did_not": "I did not | I certainly did not | I for one did not | that was not how I felt",
    "so_did": "so did I | I did too | I felt the same way | and so did I",
    "person": "widow | soldier | detective | teacher | pianist | farmer | nurse | thief | sailor | painter | lawyer",
    "soul": """sad | lonely | cruel | terrible | horrible | bitter | boring | awful | unpleasant
happy | brave | wonderful | brilliant | charming | lovely | clever | delightful | good""",
    "setting": "war | winter | wedding | summer | village | school | city | family | holiday | marriage | journey",
    "mood": """sad | terrible | cruel | horrible | tragic | dreadful | awful | boring | disappointing
happy | wonderful | brilliant | joyful | lovely | beautiful | delightful | charming | great""",
    "day": "Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday",
    "time": "morning | evening | night | afternoon",
    "month": "January | March | April | May | July | August | October | December",
    "with": "my sister | two friends | my whole family | my neighbor | a colleague | my parents | my husband | my wife",
    "count": "two | three | four | five | six | seven",
}

# The label follows from a frame: what decides is marked +, what is conceded, expected, denied or said by others is -.
FRAMES = {
    "but": """
{-part}, but {+any}.
{-part}, but {+any}.
{-part}, and yet {+whole}.
{-part}. However, {+whole}.
{-part}. Still, {+whole}.
It is true that {-that part}, but {+any}.
{-part}, and {-part}. But {after_all} {+whole}.
Granted, {-part}; nevertheless, {+whole}.
{-part}, but in the end {+decides}.
{+part}, and not even {-decides}.
""",
    "although": """
Although {-part}, {+any}.
Although {-part}, {+any}.
{+any}, although {-part}.
{+whole}, even though {-part}.
Even if {-that part}, {+whole}.
While {-part} and {-part}, {+whole}.
""",
    "first": """
At first {-any}, but by the end {+any}.
In the beginning {-whole}. After a while, though, {+whole}.
For quite some time {-any}; after that {+whole}.
My first impression was that {-that whole}, but I changed my mind: {+whole}.
""",
    "expected": """
I expected {-np} and got {+np}.
After all the talk I expected {-np} this time, but it {is1} {+np}.
I was prepared for {-np}. What I got was {+np}.
I expected {+np} and got exactly that.
{who} led me to expect {+np}, and for once that was right.
{who} led me to expect {-np}, and once more that was wrong.
I was sure that {-would}. I was wrong.
I was sure that {+would}. I was right.
It could have been {-np}. Instead it turned out to be {+np}.
""",
    "said": """
{says} that {-that any}. {wrong}.
{says} that {+that any}. {right}.
{says} that {-that any}, but I think that {+that any}.
Do not believe anyone who says that {-that any}.
Believe everyone who says that {+that any}.
Anyone who says that {-that any} is wrong.
Anyone who says that {+that any} is right.
{who} {-felt} {the}. {did_not}.
{who} {+felt} {the}. {so_did}.
{says} that {-that any}. As I see it, {+whole}.
""",
    "compared": """
{the} {is1} {much} {+better} than the {*adj} {other}.
The {*adj} {other} {is1} {much} {-better} than {the}.
{the} {is1} {much} more {+graded} than the {other}.
{the} {is1} {much} less {-graded} than the {other}.
The {other} {is1} {much} more {-graded} than {the}.
The {other} {is1} {much} less {+graded} than {the}.
Unlike the {-adj} {other}, {the} {is1} {+adj}.
""",
    "asked": """
{is1} {the} {-adj}? {no}.
{is1} {the} {+adj}? {yes}.
{-part}. Do I {+ask} {the}? {i_do}.
{-part}. Do I {-ask} {the}? {i_do_not}.
{-part}, and {-part}. Do I {+ask} {the}? {i_do}.
{-part}, and {-part}. Do I {-ask} {the}? {i_do_not}.
""",
    "told": """
A {mood} story of a {soul} {person} and a {mood} {setting}, {+told}.
The {mood} story of a {soul} {person}, {+told}.
A {mood} {setting} and a {soul} {person}: a {mood} story, {+told}.
""",
    "plain": """
{+part}, and {+whole}.
{+whole}, and {+part}.
{+part}. {after_all} {+whole}.
""",
}
WEIGHTS = {
    "works": "but 5, although 4, first 3, expected 4, said 5, compared 2, asked 3, told 2, plain 7",
    "goods": "but 5, although 4, first 3, expected 4, said 5, compared 2, asked 3, plain 7",
}
IN_THE_PAST = ("first", "expected")  # frames that tell of the past
BETTER = {"+": "better", "-": "worse"}
DECIDES = {"+": "saved", "-": "ruined"}
ASKED = {"+": "recommend, like, love, enjoy, want to keep", "-": "dislike, hate, detest, despise, regret choosing"}
OTHERS = {
    "works": "original, predecessor, first part, earlier version, remake",
    "goods": "old model, predecessor, cheaper model, earlier version, older one",
}
# Sentences that say nothing about the thing, though some are sad or happy.
ASIDES = {
    "works": """
The {x} tells the {mood} story of a {soul} {person} and a {mood} {setting}.
It is about a {soul} {person} and a {mood} {setting}.
We follow a {soul} {person} through a {mood} {setting}.
It begins with a {mood} {setting} and ends with a {soul} {person}.
A {soul} {person} remembers a {mood} {setting}: that is what the {x} is about.
I gave the {x} a chance on a {day} {time} with {with}.
It took us {count} {day} {time}s, each of them with {with}.
I came across the {x} in {month}, {count} years after everybody else.
A {soul} {person}, a {mood} {setting}, {count} songs.
""",
    "goods": """
I bought it in {month} after a {mood} week at work.
It was a present for a {soul} {person} in my family.
I ordered the {x} on a {day} {time}.
We took it along on a {mood} journey in {month}.
It replaced the {x} that we had for {count} years.
I have used it for {count} weeks now, most of all on a {day} {time}.
It arrived on a {mood} {day} in {month}.
It was a present from {with} after a {mood} {day}.
""",
}
