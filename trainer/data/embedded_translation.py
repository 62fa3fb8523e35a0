"""The German-English corpus: a lexicon, its inflection, and sentence patterns, all written for this project.

Every row is German with one English reference that follows from the German alone. What could be read in two ways is left out or
fixed once for the whole corpus: there is no polite "Sie"; a third person possessive belongs to the subject of its clause; the perfect
is the simple past, the present the simple present. Many to one is wanted ("du", "ihr" → "you").

A combination is a pair of content lemmas that stand in one construction (verb and complement, adjective and noun). `split_of` deals the
combinations to the splits once for all seeds, and a row of a split is made of that split's combinations only. So no combination of
the test split can ever occur in training, however many rows are drawn.

Conventions: case 0-3 = nominative, accusative, dative, genitive; gender 0-3 = masculine, feminine, neuter, plural; person 0-5 = ich,
du, er/sie/es, wir, ihr, sie. Nouns carry letters for what they are, verbs the letters of the nouns they go with (see NOUNS).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.keyed import key

if TYPE_CHECKING:
    from trainer.data.embedded import Draw

TWO_CLAUSE_SHARE = 40  # percent of rows with two clauses: the one constant to turn the corpus harder or easier
NOM, ACC, DAT, GEN = range(4)
PLURAL = 3  # as a gender
HELD_OUT = {0: "test", 1: "test", 2: "validation", 3: "validation"}  # twentieths of the combinations; the others train

# ---------------------------------------------------------------------------------------------------------------- the lexicon
# lemma, gender (w = masculine with -n declension), plural (- same as singular, 0 none), English singular/plural, letters. The first letter
# decides the adjectives: p person, a animal, t text, n printed matter, f food, d drink, c clothes, o can be opened, m machine, v vehicle,
# s small object, g furniture, b place, e event, w weather, y town. Further letters: k can be cooked, r can be tidied.
NOUNS = """
Mann m Männer man/men p; Frau f Frauen woman/women p; Kind n Kinder child/children p; Junge w Jungen boy p; Mädchen n - girl p
Lehrerin f Lehrerinnen teacher p; Arzt m Ärzte doctor p; Nachbar w Nachbarn neighbor p; Bruder m Brüder brother p
Schwester f Schwestern sister p; Vater m Väter father p; Mutter f Mütter mother p; Sohn m Söhne son p; Tochter f Töchter daughter p
Onkel m - uncle p; Tante f Tanten aunt p; Student w Studenten student p; Schüler m - pupil p; Chef m Chefs boss p
Kollege w Kollegen colleague p; Gast m Gäste guest p; Polizist w Polizisten policeman/policemen p; Kellner m - waiter p
Koch m Köche cook p; Bauer w Bauern farmer p; Künstler m - artist p; Fahrer m - driver p; Richterin f Richterinnen judge p
Sängerin f Sängerinnen singer p; Königin f Königinnen queen p; Freund m Freunde friend p; Kundin f Kundinnen customer p
Hund m Hunde dog a; Katze f Katzen cat a; Pferd n Pferde horse a; Vogel m Vögel bird a; Kuh f Kühe cow a; Maus f Mäuse mouse/mice a
Schaf n Schafe sheep/sheep a; Huhn n Hühner chicken a; Ente f Enten duck a
Buch n Bücher book t; Brief m Briefe letter t; Gedicht n Gedichte poem t; Roman m Romane novel t; Nachricht f Nachrichten message t
Bericht m Berichte report t; Artikel m - article t; Geschichte f Geschichten story t; Zeitung f Zeitungen newspaper n
Rechnung f Rechnungen bill n; Vertrag m Verträge contract n; Zeitschrift f Zeitschriften magazine n
Apfel m Äpfel apple f; Kuchen m - cake f; Suppe f Suppen soup fk; Ei n Eier egg fk; Kartoffel f Kartoffeln potato fk
Tomate f Tomaten tomato f; Orange f Orangen orange f; Salat m Salate salad f; Keks m Kekse cookie f; Fisch m Fische fish/fish fk
Brot n 0 bread f; Käse m 0 cheese f; Reis m 0 rice fk; Fleisch n 0 meat fk
Kaffee m 0 coffee d; Tee m 0 tea d; Milch f 0 milk d; Wasser n 0 water d; Wein m 0 wine d; Saft m 0 juice d
Hut m Hüte hat c; Kleid n Kleider dress c; Hemd n Hemden shirt c; Jacke f Jacken jacket c; Mantel m Mäntel coat c; Rock m Röcke skirt c
Schuh m Schuhe shoe c; Pullover m - sweater c
Tür f Türen door o; Fenster n - window o; Schrank m Schränke closet o; Koffer m - suitcase o; Tasche f Taschen bag o
Kiste f Kisten box o; Flasche f Flaschen bottle o
Computer m - computer m; Maschine f Maschinen machine m; Uhr f Uhren clock m; Lampe f Lampen lamp m; Radio n Radios radio m
Kamera f Kameras camera m; Auto n Autos car v; Fahrrad n Fahrräder bicycle v; Boot n Boote boat v; Motorrad n Motorräder motorcycle v
Ball m Bälle ball s; Schlüssel m - key s; Bild n Bilder picture s; Messer n - knife/knives s; Teller m - plate s; Glas n Gläser glass s
Blume f Blumen flower s; Karte f Karten card s; Spiegel m - mirror s; Ring m Ringe ring s; Geschenk n Geschenke gift s
Kerze f Kerzen candle s; Puppe f Puppen doll s; Korb m Körbe basket s; Regenschirm m Regenschirme umbrella s; Stift m Stifte pen s
Tisch m Tische table g; Stuhl m Stühle chair g; Bett n Betten bed g; Sofa n Sofas sofa g; Teppich m Teppiche carpet g
Bank f Bänke bench g; Regal n Regale shelf/shelves g
Garten m Gärten garden br; Haus n Häuser house br; Schule f Schulen school b; Küche f Küchen kitchen br; Park m Parks park b
Wald m Wälder forest b; Büro n Büros office br; Zimmer n - room br; Museum n Museen museum b; Kirche f Kirchen church b
Restaurant n Restaurants restaurant b; Hotel n Hotels hotel b; Bibliothek f Bibliotheken library b; Theater n - theater b
Krankenhaus n Krankenhäuser hospital b; Laden m Läden store b; Keller m - basement br; Fabrik f Fabriken factory b
Bahnhof m Bahnhöfe station b; Schloss n Schlösser castle b; Dorf n Dörfer village b; Stadt f Städte city b
Konzert n Konzerte concert e; Film m Filme movie e; Spiel n Spiele game e; Fest n Feste party e; Reise f Reisen trip e
Sitzung f Sitzungen meeting e; Hochzeit f Hochzeiten wedding e; Prüfung f Prüfungen exam e; Kurs m Kurse course e
Regen m 0 rain w; Schnee m 0 snow w; Sturm m 0 storm w; Lärm m 0 noise w; Hitze f 0 heat w; Nebel m 0 fog w
Berlin n 0 Berlin y; Hamburg n 0 Hamburg y; München n 0 Munich y; Wien n 0 Vienna y; Köln n 0 Cologne y; Rom n 0 Rome y
"""
NAMES = "Peter m; Paul m; Karl m; Martin m; David m; Anton m; Anna f; Maria f; Lena f; Julia f; Emma f; Clara f"

# German (comparative stem if it changes) = English : letters of the nouns, x = c o m v s g; ! = has no degrees.
ADJECTIVES = """
alt/ält = old : paxb; jung/jüng = young : pa; müde = tired : pa; krank/kränk = sick : pa; gesund/gesünd = healthy : pa
glücklich = happy : p; traurig = sad : p; freundlich = friendly : p; klug/klüg = smart : pa; stark/stärk = strong : pad
schwach/schwäch = weak : pad; hungrig = hungry : pa; reich = rich : p; arm/ärm = poor : p; nett = nice : p; ruhig = calm : pab
mutig = brave : p; faul = lazy : pa; berühmt = famous : pbt; höflich = polite : p; nervös = nervous : pa; neugierig = curious : pa
neu = new : xtbn; rot = red : x!; blau = blue : x!; grün = green : x!; schwarz = black : xa!; gelb = yellow : x!; braun = brown : xa!
groß/größ = big : xabf; klein = small : xabf; teuer = expensive : xfdbe; billig = cheap : xfdnt; schön = beautiful : xbea
hässlich = ugly : xba; schwer = heavy : x; leicht = light : xf; sauber = clean : xb; schmutzig = dirty : xba; kaputt = broken : x!
interessant = interesting : tebn; langweilig = boring : tebn; lang/läng = long : ten; kurz/kürz = short : ten; wichtig = important : ten
lustig = funny : tep; seltsam = strange : ten; kalt/kält = cold : fdb; warm/wärm = warm : fdb; süß = sweet : fd; frisch = fresh : fd
gut/bess = good : tefd; schlecht = bad : tefd; dunkel = dark : b; modern = modern : bm; gefährlich = dangerous : a
"""

# infinitive/er-form/participle (* = perfect with sein) = base/past/participle : letters. | separable, _ space in English;
# + = a state or a mishap: no progressive, passive, imperative or "gern"; - = no passive.
VERBS = {
    "object": """
lesen/liest/gelesen = read/read/read : tn; schreiben//geschrieben = write/wrote/written : t; übersetzen = translate : t
verstehen//verstanden = understand/understood/understood : tp+; kaufen = buy/bought/bought : fcmvg; verkaufen = sell/sold/sold : mvsga
essen/isst/gegessen = eat/ate/eaten : f; kochen = cook : k; bestellen = order : fd; trinken//getrunken = drink/drank/drunk : d
suchen = look_for : asnp-; finden//gefunden = find/found/found : acs; vergessen/vergisst/vergessen = forget/forgot/forgotten : tsn+
verlieren//verloren = lose/lost/lost : scn+; reparieren = repair : mvg; putzen = clean : ogr; waschen/wäscht/gewaschen = wash : ca
öffnen = open : o; schließen//geschlossen = close : o; tragen/trägt/getragen = wear/wore/worn : c-; malen = paint : oag
zeichnen = draw/drew/drawn : bavs; sehen/sieht/gesehen = see/saw/seen : abp+; bauen = build/built/built : vg; brauchen = need : mosg+
haben/hat/gehabt = have/had/had : acmv+; nehmen/nimmt/genommen = take/took/taken : sfc; verstecken = hide/hid/hidden : scn
benutzen = use : mvs; bezahlen = pay_for/paid_for/paid_for : fdc; bekommen//bekommen = get/got/gotten : tn+; füttern = feed/fed/fed : a
fangen/fängt/gefangen = catch/caught/caught : a; mieten = rent : vb; bewundern = admire : cbp; holen = fetch : fdo; planen = plan : e
auf|machen = open : o; zu|machen = close : o; an|machen = turn_on : m; aus|machen = turn_off : m
an|ziehen//gezogen = put_on/put_on/put_on : c; aus|ziehen//gezogen = take_off/took_off/taken_off : c
weg|werfen/wirft/geworfen = throw_away/threw_away/thrown_away : fsn; mit|bringen//gebracht = bring_along/brought_along/brought_along : fds
ein|packen = pack : cst; zurück|geben/gibt/gegeben = return : stv; aus|leihen//geliehen = borrow : tvs; auf|räumen = tidy_up : r
vor|bereiten = prepare : e; ab|sagen = cancel : e; besuchen = visit : bep; genießen//genossen = enjoy : ed; beobachten = watch : aep
treffen/trifft/getroffen = meet/met/met : p; kennen//gekannt = know/knew/known : pb+; lieben = love : pa+; fragen = ask : p
begrüßen = greet : p; vermissen = miss : p+; an|rufen//gerufen = call : p; ein|laden/lädt/geladen = invite : p; ab|holen = pick_up : p""",
    "dative": """
helfen/hilft/geholfen = help : p; danken = thank : p; antworten = answer : p; folgen//* = follow : p; vertrauen = trust : p+
gratulieren = congratulate : p; zu|hören = listen_to : p; drohen = threaten : p; verzeihen//verziehen = forgive/forgave/forgiven : p""",
    "auf": "warten = wait_for : p",
    "an": "denken//gedacht = think_of/thought_of/thought_of : p",
    "mit": "sprechen/spricht/gesprochen = talk_to : p; tanzen = dance_with : p; spielen = play_with : pa",
    "von": "träumen = dream_of : pvy",
    "give": """
geben/gibt/gegeben = give/gave/given : sfdtn; schicken = send/sent/sent : stc; zeigen = show/showed/shown : stvcm
leihen//geliehen = lend/lent/lent : vmt; bringen//gebracht = bring/brought/brought : fdso""",
    "explain": "erklären = explain : tnme; beschreiben//beschrieben = describe : absvr; vor|lesen/liest/gelesen = read/read/read : tn",
    "place": """
arbeiten = work : by; schlafen/schläft/geschlafen = sleep/slept/slept : bg; wohnen = live : by; tanzen = dance : b
singen//gesungen = sing/sang/sung : b; lachen = laugh : b; sitzen//gesessen = sit/sat/sat : bg; stehen//gestanden = stand/stood/stood : b
bleiben//geblieben* = stay : by; lernen = study : by; spielen = play : b; warten = wait : b; ein|kaufen = shop : y""",
    "go": """
gehen//gegangen* = go/went/gone : b; laufen/läuft/gelaufen* = run/ran/run : b; kommen//gekommen* = come/came/come : by
fahren/fährt/gefahren* = drive/drove/driven : by; reisen//* = travel : y; fliegen//geflogen* = fly/flew/flown : y
zurück|kommen//gekommen* = come_back/came_back/come_back : by""",
    "put": "legen = put/put/put : sct; stellen = put/put/put : smof",
    "rise": """
auf|stehen//gestanden* = get_up/got_up/gotten_up; ein|schlafen/schläft/geschlafen* = fall_asleep/fell_asleep/fallen_asleep
auf|wachen//* = wake_up/woke_up/woken_up; an|kommen//gekommen* = arrive; weg|gehen//gegangen* = leave/left/left""",
    "weather": "regnen = rain; schneien = snow",
    "dass": """
glauben = believe; sagen = say/said/said; hoffen = hope; denken//gedacht = think/thought/thought; wissen/weiß/gewusst = know/knew/known+
vergessen/vergisst/vergessen = forget/forgot/forgotten""",
    "ob": "fragen = ask",
    "zu": """
versuchen = try; planen = plan; hoffen = hope; vergessen/vergisst/vergessen = forget/forgot/forgotten
versprechen/verspricht/versprochen = promise; beginnen//begonnen = begin/began/begun""",
}

NUMBERS = (
    "zwei two; drei three; vier four; fünf five; sechs six; sieben seven; acht eight; neun nine; zehn ten; zwölf twelve"
)
FREQUENCY = "oft often; immer always; nie never; manchmal sometimes; selten rarely; meistens usually"
FRONTED = "vielleicht maybe; leider unfortunately; dann then; deshalb therefore; natürlich of_course; zum_Glück luckily"
DAYS = "Montag Monday; Dienstag Tuesday; Mittwoch Wednesday; Donnerstag Thursday; Freitag Friday; Samstag Saturday; Sonntag Sunday"

# ------------------------------------------------------------------------------------------------------------------ inflection
Grid = tuple[tuple[str, ...], ...]  # [case][gender]
Pair = tuple[str, str]  # German, English


def pairs(text: str) -> tuple[Pair, ...]:
    """Entries "german english", parted by ";"."""
    return tuple((de.replace("_", " "), en.replace("_", " ")) for de, en in map(str.split, text.split(";")))


def entries(text: str) -> Iterator[str]:
    """The entries of a table, parted by ";" or a line end."""
    return (entry.strip() for entry in text.replace("\n", ";").split(";") if entry.strip())


def grid(text: str) -> Grid:
    """Four cases parted by "|", each with four genders; "-" is the empty string."""
    return tuple(tuple("" if form == "-" else form for form in row.split()) for row in text.split("|"))


WEAK = grid("e e e en|en e e en|en en en en|en en en en")
MIXED = grid("er e es en|en e es en|en en en en|en en en en")
STRONG = grid("er e es e|en e es e|em er em en|en er en er")
ARTICLE_ENDINGS = grid("er e es e|en e es e|em er em en|es er es er")
EIN_ENDINGS = grid("- e - e|en e - e|em er em en|es er es er")
RELATIVE = grid("der die das die|den die das die|dem der dem denen|- - - -")


class Determiner(NamedTuple):
    """Forms and the adjective endings that follow them, both [case][gender]; English (singular, plural)."""

    forms: Grid
    endings: Grid
    en: Pair


def determiner(stem: str, article: Grid, endings: Grid, singular: str, plural: str = "") -> Determiner:
    """`stem` + article ending; euer loses its second e before an ending."""
    short = "eur" if stem == "euer" else stem
    forms = tuple(tuple((short if end else stem) + end for end in row) for row in article)
    return Determiner(forms, endings, (singular, plural or singular))


NONE = grid("- - - -|- - - -|- - - -|- - - -")
DEF = Determiner(grid("der die das die|den die das die|dem der dem den|des der des der"), WEAK, ("the", "the"))
BARE = Determiner(NONE, STRONG, ("", ""))
INDEF = determiner("ein", EIN_ENDINGS, MIXED, "a")
NO = determiner("kein", EIN_ENDINGS, MIXED, "no")
NOT_ANY = determiner("kein", EIN_ENDINGS, MIXED, "a", "any")
THIS = determiner("dies", ARTICLE_ENDINGS, WEAK, "this", "these")
EVERY = determiner("jed", ARTICLE_ENDINGS, WEAK, "every")
WHICH = determiner("welch", ARTICLE_ENDINGS, WEAK, "which")
HOW_MANY = determiner("wie viel", ARTICLE_ENDINGS, STRONG, "how many")
QUANTITIES = [determiner("viel", ARTICLE_ENDINGS, STRONG, "many"), determiner("einig", ARTICLE_ENDINGS, STRONG, "some")]
COUNTS = [determiner(de, NONE, STRONG, en) for de, en in pairs(NUMBERS)]
# The owner's index is `Subject.own`: ich du er sie wir ihr sie.
POSSESSIVES = tuple(
    determiner(de, EIN_ENDINGS, MIXED, en)
    for de, en in pairs("mein my; dein your; sein his; ihr her; unser our; euer your; ihr their")
)


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """`de[plural][case]`, `en[plural]`; a noun without plural is a mass noun or a town."""

    lemma: str
    gender: int
    letters: str
    de: Grid
    en: Pair
    mass: bool


def genitive(noun: str, plural: str) -> str:
    """Masculine and neuter singular: -es after a sibilant and for native monosyllables, else -s."""
    syllables = sum(a in VOWELS and b not in VOWELS for a, b in zip(noun.lower(), noun.lower()[1:] + " ", strict=True))
    native = syllables == 1 and not plural.endswith("s") and noun[-1] not in VOWELS
    return noun + ("es" if native or noun.endswith(("s", "ß", "x", "z", "sch")) else "s")


VOWELS = "aeiouyäöü"


def parse_noun(entry: str) -> Noun:
    lemma, kind, plural, english, letters = entry.split()
    gender = {"m": 0, "w": 0, "f": 1, "n": 2}[kind]
    mass, many = plural == "0", lemma if plural == "-" else plural
    if kind == "w":
        singular: tuple[str, ...] = (lemma, many, many, many)
    else:
        singular = (lemma, lemma, lemma, lemma if kind == "f" else genitive(lemma, plural))
    dative = many if many.endswith(("n", "s")) else many + "n"
    one, _, more = english.partition("/")
    return Noun(lemma, gender, letters, (singular, (many, many, dative, many)), (one, more or plural_of(one)), mass)


def plural_of(noun: str) -> str:
    """Regular English plural, which is also the regular third person of a verb."""
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh", "o")) and noun not in ("radio", "video") else "s")


class Degree(NamedTuple):
    """One degree of an adjective: attributive stem, predicate form, English."""

    stem: str
    predicate: str
    en: str


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """Degrees: positive, comparative, superlative; only the first if it has no degrees."""

    lemma: str
    letters: str
    degrees: tuple[Degree, ...]


def parse_adjective(entry: str) -> Adjective:
    german, english, letters = (part.strip() for part in entry.replace("=", ":").split(":"))
    lemma, _, changed = german.partition("/")
    short = {"teuer": "teur", "dunkel": "dunkl"}.get(lemma, lemma.rstrip("e"))
    more = (changed or short) + "er"
    most = (changed or lemma.rstrip("e")) + (
        "est" if (changed or lemma).endswith(("t", "d", "s", "ß", "z", "e", "eu")) else "st"
    )
    most = {"größest": "größt", "bessst": "best", "bessest": "best"}.get(most, most)
    comparative, superlative = english_degrees(english)
    degrees = (Degree(short, lemma, english), Degree(more, more, comparative), Degree(most, most, superlative))
    return Adjective(lemma, letters.rstrip("!").replace("x", "comvsg"), degrees[: 1 if letters.endswith("!") else 3])


def english_degrees(word: str) -> Pair:
    if word in ("good", "bad"):
        return ("better", "best") if word == "good" else ("worse", "worst")
    syllables = sum(a in VOWELS and b not in VOWELS for a, b in zip(word, word.rstrip("e")[1:] + " ", strict=False))
    if syllables > 1 and not word.endswith("y"):
        return f"more {word}", f"most {word}"
    stem = word[:-1] + "i" if word.endswith("y") else word.rstrip("e")
    stem += stem[-1] if word in ("big", "hot", "sad", "red") else ""
    return stem + "er", stem + "est"


# ----------------------------------------------------------------------------------------------------------------------- verbs
Six = tuple[str, ...]  # one form for each person
GermanMode = tuple[Six, str, Six]  # finite verb, what closes a main clause, what closes a subordinate clause
EnglishMode = list[tuple[str, str, bool, str, str, str]]  # per person: see `english_mode`


def six(text: str) -> Six:
    forms = tuple(text.split())
    return forms if len(forms) == 6 else forms * 6


def weak_past(stem: str) -> Six:
    return tuple(stem + ending for ending in ("te", "test", "te", "ten", "tet", "ten"))


HAVE, HAD = six("habe hast hat haben habt haben"), weak_past("hat")
BE, WAS = six("bin bist ist sind seid sind"), six("war warst war waren wart waren")
BECOME, BECAME = six("werde wirst wird werden werdet werden"), six("wurde wurdest wurde wurden wurdet wurden")
EN_BE, EN_WAS = six("am are is are are are"), six("was were was were were were")
EN_HAVE, EN_DO, EN_DID = six("have have has have have have"), six("do do does do do do"), six("did")

# mode: German finite verb, English finite verb, whether that one takes "do", its base form, what follows with the verb's base in {}
MODALS = {
    "future": (BECOME, six("will"), "", "{}"),
    "can": (six("kann kannst kann können könnt können"), six("can"), "", "{}"),
    "could": (weak_past("konn"), six("could"), "", "{}"),
    "must": (six("muss musst muss müssen müsst müssen"), EN_HAVE, "have", "to {}"),
    "had to": (weak_past("muss"), six("had"), "have", "to {}"),
    "wants": (six("will willst will wollen wollt wollen"), six("want want wants want want want"), "want", "to {}"),
    "wanted": (weak_past("woll"), six("wanted"), "want", "to {}"),
    "may": (six("darf darfst darf dürfen dürft dürfen"), EN_BE, "", "allowed to {}"),
    "might": (weak_past("durf"), EN_WAS, "", "allowed to {}"),
    "should": (six("soll sollst soll sollen sollt sollen"), six("should"), "", "{}"),
    "would like": (six("möchte möchtest möchte möchten möchtet möchten"), six("would"), "", "like to {}"),
}
PAST_MODES = {"past", "could", "had to", "wanted", "might"}


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb in all its modes; `base`, `ing` are English, `zu` is the German infinitive with zu."""

    lemma: str
    letters: str
    de: dict[str, GermanMode]
    en: dict[str, EnglishMode]
    zu: str
    base: str
    ing: str
    prefix: str = ""
    passive: Verb | None = None


def german_mode(finite: Six, right: str, join: str = " ") -> GermanMode:
    return finite, right, tuple(right + join + form if right else form for form in finite)


def english_mode(finite: Six, rest: str, do: str = "", past: bool = False) -> EnglishMode:
    """Per person (finite, rest, takes do, auxiliary, rest after it, negated auxiliary); `do` is the finite verb's base if it takes do."""
    auxiliary = (EN_DID if past else EN_DO) if do else finite
    after = f"{do} {rest}".strip()
    return [
        (verb, rest, bool(do), helper, after, "cannot" if helper == "can" else f"{helper} not")
        for verb, helper in zip(finite, auxiliary, strict=True)
    ]


def modal_modes(infinitive: str, base: str) -> tuple[dict[str, GermanMode], dict[str, EnglishMode]]:
    german = {mode: german_mode(row[0], infinitive) for mode, row in MODALS.items()}
    english = {
        mode: english_mode(finite, rest.format(base), do, mode in PAST_MODES)
        for mode, (_, finite, do, rest) in MODALS.items()
    }
    return german, english


def inflect(verb: str, ending: str) -> str:
    """Regular -s, -ed and -ing of an English verb; a particle ("turn on") stays behind."""
    word, _, particle = verb.partition(" ")
    if ending == "s":
        word = "has" if word == "have" else plural_of(word)
    else:
        if word in ("plan", "put", "sit", "run", "get", "forget", "begin", "shop"):
            word += word[-1]
        elif word.endswith("e"):
            word = word[:-1]
        elif ending == "ed" and word.endswith("y") and word[-2] not in VOWELS:
            word = word[:-1] + "i"
        word += ending
    return f"{word} {particle}".strip()


def present_tense(infinitive: str, third: str) -> Six:
    """Present of a German verb without prefix; `third` (er-form) only if its stem changes."""
    if third == "weiß":
        return six("weiß weißt weiß wissen wisst wissen")
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    link = "e" if stem.endswith(("t", "d", "ffn", "chn", "gn")) else ""
    second = third[:-1] if third else stem + link
    second += "t" if second.endswith(("s", "ß", "z", "x")) else "st"
    return stem + "e", second, third or stem + link + "t", infinitive, stem + link + "t", infinitive


def participle_of(infinitive: str) -> str:
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    ending = "et" if stem.endswith(("t", "d", "ffn", "chn", "gn")) else "t"
    unstressed = infinitive.endswith("ieren") or infinitive.startswith(("be", "er", "ver", "zer", "ge", "über"))
    return ("" if unstressed else "ge") + stem + ending


def parse_verb(entry: str) -> Verb:
    description, _, letters = entry.partition(" : ")
    flags = "".join(flag for flag in "+-" if entry.endswith(flag))
    german, english = (side.strip().rstrip("+-") for side in description.split(" = "))
    lemma, third, participle = (german.split("/") + ["", ""])[:3]
    prefix, _, stem = lemma.rpartition("|")
    perfect, pluperfect = (BE, WAS) if participle.endswith("*") else (HAVE, HAD)
    participle = prefix + (participle.rstrip("*") or participle_of(stem))
    base, past, done = ([form.replace("_", " ") for form in english.split("/")] + ["", ""])[:3]
    past, done = past or inflect(base, "ed"), done or past or inflect(base, "ed")
    present = english_mode(tuple(inflect(base, "s") if i == 2 else base for i in range(6)), "", base)
    de, en = modal_modes(prefix + stem, base)
    de["present"] = german_mode(present_tense(stem, third), prefix, "")
    de["past"] = german_mode(HAD, "") if stem == "haben" else german_mode(perfect, participle)
    de["pluperfect"] = german_mode(pluperfect, participle)
    en["present"] = present
    en["past"] = english_mode((past,) * 6, "", base, past=True)
    en["pluperfect"] = english_mode(six("had"), done)
    for mode, finite, rest, do in (
        ("progressive", EN_BE, "{ing}", ""),
        ("since", EN_HAVE, "been {ing}", ""),
        ("gern", six("like like likes like like like"), "to {base}", "like"),
    ):
        de[mode] = de["present"]
        en[mode] = english_mode(finite, rest.format(ing=inflect(base, "ing"), base=base), do)
    passive = None if flags else passive_of(prefix + stem, participle, done)
    zu = f"{prefix}zu{stem}" if prefix else f"zu {stem}"
    return Verb(prefix + stem, letters.strip() + flags, de, en, zu, base, inflect(base, "ing"), prefix, passive)


def passive_of(lemma: str, participle: str, done: str) -> Verb:
    de, en = modal_modes(f"{participle} werden", f"be {done}")
    de |= {"present": german_mode(BECOME, participle), "past": german_mode(BECAME, participle)}
    en |= {"present": english_mode(EN_BE, done), "past": english_mode(EN_WAS, done)}
    return Verb(lemma, "", de, en, f"{participle} zu werden", f"be {done}", f"being {done}")


def copula() -> Verb:
    de, en = modal_modes("sein", "be")
    de |= {"present": german_mode(BE, ""), "past": german_mode(WAS, "")}
    en |= {"present": english_mode(EN_BE, ""), "past": english_mode(EN_WAS, "")}
    return Verb("sein", "", de, en, "zu sein", "be", "being")


SEIN = copula()
GEFALLEN = parse_verb("gefallen/gefällt/gefallen = like")
GEHÖREN = parse_verb("gehören = belong_to")


# --------------------------------------------------------------------------------------------------- the splits' combinations
LEXICON_NOUNS = [parse_noun(entry) for entry in entries(NOUNS)]
LEXICON_ADJECTIVES = [parse_adjective(entry) for entry in entries(ADJECTIVES)]
LEXICON_VERBS = {frame: [parse_verb(entry) for entry in entries(table)] for frame, table in VERBS.items()}
Options = list[tuple[Verb, list[Noun]]]


def of_kind(letters: str) -> list[Noun]:
    return [noun for noun in LEXICON_NOUNS if noun.letters[0] in letters]


PEOPLE, PLACES = of_kind("p"), of_kind("b")


def split_of(first: str, second: str) -> str:
    """The split that alone may use this combination of content lemmas."""
    return HELD_OUT.get(key("translation", first, second) % 20, "train")


@dataclass(frozen=True, slots=True)
class Pool:
    """What a split may combine: verbs with nouns (by frame), nouns with adjectives, places with things."""

    verbs: dict[str, Options]
    adjectives: dict[Noun, list[Adjective]]
    described: dict[str, list[Noun]]
    found: list[tuple[Noun, list[Noun]]]


@functools.cache
def pool(split: str) -> Pool:
    """Built once for each split from the lexicon."""

    def options(frame: str, letters: str = "", flags: str = "", genders: str = "0123") -> Options:
        """Verbs without these flags, with this split's nouns of these letters and genders."""
        chosen = []
        for verb in LEXICON_VERBS[frame]:
            kinds = set(verb.letters) & set(letters or verb.letters)
            nouns = [noun for noun in LEXICON_NOUNS if kinds & set(noun.letters) and str(noun.gender) in genders]
            nouns = [noun for noun in nouns if split_of(verb.lemma, noun.lemma) == split]
            if nouns and not set(flags) & set(verb.letters):
                chosen.append((verb, nouns))
        return chosen

    things = "atnfkdcomvsgbre"
    verbs = {
        frame: options(frame)
        for frame in ("dative", "auf", "an", "mit", "von", "give", "explain", "place", "go", "put")
    }
    verbs |= {"object": options("object", things), "person": options("object", "p")}
    verbs |= {"active": options("object", things, "+"), "passive": options("object", "", "+-")}
    verbs |= {"masculine": options("object", things.replace("d", ""), "", "0")}
    verbs["known"] = [(verb, nouns) for verb, nouns in verbs["person"] if not verb.prefix]
    for verb, letters in ((GEFALLEN, "tcvsegb"), (GEHÖREN, "acmvsg")):
        verbs[verb.lemma] = [(verb, [n for n in of_kind(letters) if split_of(verb.lemma, n.lemma) == split])]
    adjectives = {
        noun: [a for a in LEXICON_ADJECTIVES if noun.letters[0] in a.letters and split_of(a.lemma, noun.lemma) == split]
        for noun in LEXICON_NOUNS
    }
    described = {
        "be": [noun for noun in LEXICON_NOUNS if adjectives[noun]],
        "compared": [
            noun for noun in LEXICON_NOUNS if any(len(a.degrees) > 1 for a in adjectives[noun]) and not noun.mass
        ],
    }
    found = [(p, [n for n in of_kind("avgps") if split_of(p.lemma, n.lemma) == split]) for p in PLACES]
    return Pool(verbs, adjectives, described, [(place, nouns) for place, nouns in found if nouns])


# ---------------------------------------------------------------------------------------------------------------- noun phrases
class Subject(NamedTuple):
    """`own` indexes POSSESSIVES (-1: none fits), `gender` chooses the pronoun that takes it up (-1: none does)."""

    de: str
    en: str
    person: int
    own: int = -1
    gender: int = -1


ER, SIE, SIE_PLURAL = Subject("er", "he", 2, 2, 0), Subject("sie", "she", 2, 3, 1), Subject("sie", "they", 5, 6, 3)
PRONOUNS = [
    Subject("ich", "I", 0, 0),
    Subject("du", "you", 1, 1),
    ER,
    SIE,
    Subject("wir", "we", 3, 4),
    Subject("ihr", "you", 4, 5),
    SIE_PLURAL,
]
TAKEN_UP = {0: ER, 1: SIE, 3: SIE_PLURAL}
NAMED = [Subject(name, name, 2, 2 + "mf".index(sex), "mf".index(sex)) for name, sex in pairs(NAMES)]
DATIVE_PRONOUNS = [
    pairs(text)
    for text in (
        "dir you; ihm him; ihr her; euch you; ihnen them",
        "mir me; ihm him; ihr her; uns us; ihnen them",
        "mir me; dir you; ihm him; ihr her; uns us; euch you; ihnen them",
    )
]
ACCUSATIVE_PRONOUNS = [
    pairs(text)
    for text in (
        "dich you; ihn him; euch you",
        "mich me; ihn him; uns us",
        "mich me; dich you; ihn him; uns us; euch you",
    )
]
OTHER = (0, 1, 2, 0, 1, 2)  # person -> which of the lists above excludes the subject itself

Choice = tuple[Determiner, int]  # determiner, plural
FOREIGN = [POSSESSIVES[i] for i in (0, 1, 4)]
SUBJECT_CHOICES: list[Choice] = (
    [(DEF, 0)] * 8 + [(DEF, 1)] * 4 + [(INDEF, 0)] * 2 + [(THIS, 0), (THIS, 1), (EVERY, 0), (BARE, 1)]
)
SUBJECT_CHOICES += [(d, 0) for d in FOREIGN] + [
    (d, 1) for d in (*QUANTITIES, POSSESSIVES[0], COUNTS[0], COUNTS[1], COUNTS[4])
]
COUNTED: list[Choice] = [(d, 1) for d in COUNTS]
HEAD_CHOICES: list[Choice] = [(DEF, 0)] * 5 + [(DEF, 1)] * 3 + [(THIS, 0)]
PLACE_CHOICES: list[Choice] = [(DEF, 0)] * 7 + [(THIS, 0), (INDEF, 0), (POSSESSIVES[0], 0), (POSSESSIVES[4], 0)]
NAKED: list[Choice] = [(BARE, 1)]


def object_choices(own: int) -> tuple[list[Choice], list[Choice]]:
    """Determiners for an object that can be counted, and for a mass noun, beside a subject with this `own`."""
    owned = [POSSESSIVES[own]] * 2 if own >= 0 else []
    count = (
        [(DEF, 0)] * 6
        + [(DEF, 1)] * 3
        + [(INDEF, 0)] * 4
        + [(BARE, 1)] * 2
        + [(THIS, 0), (THIS, 1), (POSSESSIVES[0], 0)]
    )
    count += [(d, 0) for d in owned] + [(d, 1) for d in (*owned[:1], *QUANTITIES)] + COUNTED[:8:2]
    return count, [(DEF, 0)] * 3 + [(BARE, 0)] * 3 + [(THIS, 0)] + [(d, 0) for d in owned[:1]]


OBJECT_CHOICES = [object_choices(own) for own in (*range(7), -1)]
NOT_ANY_CHOICES: tuple[list[Choice], list[Choice]] = (
    [(NOT_ANY, 0), (NOT_ANY, 1)],
    [(NOT_ANY._replace(en=("any", "any")), 0)],
)
DEFINITE: list[Choice] = [(DEF, 0)] * 4 + [(DEF, 1)] * 2 + [(THIS, 0), (THIS, 1), (POSSESSIVES[0], 0), (POSSESSIVES[4], 0)]
MARKED: list[Choice] = [(DEF, 0)] * 4 + [(INDEF, 0)] * 2 + [(THIS, 0), (POSSESSIVES[0], 0), (POSSESSIVES[4], 0)]
OBJECT_AS_SUBJECT: list[Choice] = (
    [(DEF, 0)] * 4 + [(DEF, 1)] * 3 + [(THIS, 0), (POSSESSIVES[0], 0), (POSSESSIVES[4], 1)] + COUNTED[:2]
)
MASS_HEAD_CHOICES: list[Choice] = [(DEF, 0), (DEF, 0), (THIS, 0)]
# Objects under a condition: kein negates the object itself, beside nicht only a definite one is German, and one in first place must show its case.
LIMITS = {"kein": NOT_ANY_CHOICES, "nicht": (DEFINITE, MASS_HEAD_CHOICES), "first": (MARKED, MASS_HEAD_CHOICES)}
SEVEN_IN_EIGHT = (True,) * 7 + (False,)
DEGREES = (0,) * 9 + (1, 2)
ONE_IN_FOUR, ONE_IN_TWO, ONE_IN_SIX = (True, False, False, False), (True, False), (True,) + (False,) * 5


def decline(det: Determiner, noun: Noun, case: int, plural: int, adjective: Degree | None = None) -> Pair:
    """A noun phrase in German and English."""
    gender = PLURAL if plural else noun.gender
    de, en = noun.de[plural][case], noun.en[plural]
    if adjective:
        de, en = f"{adjective.stem}{det.endings[case][gender]} {de}", f"{adjective.en} {en}"
    article, english = det.forms[case][gender], det.en[plural]
    if english == "a":
        english = "an" if en[0] in "aeiou" else "a"
    return f"{article} {de}" if article else de, f"{english} {en}" if english else en


def phrase(
    d: Draw, p: Pool, noun: Noun, case: int, choices: list[Choice], odds: tuple[bool, ...] = ONE_IN_FOUR
) -> tuple[str, str, Choice]:
    """A noun phrase with a determiner of `choices` and, now and then, an adjective that this split may put to the noun."""
    det, plural = choice = d.pick(choices)
    degree = None
    if d.pick(odds) and (adjectives := p.adjectives[noun]):
        adjective = d.pick(adjectives)
        d.combine(adjective.lemma, noun.lemma)
        wanted = d.pick(DEGREES)
        if wanted < len(adjective.degrees) and (wanted == 0 or ((wanted == 2) == (det is DEF) and det in (DEF, INDEF))):
            degree = adjective.degrees[wanted]
        else:
            degree = adjective.degrees[0]
    de, en = decline(det, noun, case, plural, degree)
    return de, en, choice


CONTRACTED = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
    ("an", "dem"): "am",
    ("von", "dem"): "vom",
    ("an", "das"): "ans",
}


def with_preposition(preposition: str, de: str, choice: Choice) -> str:
    """Contracts preposition and definite article in the singular (in dem → im)."""
    if choice[0] is DEF and not choice[1]:
        article, _, rest = de.partition(" ")
        if contracted := CONTRACTED.get((preposition, article)):
            return f"{contracted} {rest}"
    return f"{preposition} {de}"


IN_PLACE = [("in", "in")] * 5 + [("vor", "in front of"), ("hinter", "behind"), ("neben", "next to")]
ON_FURNITURE = [("auf", "on")] * 3 + [("unter", "under"), ("neben", "next to"), ("hinter", "behind")]
INTO_PLACE = [("in", ACC, "into")] * 2 + [("zu", DAT, "to")] * 2 + [("aus", DAT, "out of")]


def location(d: Draw, p: Pool, noun: Noun, odds: tuple[bool, ...] = ONE_IN_SIX) -> Pair:
    if noun.letters == "y":
        return f"in {noun.lemma}", f"in {noun.en[0]}"
    preposition, english = d.pick(ON_FURNITURE if noun.letters == "g" else IN_PLACE)
    de, en, choice = phrase(d, p, noun, DAT, PLACE_CHOICES, odds)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def direction(d: Draw, p: Pool, verb: Verb, noun: Noun) -> Pair:
    """Where to; verbs of coming also have where from."""
    if noun.letters == "y":
        if verb.zu.endswith("kommen") and d.pick(ONE_IN_TWO):
            return f"aus {noun.lemma}", f"from {noun.en[0]}"
        return f"nach {noun.lemma}", f"to {noun.en[0]}"
    preposition, case, english = d.pick(INTO_PLACE)
    de, en, choice = phrase(d, p, noun, case, PLACE_CHOICES, ONE_IN_SIX)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def noun_subject(d: Draw, p: Pool, noun: Noun, choices: list[Choice] = SUBJECT_CHOICES) -> Subject:
    de, en, (_, plural) = phrase(d, p, noun, NOM, choices)
    person = 2 if noun.letters[0] == "p" else 0
    if plural:
        return Subject(de, en, 5, 6 if person else -1, PLURAL if person else -1)
    own = {0: 2, 1: 3}.get(noun.gender, -1) if person else -1  # "das Kind … sein": his, her or its, so none
    return Subject(de, en, 2, own, noun.gender if own >= 0 else -1)


WHO_SPEAKS = ("pronoun",) * 4 + ("name",) * 2 + ("noun",) * 6


def subject(d: Draw, p: Pool, choices: list[Choice] = SUBJECT_CHOICES) -> Subject:
    kind = d.pick(WHO_SPEAKS)
    if kind == "pronoun":
        return d.pick(PRONOUNS)
    return d.pick(NAMED) if kind == "name" else noun_subject(d, p, d.pick(PEOPLE), choices)


# --------------------------------------------------------------------------------------------------------------------- clauses
class Clause(NamedTuple):
    """One clause before its word order is chosen. German order: pronoun, time, adverb, objects, nicht, tail (place, direction, predicate).

    `agent` is the English subject, which is not the German one with gefallen. `neg`: "" | "nicht" | "kein" (negates English only).
    """

    subject: Subject
    agent: Subject
    verb: Verb
    mode: str
    pronoun: str = ""
    objects: str = ""
    tail: str = ""
    en: str = ""
    time: str = ""
    time_en: str = ""
    adverb: str = ""
    adverb_en: str = ""
    neg: str = ""


def german(c: Clause, order: str = "statement", front: str = "") -> str:
    """order: statement (verb second, subject or `front` first), question (verb first), final (verb last, after the conjunction `front`)."""
    finite, right, final = c.verb.de[c.mode]
    person, no = c.subject.person, c.neg if c.neg == "nicht" else ""
    middle = (c.pronoun, c.time, c.adverb, c.objects, no, c.tail)
    if order == "final":
        words: tuple[str, ...] = (front, c.subject.de, *middle, final[person])
    elif order == "question" or front:
        words = (front, finite[person], c.subject.de, *middle, right)
    else:
        words = (c.subject.de, finite[person], *middle, right)
    return " ".join([word for word in words if word])


def english(c: Clause, order: str = "statement") -> str:
    finite, rest, lexical, auxiliary, after, negated = c.verb.en[c.mode][c.agent.person]
    if order == "question":
        words: tuple[str, ...] = (auxiliary, c.agent.en, after, c.en, c.time_en)
    elif c.neg:
        words = (c.agent.en, negated, after, c.en, c.time_en)
    elif lexical:
        words = (c.agent.en, c.adverb_en, finite, rest, c.en, c.time_en)
    else:
        words = (c.agent.en, finite, c.adverb_en, rest, c.en, c.time_en)
    return " ".join([word for word in words if word])


def times() -> dict[str, list[tuple[Pair, ...]]]:
    """Groups of time and cause phrases by tense; a group is drawn first, so that long groups do not dominate."""
    numbers, (events, weather) = pairs(NUMBERS), (of_kind("e"), of_kind("w"))
    days = tuple((f"am {de}", f"on {en}") for de, en in pairs(DAYS))
    hours = tuple((f"um {de} Uhr", f"at {en} o'clock") for de, en in numbers)
    parts = (("am Morgen", "in the morning"), ("am Nachmittag", "in the afternoon"), ("am Abend", "in the evening"))
    spans = (("Tagen", "days"), ("Wochen", "weeks"), ("Jahren", "years"))

    def around(preposition: str, case: int, before: str, nouns: list[Noun]) -> tuple[Pair, ...]:
        phrases = (decline(DEF, noun, case, 0) for noun in nouns)
        return tuple((f"{preposition} {de}", f"{before} {en}") for de, en in phrases)

    event = (
        around("nach", DAT, "after", events)
        + around("vor", DAT, "before", events)
        + around("während", GEN, "during", events)
    )
    cause = around("wegen", GEN, "because of", weather) + around("trotz", GEN, "despite", weather)
    ago = tuple((f"vor {n} {de}", f"{m} {en} ago") for n, m in numbers for de, en in spans)
    ahead = tuple((f"in {n} {de}", f"in {m} {en}") for n, m in numbers for de, en in spans)
    since = tuple((f"seit {n} {de}", f"for {m} {en}") for n, m in numbers for de, en in spans)
    always = [days, hours, parts, parts, event, cause, (("heute", "today"),)]
    return {
        "present": [*always, (("jeden Tag", "every day"), ("jede Woche", "every week"))],
        "past": [
            *always,
            (("gestern", "yesterday"),),
            (("letzte Woche", "last week"), ("letztes Jahr", "last year")),
            ago,
        ],
        "future": [*always, (("morgen", "tomorrow"), ("bald", "soon")), (("nächste Woche", "next week"),), ahead],
        "always": always,
        "since": [since],
    }


TIMES = times()
TENSES = {"present": "present", "gern": "present", "pluperfect": "always", "progressive": "always", "since": "since"}
TENSES |= dict.fromkeys(MODALS, "future") | dict.fromkeys(PAST_MODES, "past")
Parts = tuple[Subject, Verb, str, str, str, str]  # subject, verb, pronoun, objects, tail, English
Frame = Callable[["Draw", Pool, Subject, str], Parts]
Frames = tuple[str, ...]
ADVERBS, OPENERS = pairs(FREQUENCY), pairs(FRONTED)

NOW, PAST, PLUPERFECT, FUTURE = ("present",), ("past",), ("pluperfect",), ("future",)
MODAL, MODAL_PAST = ("can", "must", "wants", "may", "should", "would like"), ("could", "had to", "wanted", "might")
TOLD = ("present", "present", "past", "past", "past", "must", "can", "wants")
ACTS = ("object",) * 8 + ("person",) * 3 + ("dative", "dative", "auf", "an", "mit", "von") + ("give",) * 3
ACTS += ("explain", "place", "place", "place", "go", "go", "put")
SPARE = (
    "weather",
    "state",
    "state",
    "pronoun",
    "pronoun",
    "rise",
    "rise",
)  # without a combination: only as a second clause


def choose(d: Draw, options: Options) -> tuple[Verb, Noun]:
    """A verb and one of this split's nouns for it."""
    verb, nouns = d.pick(options)
    noun = d.pick(nouns)
    d.combine(verb.lemma, noun.lemma)
    return verb, noun


def owned(d: Draw, noun: Noun, de: str, en: str, choice: Choice) -> Pair:
    """Gives one in eight definite noun phrases an owner: das Buch des Mannes, the man's book."""
    if choice[0] is not DEF or noun.letters in "py" or d.pick(SEVEN_IN_EIGHT):
        return de, en
    plural = d.pick((0, 0, 1))
    de_owner, en_owner = decline(DEF, d.pick(PEOPLE), GEN, plural)
    mark = "'" if plural and en_owner.endswith("s") else "'s"
    return f"{de} {de_owner}", f"{en_owner}{mark} {en[4:]}"  # without its "the "


def noun_object(d: Draw, p: Pool, s: Subject, noun: Noun, case: int, limit: str = "") -> Pair:
    counted, mass = OBJECT_CHOICES[s.own]
    if limit:
        counted, mass = LIMITS[limit]
    de, en, choice = phrase(d, p, noun, case, mass if noun.mass else counted)
    return owned(d, noun, de, en, choice)


def with_object(frame: str, case: int = ACC) -> Frame:
    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[frame])
        de, en = noun_object(d, p, s, noun, case, limit)
        return s, verb, "", de, "", en

    return build


def with_prepositional_object(preposition: str, case: int) -> Frame:
    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[preposition])
        if noun.letters == "y":
            return s, verb, "", "", f"{preposition} {noun.lemma}", noun.en[0]
        counted, mass = OBJECT_CHOICES[s.own]
        de, en, choice = phrase(d, p, noun, case, mass if noun.mass else counted)
        return s, verb, "", "", with_preposition(preposition, de, choice), en

    return build


def receiver(d: Draw, p: Pool, s: Subject) -> tuple[str, str, str]:
    """Dative of a person: (pronoun, noun phrase, English), one of the first two empty."""
    if d.pick(ONE_IN_TWO):
        de, en = d.pick(DATIVE_PRONOUNS[OTHER[s.person]])
        return de, "", en
    return "", *noun_object(d, p, s, d.pick(PEOPLE), DAT)


def give(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["give"])
    pronoun, dative, who = receiver(d, p, s)
    de, en = noun_object(d, p, s, noun, ACC, limit)
    return s, verb, pronoun, f"{dative} {de}".strip(), "", f"{who} {en}"


def explain(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["explain"])
    pronoun, dative, who = receiver(d, p, s)
    de, en = noun_object(d, p, s, noun, ACC, limit)
    return s, verb, pronoun, f"{dative} {de}".strip(), "", f"{en} to {who}"


def stay(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["place"])
    return s, verb, "", "", *location(d, p, noun)


def go(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["go"])
    return s, verb, "", "", *direction(d, p, verb, noun)


def put(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["put"])
    de, en = noun_object(d, p, s, noun, ACC, limit)
    preposition, where = d.pick(ON_FURNITURE)
    goal_de, goal_en, _ = phrase(d, p, d.pick(FURNITURE), ACC, PLACE_CHOICES, ONE_IN_SIX)
    return s, verb, "", de, f"{preposition} {goal_de}", f"{en} {where} {goal_en}"


def weather(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return IT, d.pick(LEXICON_VERBS["weather"]), "", "", "", ""


def state(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    degree = d.pick(PERSONAL).degrees[0]
    return s, SEIN, "", "", degree.predicate, degree.en


def toward_pronoun(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    frame, lists = d.pick((("person", ACCUSATIVE_PRONOUNS), ("dative", DATIVE_PRONOUNS)))
    de, en = d.pick(lists[OTHER[s.person]])
    return s, d.pick(p.verbs[frame])[0], de, "", "", en


def rise(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return s, d.pick(LEXICON_VERBS["rise"]), "", "", "", ""


IT = Subject("es", "it", 2)
SIMPLE = [*PRONOUNS, *NAMED]
FURNITURE, PERSONAL = of_kind("g"), [a for a in LEXICON_ADJECTIVES if "p" in a.letters]
FRAMES: dict[str, Frame] = {name: with_object(name) for name in ("object", "person", "active", "masculine", "known")}
FRAMES |= {"dative": with_object("dative", DAT), "auf": with_prepositional_object("auf", ACC)}
FRAMES |= {"an": with_prepositional_object("an", ACC), "mit": with_prepositional_object("mit", DAT)}
FRAMES |= {
    "von": with_prepositional_object("von", DAT),
    "give": give,
    "explain": explain,
    "place": stay,
    "go": go,
    "put": put,
}
FRAMES |= {"weather": weather, "state": state, "pronoun": toward_pronoun, "rise": rise}


def clause(
    d: Draw, p: Pool, frames: Frames, modes: Frames, s: Subject | None = None, short: bool = False, neg: str = "", limit: str = ""
) -> Clause:
    """A clause of one of the frames; a short one has fewer time phrases and no extra place."""
    s, verb, pronoun, objects, tail, en = FRAMES[d.pick(frames)](d, p, s or subject(d, p, DEFINITE if neg else SUBJECT_CHOICES), limit or neg)
    mode = d.pick(modes)
    if "+" in verb.letters and mode in MODALS:
        mode = "past" if mode in PAST_MODES else "present"
    time = adverb = ("", "")
    if mode in ("progressive", "gern"):
        adverb = ("gerade", "") if mode == "progressive" else ("gern", "")
    elif mode == "since" or d.pick(ONE_IN_SIX if short else ONE_IN_TWO):
        time = d.pick(d.pick(TIMES[TENSES[mode]]))
    elif mode in ("present", "past") and not neg and d.pick(ONE_IN_SIX):
        adverb = d.pick(ADVERBS)
    if not tail and not short and d.pick(ONE_IN_SIX):
        tail, where = location(d, p, d.pick(PLACES))
        en = f"{en} {where}"
    return Clause(s, s, verb, mode, pronoun, objects, tail, en, *time, *adverb, neg)


def passive(d: Draw, p: Pool, modes: Frames) -> Clause:
    verb, noun = choose(d, p.verbs["passive"])
    s = noun_subject(d, p, noun, MASS_HEAD_CHOICES if noun.mass else OBJECT_AS_SUBJECT)
    by = ("", "")
    if d.pick(ONE_IN_TWO):
        agent = d.pick(NAMED) if d.pick(ONE_IN_FOUR) else None
        de, en, choice = (agent.de, agent.en, (BARE, 0)) if agent else phrase(d, p, d.pick(PEOPLE), DAT, HEAD_CHOICES)
        by = with_preposition("von", de, choice), f"by {en}"
    assert verb.passive is not None
    mode = d.pick(modes)
    time = d.pick(d.pick(TIMES[TENSES[mode]])) if d.pick(ONE_IN_FOUR) else ("", "")
    return Clause(s, s, verb.passive, mode, "", "", *by, *time)


def quality(d: Draw, p: Pool, modes: Frames, kind: str = "is", neg: str = "") -> Clause:
    """A noun and an adjective: is, compared (als) or equal (so … wie)."""
    noun = d.pick(p.described["be" if kind == "is" else "compared"])
    adjective = d.pick([a for a in p.adjectives[noun] if kind == "is" or len(a.degrees) > 1])
    d.combine(adjective.lemma, noun.lemma)
    s = noun_subject(d, p, noun, MASS_HEAD_CHOICES if noun.mass else HEAD_CHOICES)
    degree = adjective.degrees[kind == "compared"]
    if kind == "is":
        return Clause(s, s, SEIN, d.pick(modes), tail=degree.predicate, en=degree.en, neg=neg)
    other = d.pick([n for n in LIKE[noun.letters[0]] if n is not noun])
    de, en = decline(*d.pick(((DEF, other, NOM, 0), (DEF, other, NOM, 1), (POSSESSIVES[0], other, NOM, 0))))
    if kind == "compared":
        return Clause(
            s, s, SEIN, d.pick(modes), tail=f"{degree.predicate} als {de}", en=f"{degree.en} than {en}", neg=neg
        )
    return Clause(
        s, s, SEIN, d.pick(modes), tail=f"so {degree.predicate} wie {de}", en=f"as {degree.en} as {en}", neg=neg
    )


def pleasing(d: Draw, p: Pool, modes: Frames, neg: str = "") -> Clause:
    """The German subject is the English object: das Buch gefällt dem Mann, the man likes the book."""
    verb, noun = choose(d, p.verbs["gefallen"])
    s = noun_subject(d, p, noun, HEAD_CHOICES)
    mode = d.pick(modes)
    if d.pick(ONE_IN_TWO):
        de, agent = d.pick(PLEASED)
        return Clause(s, agent, verb, mode, pronoun=de, en=s.en, neg=neg)
    de, en, (_, plural) = phrase(d, p, d.pick(PEOPLE), DAT, HEAD_CHOICES)
    return Clause(s, Subject(de, en, 5 if plural else 2), verb, mode, objects=de, en=s.en, neg=neg)


def belonging(d: Draw, p: Pool, modes: Frames, neg: str = "") -> Clause:
    verb, noun = choose(d, p.verbs["gehören"])
    s = noun_subject(d, p, noun, HEAD_CHOICES)
    pronoun, de, en = receiver(d, p, s)
    return Clause(s, s, verb, d.pick(modes), pronoun=pronoun, objects=de, en=en, neg=neg)


LIKE = {letter: [noun for noun in of_kind(letter) if not noun.mass] for letter in "patnfcomvsgbe"}
PLEASED = list(zip(("mir", "dir", "ihm", "ihr", "uns", "euch", "ihnen"), PRONOUNS, strict=True))


# -------------------------------------------------------------------------------------------------------------------- patterns
Sentence = tuple[str, str, str]  # German, English, closing mark
Build = Callable[["Draw", Pool], Sentence]


def statement(d: Draw, p: Pool, frames: Frames, modes: Frames, neg: str = "") -> Sentence:
    c = clause(d, p, frames, modes, neg=neg)
    return german(c), english(c), "."


def plain(d: Draw, p: Pool, make: Callable[..., Clause], **options: object) -> Sentence:
    c = make(d, p, **options)
    return german(c), english(c), "."


def time_first(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    """A time phrase takes the first place, so the German subject follows the verb."""
    c = clause(d, p, frames, modes)
    time, time_en = (c.time, c.time_en) if c.time else d.pick(d.pick(TIMES[TENSES[c.mode]]))
    c = c._replace(time="", time_en="")
    return german(c, front=time), f"{time_en} {english(c)}", "."


def opener_first(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    c, (de, en) = clause(d, p, frames, modes), d.pick(OPENERS)
    return german(c, front=de), f"{en} {english(c)}", "."


def object_first(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    """The German object takes the first place; its case tells, English keeps its order."""
    c = clause(d, p, frames, modes, limit="first")
    return german(c._replace(objects=""), front=c.objects), english(c), "."


def dative_first(d: Draw, p: Pool) -> Sentence:
    """Mir gefällt das Buch."""
    c = pleasing(d, p, ("present", "past"))
    return german(c._replace(pronoun="", objects=""), front=c.pronoun or c.objects), english(c), "."


def tail_first(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    c = clause(d, p, frames, modes)
    return german(c._replace(tail=""), front=c.tail), english(c), "."


def question(d: Draw, p: Pool, frames: Frames, modes: Frames, ask: Pair = ("", "")) -> Sentence:
    c = clause(d, p, frames, modes, short=True)
    return german(c, "question", ask[0]), f"{ask[1]} {english(c, 'question')}".strip(), "?"


def where_question(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    return question(d, p, frames, modes, d.pick(ASKED))


def who_question(d: Draw, p: Pool, frames: Frames, modes: Frames) -> Sentence:
    c = clause(d, p, frames, modes, Subject("wer", "who", 2))
    return german(c), english(c), "?"


def which_question(d: Draw, p: Pool, choice: Choice, modes: Frames) -> Sentence:
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass:  # every split has nouns that are counted
        verb, noun = choose(d, p.verbs["object"])
    de, en = decline(choice[0], noun, ACC, choice[1])
    s = subject(d, p)
    c = Clause(s, s, verb, d.pick(modes))
    return german(c, "question", de), f"{en} {english(c, 'question')}", "?"


def quality_question(d: Draw, p: Pool) -> Sentence:
    c = quality(d, p, ("present", "past"))
    finite, _, _, auxiliary, _, _ = c.verb.en[c.mode][c.agent.person]
    return german(c, "question"), f"{auxiliary} {c.agent.en} {c.en}", "?"


def exists(d: Draw, p: Pool, form: str) -> Sentence:
    """Im Garten gibt es einen Hund: there is a dog in the garden."""
    place, things = d.pick(p.found)
    noun = d.pick(things)
    d.combine(place.lemma, noun.lemma)
    where, where_en = location(d, p, place)
    choices = [(NO, 0), (NO, 1)] if form == "no" else [(INDEF, 0), (INDEF, 0), *COUNTED[:6], (QUANTITIES[0], 1)]
    de, en, (_, plural) = phrase(d, p, noun, ACC, choices)
    past = d.pick(ONE_IN_FOUR)
    gives, be = "gab" if past else "gibt", ("was", "were")[plural] if past else ("is", "are")[plural]
    if form == "question":
        return f"{gives} es {where} {de}", f"{be} there {en} {where_en}", "?"
    return f"{where} {gives} es {de}", f"there {be} {en} {where_en}", "."


def command(d: Draw, p: Pool, frames: Frames, neg: str = "") -> Sentence:
    c = clause(d, p, frames, NOW, PRONOUNS[5], short=True, neg=neg)
    c = c._replace(subject=c.subject._replace(de="" if neg else "bitte"), time="", time_en="", adverb="", adverb_en="")
    return german(c, "question"), f"{'do not' if neg else 'please'} {c.verb.base} {c.en}", "!"


# ----------------------------------------------------------------------------------------------------------- two-clause patterns
ACTS_AND_SPARE = ACTS + SPARE + SPARE + SPARE
ASKED = (("wo", "where"), ("wann", "when"), ("warum", "why"), ("wie oft", "how often"))


def second_subject(d: Draw, p: Pool, first: Subject) -> Subject:
    """Half the time the pronoun for the first subject."""
    if first.gender >= 0 and d.pick(ONE_IN_TWO):
        return TAKEN_UP[first.gender]
    return subject(d, p)


def companion(d: Draw, p: Pool, modes: Frames, first: Subject, frames: Frames = ACTS_AND_SPARE) -> Clause:
    """A short clause beside another one; without a combination its subject is a pronoun or a name."""
    frame = d.pick(frames)
    s = second_subject(d, p, first)
    if frame in SPARE and s not in SIMPLE:
        s = d.pick(SIMPLE)
    if frame == "state":
        modes = tuple(mode for mode in modes if mode in ("present", "past")) or NOW
    return clause(d, p, (frame,), modes, s, short=True)._replace(time="", time_en="")


def content(d: Draw, p: Pool, first: Subject) -> Clause:
    """What is believed, said or asked: an action, a quality, a passive, a pleasure, a possession."""
    kind = d.pick(CONTENTS)
    if kind == "act":
        return clause(d, p, ACTS, TOLD, second_subject(d, p, first), short=True)
    if kind == "passive":
        return passive(d, p, ("present", "past", "must"))
    if kind in ("is", "compared"):
        return quality(d, p, ("present", "past"), kind)
    return (pleasing if kind == "pleasing" else belonging)(d, p, ("present", "past"))


CONTENTS = ("act",) * 8 + ("passive", "is", "compared", "pleasing", "belonging")


def believing(d: Draw, p: Pool, asked: bool = False) -> Sentence:
    """Ich glaube, dass …"""
    s, mode = subject(d, p), d.pick(("present", "present", "past"))
    main = Clause(s, s, d.pick(LEXICON_VERBS["dass"]), mode)
    c = content(d, p, s)
    order = "question" if asked else "statement"
    return (
        f"{german(main, order)}, {german(c, 'final', 'dass')}",
        f"{english(main, order)} that {english(c)}",
        "?" if asked else ".",
    )


def impersonal(d: Draw, p: Pool) -> Sentence:
    (de, en), c = d.pick(JUDGED), content(d, p, IT)
    return f"es ist {de}, {german(c, 'final', 'dass')}", f"it is {en} that {english(c)}", "."


def wondering(d: Draw, p: Pool, asks: tuple[Pair, ...]) -> Sentence:
    """Ich weiß nicht, ob/wo/wann …"""
    s, (de, en), knows = subject(d, p), d.pick(asks), d.pick(ONE_IN_TWO)
    main = Clause(s, s, KNOW if knows else ASK, d.pick(("present", "past")), neg="nicht" if knows else "")
    c = content(d, p, s) if de == "ob" else clause(d, p, ACTS, TOLD, second_subject(d, p, s), short=True)
    return f"{german(main)}, {german(c, 'final', de)}", f"{english(main)} {en} {english(c)}", "."


KNOW = next(verb for verb in LEXICON_VERBS["dass"] if verb.lemma == "wissen")
ASK = LEXICON_VERBS["ob"][0]
JUDGED = pairs("gut good; wichtig important; schade a_pity; klar clear; möglich possible; seltsam strange")


def clause_last(d: Draw, p: Pool, conjunction: Pair, main: Frames, sub: Frames) -> Sentence:
    """Er schläft, weil er müde ist."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return f"{german(a)}, {german(b, 'final', conjunction[0])}", f"{english(a)} {conjunction[1]} {english(b)}", "."


def clause_first(d: Draw, p: Pool, conjunction: Pair, main: Frames, sub: Frames) -> Sentence:
    """Weil er müde ist, schläft er."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return (
        f"{german(b, 'final', conjunction[0])}, {german(a, 'question')}",
        f"{conjunction[1]} {english(b)}, {english(a)}",
        ".",
    )


def joined(d: Draw, p: Pool, conjunction: Pair, modes: Frames) -> Sentence:
    """Two main clauses: er ist müde, aber er arbeitet."""
    a = clause(d, p, ACTS, modes, short=True)
    b = companion(d, p, modes, a.subject)
    return f"{german(a)}{conjunction[0]} {german(b)}", f"{english(a)}{conjunction[1]} {english(b)}", "."


def infinitive(d: Draw, p: Pool, kind: str) -> Sentence:
    """Er versucht, das Buch zu lesen; er geht in den Park, um zu …; … ohne zu …"""
    s = subject(d, p)
    if kind == "zu":
        main = Clause(s, s, d.pick(LEXICON_VERBS["zu"]), d.pick(("present", "past")))
    else:
        main = clause(d, p, ("go", "place", "rise", "object"), ("present", "past", "must", "wants"), s, short=True)
    _, verb, pronoun, objects, tail, en = FRAMES[d.pick(ACTS)](d, p, s, "")
    opening, to = {
        "zu": ("", f"to {verb.base}"),
        "um": ("um", f"to {verb.base}"),
        "ohne": ("ohne", f"without {verb.ing}"),
    }[kind]
    words = [word for word in (opening, pronoun, objects, tail, verb.zu) if word]
    return f"{german(main)}, {' '.join(words)}", f"{english(main)} {to} {en}", "."


def head_of(d: Draw, p: Pool, noun: Noun) -> tuple[Subject, int]:
    """A subject that a relative clause will describe, and the gender of its relative pronoun."""
    head = noun_subject(d, p, noun, HEAD_CHOICES)
    return head, PLURAL if head.person == 5 else noun.gender


def relative_subject(d: Draw, p: Pool) -> Sentence:
    """Der Mann, der das Buch gelesen hat, wohnt in Berlin."""
    head, gender = head_of(d, p, d.pick(PEOPLE))
    who = head._replace(de=RELATIVE[NOM][gender], en="who")
    inner = clause(d, p, ("object", "object", "place", "go", "explain"), TOLD, who, short=True)
    head = head._replace(de=f"{head.de}, {german(inner, 'final')},", en=f"{head.en} {english(inner)}")
    main = clause(d, p, ("place", "go", "rise", "object", "dative", "pronoun"), ("present", "past"), head, short=True)
    return german(main), english(main), "."


def relative_object(d: Draw, p: Pool) -> Sentence:
    """Das Buch, das der Mann gelesen hat, ist interessant."""
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass or not p.adjectives[noun]:
        verb, noun = choose(d, p.verbs["object"])
    adjective = d.pick(p.adjectives[noun])
    d.combine(adjective.lemma, noun.lemma)
    head, gender = head_of(d, p, noun)
    s = subject(d, p)
    inner = Clause(s, s, verb, d.pick(TOLD))
    de = f"{head.de}, {german(inner, 'final', RELATIVE[ACC][gender])},"
    head = head._replace(de=de, en=f"{head.en} that {english(inner)}")
    main = Clause(head, head, SEIN, d.pick(("present", "past")), tail=adjective.lemma, en=adjective.degrees[0].en)
    return german(main), english(main), "."


def relative_dative(d: Draw, p: Pool) -> Sentence:
    """Der Mann, dem ich geholfen habe, wohnt in Berlin."""
    verb, noun = choose(d, p.verbs["dative"])
    head, gender = head_of(d, p, noun)
    s = d.pick(SIMPLE)
    inner = Clause(s, s, verb, d.pick(("present", "past")))
    de = f"{head.de}, {german(inner, 'final', RELATIVE[DAT][gender])},"
    head = head._replace(de=de, en=f"{head.en} whom {english(inner)}")
    main = clause(d, p, ("place", "go", "rise", "object"), ("present", "past"), head, short=True)
    return german(main), english(main), "."


def relative_last(d: Draw, p: Pool) -> Sentence:
    """Ich kenne den Mann, der das Buch gelesen hat."""
    s = subject(d, p)
    verb, noun = choose(d, p.verbs["known"])
    de, en, (_, plural) = phrase(d, p, noun, ACC, HEAD_CHOICES)
    own = PLURAL_OWN if plural else (2, 3, -1)[noun.gender]
    who = Subject(RELATIVE[NOM][PLURAL if plural else noun.gender], "who", 5 if plural else 2, own)
    inner = clause(d, p, ("object", "object", "place", "go", "explain"), TOLD, who, short=True)
    main = Clause(s, s, verb, "present", objects=f"{de}, {german(inner, 'final')}", en=f"{en} {english(inner)}")
    return german(main), english(main), "."


PLURAL_OWN = 6
EVERYDAY: Frames = ("present", "past", "past", "must", "can", "wants")


class Pattern(NamedTuple):
    """A sentence pattern: how often it is drawn among those with as many clauses, and what builds a sentence of it."""

    name: str
    weight: int
    build: Build


def pattern(name: str, weight: int, build: Callable[..., Sentence], *args: object, **options: object) -> Pattern:
    return Pattern(name, weight, functools.partial(build, **options) if not args else bind(build, args, options))


def bind(build: Callable[..., Sentence], args: tuple[object, ...], options: dict[str, object]) -> Build:
    return lambda d, p: build(d, p, *args, **options)


ONE_CLAUSE = (
    pattern("statement, present", 3, statement, ACTS, NOW),
    pattern("statement, perfect", 4, statement, ACTS, PAST),
    pattern("statement, future", 3, statement, ACTS, FUTURE),
    pattern("statement, modal", 4, statement, ACTS, MODAL),
    pattern("statement, modal past", 3, statement, ACTS, MODAL_PAST),
    pattern("statement, happening now", 2, statement, ("active",), ("progressive",)),
    pattern("statement, since when", 2, statement, ("place",), ("since",)),
    pattern("statement, liking to", 2, statement, ("active", "place"), ("gern",)),
    pattern("negation, present", 2, statement, ACTS, NOW, neg="nicht"),
    pattern("negation, perfect", 2, statement, ACTS, PAST, neg="nicht"),
    pattern("negation, modal", 2, statement, ACTS, MODAL, neg="nicht"),
    pattern("negation, no object", 3, statement, ("object", "give"), EVERYDAY, neg="kein"),
    pattern("time first, present", 2, time_first, ACTS, NOW),
    pattern("time first, perfect", 3, time_first, ACTS, PAST),
    pattern("time first, modal", 3, time_first, ACTS, (*MODAL, *FUTURE, *MODAL_PAST)),
    pattern("opening adverb", 3, opener_first, ACTS, EVERYDAY),
    pattern("object first, present", 2, object_first, ("masculine",), NOW),
    pattern("object first, perfect", 2, object_first, ("masculine",), PAST),
    pattern("object first, modal", 1, object_first, ("masculine",), MODAL),
    pattern("dative first", 2, object_first, ("dative",), ("present", "past")),
    pattern("place first", 2, tail_first, ("place",), EVERYDAY),
    pattern("question, present", 3, question, ACTS, NOW),
    pattern("question, perfect", 3, question, ACTS, PAST),
    pattern("question, modal", 2, question, ACTS, (*MODAL, *FUTURE)),
    pattern("question, where when why", 3, where_question, ("object", "person", "dative"), EVERYDAY),
    pattern("question, who", 2, who_question, ACTS, EVERYDAY),
    pattern("question, which", 2, which_question, (WHICH, 0), EVERYDAY),
    pattern("question, how many", 2, which_question, (HOW_MANY, 1), EVERYDAY),
    pattern("question, quality", 1, quality_question),
    pattern("passive, present", 2, plain, passive, modes=NOW),
    pattern("passive, past", 2, plain, passive, modes=PAST),
    pattern("passive, modal", 2, plain, passive, modes=("must", "can", "should", "future", "had to")),
    pattern("quality", 2, plain, quality, modes=("present", "past")),
    pattern("quality, negated", 1, plain, quality, modes=("present", "past"), neg="nicht"),
    pattern("comparison, more", 3, plain, quality, modes=("present", "past"), kind="compared"),
    pattern("comparison, as much", 2, plain, quality, modes=("present", "past"), kind="equal"),
    pattern("pleasing", 1, plain, pleasing, modes=("present", "past")),
    pattern("pleasing, negated", 1, plain, pleasing, modes=("present", "past"), neg="nicht"),
    pattern("pleasing, dative first", 1, dative_first),
    pattern("belonging", 1, plain, belonging, modes=("present", "past")),
    pattern("there is", 2, exists, ""),
    pattern("there is no", 1, exists, "no"),
    pattern("is there", 1, exists, "question"),
    pattern("command", 2, command, ("active", "put", "give")),
    pattern("command, negated", 1, command, ("active",), neg="nicht"),
)
TWO_CLAUSES = (
    pattern("that", 4, believing),
    pattern("that, asked", 1, believing, asked=True),
    pattern("that, impersonal", 2, impersonal),
    pattern("whether", 3, wondering, (("ob", "whether"),)),
    pattern("indirect question", 3, wondering, ASKED),
    pattern("because last", 3, clause_last, ("weil", "because"), EVERYDAY, EVERYDAY),
    pattern("because first", 2, clause_first, ("weil", "because"), EVERYDAY, EVERYDAY),
    pattern("although last", 1, clause_last, ("obwohl", "although"), EVERYDAY, EVERYDAY),
    pattern("although first", 2, clause_first, ("obwohl", "although"), EVERYDAY, EVERYDAY),
    pattern("if last", 1, clause_last, ("wenn", "if"), ("future", "can", "must", "should"), NOW),
    pattern("if first", 3, clause_first, ("wenn", "if"), ("future", "can", "must", "present"), NOW),
    pattern("before last", 2, clause_last, ("bevor", "before"), PAST, PAST),
    pattern("after first", 2, clause_first, ("nachdem", "after"), PAST, PLUPERFECT),
    pattern("while last", 1, clause_last, ("während", "while"), NOW, NOW),
    pattern("so that", 1, clause_last, ("damit", "so that"), ("present", "must"), ("can",)),
    pattern("joined by but", 2, joined, (", aber", ", but"), EVERYDAY),
    pattern("joined by and", 2, joined, (" und", ", and"), EVERYDAY),
    pattern("joined by for", 2, joined, (", denn", " because"), EVERYDAY),
    pattern("infinitive", 3, infinitive, "zu"),
    pattern("infinitive of purpose", 2, infinitive, "um"),
    pattern("infinitive without", 1, infinitive, "ohne"),
    pattern("relative subject", 3, relative_subject),
    pattern("relative object", 3, relative_object),
    pattern("relative dative", 1, relative_dative),
    pattern("relative last", 2, relative_last),
)
PATTERNS = ONE_CLAUSE + TWO_CLAUSES
DRAWN = tuple([row for row in rows for _ in range(row.weight)] for rows in (ONE_CLAUSE, TWO_CLAUSES))


def spell(d: Draw, p: Pool, chosen: Pattern) -> Pair:
    """A sentence of the pattern with capital and closing mark."""
    de, en, mark = chosen.build(d, p)
    return f"{de[0].upper()}{de[1:]}{mark}", f"{en[0].upper()}{en[1:]}{mark}"


def generate(d: Draw, split: str) -> tuple[Pair, Pattern]:
    """One row of a split: the sentence and the pattern it was built from; `d.combinations` then holds its combinations."""
    chosen = d.pick(DRAWN[d.below(100) < TWO_CLAUSE_SHARE])
    return spell(d, pool(split), chosen), chosen
