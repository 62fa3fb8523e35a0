"""The German-English corpus: a lexicon, its inflection, and sentence patterns, all written for this project.

Every row is German with one English reference that follows from the German alone. What could be read in two ways is
left out, or fixed once for the whole corpus: there is no polite "Sie" and no "sie" as an object; a possessive of the
third person belongs to the subject of its clause; the perfect is the simple past, the present the simple present.
Many to one is wanted ("du", "ihr" → "you"; "aufmachen", "öffnen" → "open").

A combination is a pair of content lemmas that stand in one construction: verb and complement, adjective and noun,
place and what is found there. `split_of` deals the combinations to the splits once for all seeds, and a row is made of
combinations of its own split only. So no combination of the test split ever occurs in training, however many rows are
drawn.

Conventions: case 0-3 = nominative, accusative, dative, genitive; gender 0-3 = masculine, feminine, neuter, plural;
person 0-5 = ich, du, er/sie/es, wir, ihr, sie. Nouns carry letters for what they are, verbs those of the nouns they go
with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.keyed import key

if TYPE_CHECKING:
    from trainer.data.embedded import Draw

TWO_CLAUSE_SHARE = 30  # percent of rows with two clauses: the one constant that makes the corpus harder or easier
HELD_OUT = {0: "test", 1: "test", 2: "validation", 3: "validation"}  # twentieths of the combinations; the others train
NOM, ACC, DAT, GEN = range(4)
PLURAL = 3  # as a gender

# ------------------------------------------------------------------------------------------------------------- lexicon
# lemma, gender (w = masculine, -n in all cases but one), plural (- as the singular, 0 none), English singular/plural,
# letters. The first letter decides the adjectives: p person, a animal, t text, n printed matter, f food, d drink,
# c clothes, o can be opened, m machine, v vehicle, s small object, g furniture, b place, e event, w weather, y town.
# Further letters: k can be cooked, r can be tidied.
NOUNS = """
Mann m Männer man/men p; Frau f Frauen woman/women p; Kind n Kinder child/children p; Junge w Jungen boy p
Mädchen n - girl p; Lehrerin f Lehrerinnen teacher p; Arzt m Ärzte doctor p; Nachbar w Nachbarn neighbor p
Bruder m Brüder brother p; Schwester f Schwestern sister p; Vater m Väter father p; Mutter f Mütter mother p
Sohn m Söhne son p; Tochter f Töchter daughter p; Onkel m - uncle p; Tante f Tanten aunt p
Student w Studenten student p; Schüler m - pupil p; Chef m Chefs boss p; Kollege w Kollegen colleague p
Gast m Gäste guest p; Polizist w Polizisten policeman/policemen p; Kellner m - waiter p; Koch m Köche cook p
Bauer w Bauern farmer p; Künstler m - artist p; Fahrer m - driver p; Richterin f Richterinnen judge p
Sängerin f Sängerinnen singer p; Königin f Königinnen queen p; Freund m Freunde friend p; Kundin f Kundinnen customer p
Hund m Hunde dog a; Katze f Katzen cat a; Pferd n Pferde horse a; Vogel m Vögel bird a; Kuh f Kühe cow a
Maus f Mäuse mouse/mice a; Schaf n Schafe sheep/sheep a; Huhn n Hühner chicken a; Ente f Enten duck a
Buch n Bücher book t; Brief m Briefe letter t; Gedicht n Gedichte poem t; Roman m Romane novel t
Nachricht f Nachrichten message t; Bericht m Berichte report t; Artikel m - article t; Geschichte f Geschichten story t
Zeitung f Zeitungen newspaper n; Rechnung f Rechnungen bill n; Vertrag m Verträge contract n
Zeitschrift f Zeitschriften magazine n; Apfel m Äpfel apple f; Kuchen m - cake f; Suppe f Suppen soup fk
Ei n Eier egg fk; Kartoffel f Kartoffeln potato fk; Tomate f Tomaten tomato f; Orange f Orangen orange f
Salat m Salate salad f; Keks m Kekse cookie f; Fisch m Fische fish/fish fk; Brot n 0 bread f; Käse m 0 cheese f
Reis m 0 rice fk; Fleisch n 0 meat fk; Kaffee m 0 coffee d; Tee m 0 tea d; Milch f 0 milk d; Wasser n 0 water d
Wein m 0 wine d; Saft m 0 juice d; Hut m Hüte hat c; Kleid n Kleider dress c; Hemd n Hemden shirt c
Jacke f Jacken jacket c; Mantel m Mäntel coat c; Rock m Röcke skirt c; Schuh m Schuhe shoe c; Pullover m - sweater c
Tür f Türen door o; Fenster n - window o; Schrank m Schränke closet o; Koffer m - suitcase o; Tasche f Taschen bag o
Kiste f Kisten box o; Flasche f Flaschen bottle o; Computer m - computer m; Maschine f Maschinen machine m
Uhr f Uhren clock m; Lampe f Lampen lamp m; Radio n Radios radio m; Kamera f Kameras camera m; Auto n Autos car v
Fahrrad n Fahrräder bicycle v; Boot n Boote boat v; Motorrad n Motorräder motorcycle v; Ball m Bälle ball s
Schlüssel m - key s; Bild n Bilder picture s; Messer n - knife/knives s; Teller m - plate s; Glas n Gläser glass s
Blume f Blumen flower s; Karte f Karten card s; Spiegel m - mirror s; Ring m Ringe ring s; Geschenk n Geschenke gift s
Kerze f Kerzen candle s; Puppe f Puppen doll s; Korb m Körbe basket s; Regenschirm m Regenschirme umbrella s
Stift m Stifte pen s; Tisch m Tische table g; Stuhl m Stühle chair g; Bett n Betten bed g; Sofa n Sofas sofa g
Teppich m Teppiche carpet g; Bank f Bänke bench g; Regal n Regale shelf/shelves g; Garten m Gärten garden br
Haus n Häuser house br; Schule f Schulen school b; Küche f Küchen kitchen br; Park m Parks park b
Wald m Wälder forest b; Büro n Büros office br; Zimmer n - room br; Museum n Museen museum b; Kirche f Kirchen church b
Restaurant n Restaurants restaurant b; Hotel n Hotels hotel b; Bibliothek f Bibliotheken library b
Theater n - theater b; Krankenhaus n Krankenhäuser hospital b; Laden m Läden store b; Keller m - basement br
Fabrik f Fabriken factory b; Bahnhof m Bahnhöfe station b; Schloss n Schlösser castle b; Dorf n Dörfer village b
Stadt f Städte city b; Konzert n Konzerte concert e; Film m Filme movie e; Spiel n Spiele game e; Fest n Feste party e
Reise f Reisen trip e; Sitzung f Sitzungen meeting e; Hochzeit f Hochzeiten wedding e; Prüfung f Prüfungen exam e
Kurs m Kurse course e; Regen m 0 rain w; Schnee m 0 snow w; Sturm m 0 storm w; Lärm m 0 noise w; Hitze f 0 heat w
Nebel m 0 fog w; Berlin n 0 Berlin y; Hamburg n 0 Hamburg y; München n 0 Munich y; Wien n 0 Vienna y
Köln n 0 Cologne y; Rom n 0 Rome y
"""
NAMES = "Peter m; Paul m; Karl m; Martin m; David m; Anton m; Anna f; Maria f; Lena f; Julia f; Emma f; Clara f"

# German (comparative stem if it changes) = English : letters of the nouns, x = comvsg, ! = has no degrees.
ADJECTIVES = """
alt/ält = old : paxb; jung/jüng = young : pa; müde = tired : pa; krank/kränk = sick : pa; gesund/gesünd = healthy : pa
glücklich = happy : p; traurig = sad : p; freundlich = friendly : p; klug/klüg = smart : pa; stark/stärk = strong : pad
schwach/schwäch = weak : pad; hungrig = hungry : pa; reich = rich : p; arm/ärm = poor : p; nett = nice : p
ruhig = calm : pab; mutig = brave : p; faul = lazy : pa; berühmt = famous : pbt; höflich = polite : p
nervös = nervous : pa; neugierig = curious : pa; neu = new : xtbn; rot = red : x!; blau = blue : x!; grün = green : x!
schwarz = black : xa!; gelb = yellow : x!; braun = brown : xa!; groß/größ = big : xabf; klein = small : xabf
teuer = expensive : xfdbe; billig = cheap : xfdnt; schön = beautiful : xbea; hässlich = ugly : xba; schwer = heavy : x
leicht = light : xf; sauber = clean : xb; schmutzig = dirty : xba; kaputt = broken : x!
interessant = interesting : tebn; langweilig = boring : tebn; lang/läng = long : tenc; kurz/kürz = short : tenc
wichtig = important : ten; lustig = funny : tep; seltsam = strange : ten; kalt/kält = cold : fdb
warm/wärm = warm : fdb; süß = sweet : fda; frisch = fresh : fd; gut/bess = good : tefd; schlecht = bad : tefd
dunkel = dark : bc; modern = modern : bmvgt; gefährlich = dangerous : amv
"""

# infinitive/er-form/participle (* = perfect with sein) = base/past/participle : letters of nouns. | ends a prefix that
# separates, _ is a space in English; + = a state or a mishap: no progressive, passive, command, modal; - = no passive.
VERBS = {
    "object": """
lesen/liest/gelesen = read/read/read : tn; schreiben//geschrieben = write/wrote/written : t; übersetzen = translate : t
verstehen//verstanden = understand/understood/understood : tp+; kaufen = buy/bought/bought : fcmvg
verkaufen = sell/sold/sold : mvsga; essen/isst/gegessen = eat/ate/eaten : f; kochen = cook : k; bestellen = order : fd
trinken//getrunken = drink/drank/drunk : d; suchen = look_for : asnp-; finden//gefunden = find/found/found : acs
vergessen/vergisst/vergessen = forget/forgot/forgotten : tsn+; verlieren//verloren = lose/lost/lost : scn+
reparieren = repair : mvg; putzen = clean : ogr; waschen/wäscht/gewaschen = wash : ca; öffnen = open : o
schließen//geschlossen = close : o; tragen/trägt/getragen = wear/wore/worn : c-; malen = paint : oag
zeichnen = draw/drew/drawn : bavs; sehen/sieht/gesehen = see/saw/seen : abp+; bauen = build/built/built : vg
brauchen = need : mosg+; haben/hat/gehabt = have/had/had : acmv+; nehmen/nimmt/genommen = take/took/taken : sfc
verstecken = hide/hid/hidden : scn; benutzen = use : mvs; bezahlen = pay_for/paid_for/paid_for : fdc
bekommen//bekommen = get/got/gotten : tn+; füttern = feed/fed/fed : a; fangen/fängt/gefangen = catch/caught/caught : a
mieten = rent : vb; bewundern = admire : cbp; holen = fetch : fdo; planen = plan : e; auf|machen = open : o
zu|machen = close : o; an|machen = turn_on : m; aus|machen = turn_off : m
an|ziehen//gezogen = put_on/put_on/put_on : c; aus|ziehen//gezogen = take_off/took_off/taken_off : c
weg|werfen/wirft/geworfen = throw_away/threw_away/thrown_away : fsn
mit|bringen//gebracht = bring_along/brought_along/brought_along : fds; ein|packen = pack : cst
zurück|geben/gibt/gegeben = return : stv; aus|leihen//geliehen = borrow : tvs; auf|räumen = tidy_up : r
vor|bereiten = prepare : e; ab|sagen = cancel : e; besuchen = visit : bp; genießen//genossen = enjoy : ed
beobachten = watch : ap; treffen/trifft/getroffen = meet/met/met : p; kennen//gekannt = know/knew/known : pb+
lieben = love : pa+; fragen = ask : p; begrüßen = greet : p; vermissen = miss : p+; an|rufen//gerufen = call : p
ein|laden/lädt/geladen = invite : p; ab|holen = pick_up : p""",
    "dative": """
helfen/hilft/geholfen = help : p; danken = thank : p; antworten = answer : p; folgen//* = follow : p
vertrauen = trust : p+; gratulieren = congratulate : p; zu|hören = listen_to : p; drohen = threaten : p
verzeihen//verziehen = forgive/forgave/forgiven : p""",
    "auf": "warten = wait_for : p",
    "an": "denken//gedacht = think_of/thought_of/thought_of : p",
    "mit": "sprechen/spricht/gesprochen = talk_to : p; tanzen = dance_with : p; spielen = play_with : pa",
    "von": "träumen = dream_of : pvy",
    "give": """
geben/gibt/gegeben = give/gave/given : sfdtn; schicken = send/sent/sent : stc; zeigen = show/showed/shown : stvcm
leihen//geliehen = lend/lent/lent : vmt; bringen//gebracht = bring/brought/brought : fdso""",
    "explain": """
erklären = explain : tnme; beschreiben//beschrieben = describe : absvr
vor|lesen/liest/gelesen = read/read/read : tn""",
    "place": """
arbeiten = work : by; schlafen/schläft/geschlafen = sleep/slept/slept : bg; wohnen = live : by; tanzen = dance : b
singen//gesungen = sing/sang/sung : b; lachen = laugh : b; sitzen//gesessen = sit/sat/sat : bg
stehen//gestanden = stand/stood/stood : b; bleiben//geblieben* = stay : by; lernen = study : by; spielen = play : b
warten = wait : b; ein|kaufen = shop : y""",
    "go": """
gehen//gegangen* = go/went/gone : b; laufen/läuft/gelaufen* = run/ran/run : b; kommen//gekommen* = come/came/come : by
fahren/fährt/gefahren* = drive/drove/driven : by; reisen//* = travel : y; fliegen//geflogen* = fly/flew/flown : y
zurück|kommen//gekommen* = come_back/came_back/come_back : by""",
    "put": "legen = put/put/put : sct; stellen = put/put/put : smof",
    "rise": """
auf|stehen//gestanden* = get_up/got_up/gotten_up
ein|schlafen/schläft/geschlafen* = fall_asleep/fell_asleep/fallen_asleep; auf|wachen//* = wake_up/woke_up/woken_up
an|kommen//gekommen* = arrive; weg|gehen//gegangen* = leave/left/left""",
    "weather": "regnen = rain; schneien = snow",
    "dass": """
glauben = believe; sagen = say/said/said; hoffen = hope; denken//gedacht = think/thought/thought
wissen/weiß/gewusst = know/knew/known+; vergessen/vergisst/vergessen = forget/forgot/forgotten""",
    "ob": "fragen = ask",
    "zu": """
versuchen = try; planen = plan; hoffen = hope; vergessen/vergisst/vergessen = forget/forgot/forgotten
versprechen/verspricht/versprochen = promise; beginnen//begonnen = begin/began/begun""",
}

NUMBERS = """
zwei two; drei three; vier four; fünf five; sechs six; sieben seven; acht eight; neun nine; zehn ten; zwölf twelve"""
FREQUENCY = "oft often; immer always; nie never; manchmal sometimes; selten rarely; meistens usually"
OPENING = "vielleicht maybe; leider unfortunately; dann then; deshalb therefore; natürlich of_course; zum_Glück luckily"
DAYS = """
Montag Monday; Dienstag Tuesday; Mittwoch Wednesday; Donnerstag Thursday; Freitag Friday; Samstag Saturday
Sonntag Sunday"""
JUDGED = "gut good; wichtig important; schade a_pity; klar clear; möglich possible; seltsam strange"

# ---------------------------------------------------------------------------------------------------------- inflection
Grid = tuple[tuple[str, ...], ...]  # [case][gender], or [number][case] in a noun
Pair = tuple[str, str]  # German, English
VOWELS = "aeiouyäöü"


def entries(table: str) -> Iterator[str]:
    """The entries of a table, parted by ";" or a line end."""
    return (entry.strip() for entry in table.replace("\n", ";").split(";") if entry.strip())


def pairs(table: str) -> tuple[Pair, ...]:
    """The entries "german english" of a table, "_" for a space within."""
    return tuple((de.replace("_", " "), en.replace("_", " ")) for de, en in map(str.split, entries(table)))


def grid(text: str) -> Grid:
    """Four cases parted by "|", each with four genders; "-" is the empty string."""
    return tuple(tuple("" if form == "-" else form for form in row.split()) for row in text.split("|"))


WEAK = grid("e e e en|en e e en|en en en en|en en en en")
MIXED = grid("er e es en|en e es en|en en en en|en en en en")
STRONG = grid("er e es e|en e es e|em er em en|en er en er")
DER_ENDINGS = grid("er e es e|en e es e|em er em en|es er es er")
EIN_ENDINGS = grid("- e - e|en e - e|em er em en|es er es er")
NO_ENDINGS = grid("- - - -|- - - -|- - - -|- - - -")
RELATIVE = grid("der die das die|den die das die|dem der dem denen|- - - -")


class Determiner(NamedTuple):
    """Forms, and the adjective endings that follow them, both [case][gender]; English (singular, plural)."""

    forms: Grid
    endings: Grid
    en: Pair


def determiner(stem: str, endings: Grid, adjective: Grid, singular: str, plural: str = "") -> Determiner:
    """A determiner by its endings; euer loses its second e before one."""
    short = "eur" if stem == "euer" else stem
    forms = tuple(tuple((short if ending else stem) + ending for ending in row) for row in endings)
    return Determiner(forms, adjective, (singular, plural or singular))


DEF = Determiner(grid("der die das die|den die das die|dem der dem den|des der des der"), WEAK, ("the", "the"))
BARE = Determiner(NO_ENDINGS, STRONG, ("", ""))
INDEF = determiner("ein", EIN_ENDINGS, MIXED, "a")
# The owner's index is `Subject.own`: ich du er sie wir ihr sie.
POSSESSIVES = tuple(
    determiner(de, EIN_ENDINGS, MIXED, en)
    for de, en in pairs("mein my; dein your; sein his; ihr her; unser our; euer your; ihr their")
)
COUNTS = [determiner(de, NO_ENDINGS, STRONG, en) for de, en in pairs(NUMBERS)]
DETERMINERS = {
    "the": DEF,
    "bare": BARE,
    "a": INDEF,
    "my": POSSESSIVES[0],
    "your": POSSESSIVES[1],
    "our": POSSESSIVES[4],
    "no": determiner("kein", EIN_ENDINGS, MIXED, "no"),
    "not a": determiner("kein", EIN_ENDINGS, MIXED, "a", "any"),  # kein under an English negated verb
    "not any": determiner("kein", EIN_ENDINGS, MIXED, "any"),
    "this": determiner("dies", DER_ENDINGS, WEAK, "this", "these"),
    "every": determiner("jed", DER_ENDINGS, WEAK, "every"),
    "which": determiner("welch", DER_ENDINGS, WEAK, "which"),
    "how many": determiner("wie viel", DER_ENDINGS, STRONG, "how many"),
    "many": determiner("viel", DER_ENDINGS, STRONG, "many"),
    "some": determiner("einig", DER_ENDINGS, STRONG, "some"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """`de[plural][case]`, `en[plural]`; `mass` nouns, which towns are too, have no plural and no indefinite article."""

    lemma: str
    gender: int
    letters: str
    de: Grid
    en: Pair
    mass: bool


def parse_noun(entry: str) -> Noun:
    lemma, kind, plural, english, letters = entry.split()
    many = lemma if plural == "-" else plural
    singular = (lemma, many, many, many) if kind == "w" else (lemma, lemma, lemma, genitive(lemma, kind, plural))
    dative = many if many.endswith(("n", "s")) else many + "n"
    one, _, more = english.partition("/")
    forms = (singular, (many, many, dative, many))
    return Noun(lemma, {"f": 1, "n": 2}.get(kind, 0), letters, forms, (one, more or plural_of(one)), plural == "0")


def syllables(word: str) -> int:
    return sum(a in VOWELS and b not in VOWELS for a, b in zip(word.lower(), word[1:] + " ", strict=True))


def genitive(noun: str, kind: str, plural: str) -> str:
    """Genitive singular: feminine none; -es after a sibilant and for native words of one syllable; else -s."""
    if kind == "f":
        return noun
    native = syllables(noun) == 1 and not plural.endswith("s") and noun[-1] not in VOWELS
    return noun + ("es" if native or noun.endswith(("s", "ß", "x", "z", "sch")) else "s")


def plural_of(noun: str) -> str:
    """The regular English plural, which is also the regular third person of a verb."""
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh", "to", "go")) else "s")


class Degree(NamedTuple):
    """One degree of an adjective: the stem that takes endings, the form of the predicate, English."""

    stem: str
    predicate: str
    en: str


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """`degrees`: positive, comparative, superlative; the first alone where comparing makes no sense."""

    lemma: str
    letters: str
    degrees: tuple[Degree, ...]


def parse_adjective(entry: str) -> Adjective:
    german, english, letters = (part.strip() for part in entry.replace("=", ":").split(":"))
    lemma, _, changed = german.partition("/")
    stem = {"teuer": "teur", "dunkel": "dunkl"}.get(lemma, lemma.rstrip("e"))
    root = changed or lemma.rstrip("e")
    linked = lemma.endswith("e") or root.endswith(("t", "d", "s", "ß", "z", "sch", "eu"))
    more = (changed or stem) + "er"
    most = {"größest": "größt", "bessest": "best"}.get(root + "est", root + ("est" if linked else "st"))
    comparative, superlative = english_degrees(english)
    degrees = (Degree(stem, lemma, english), Degree(more, more, comparative), Degree(most, most, superlative))
    return Adjective(lemma, letters.rstrip("!").replace("x", "comvsg"), degrees[: 1 if letters.endswith("!") else 3])


def english_degrees(word: str) -> Pair:
    if word in ("good", "bad"):
        return ("better", "best") if word == "good" else ("worse", "worst")
    if syllables(word.rstrip("e")) > 1 and not word.endswith("y"):
        return f"more {word}", f"most {word}"
    stem = word[:-1] + "i" if word.endswith("y") else word.rstrip("e")
    stem += stem[-1] if word in ("big", "hot", "sad") else ""
    return stem + "er", stem + "est"


def decline(det: Determiner, noun: Noun, case: int, plural: int, adjective: Degree | None = None) -> Pair:
    """A noun phrase in German and English."""
    gender = PLURAL if plural else noun.gender
    de, en = noun.de[plural][case], noun.en[plural]
    if adjective:
        de, en = f"{adjective.stem}{det.endings[case][gender]} {de}", f"{adjective.en} {en}"
    article, english = det.forms[case][gender], det.en[plural]
    if english == "a" and en[0] in "aeiou":
        english = "an"
    return f"{article} {de}" if article else de, f"{english} {en}" if english else en


# --------------------------------------------------------------------------------------------------------------- verbs
Six = tuple[str, ...]  # one form for each person
GermanMode = tuple[Six, str, Six]  # finite verb, what closes a main clause, what closes a subordinate clause
EnglishMode = list[tuple[str, str, bool, str, str, str]]  # for each person, see `english_mode`


def six(text: str) -> Six:
    forms = tuple(text.split())
    return forms if len(forms) == 6 else forms * 6


def past_of(stem: str) -> Six:
    return tuple(stem + ending for ending in ("te", "test", "te", "ten", "tet", "ten"))


HABEN, HATTE = six("habe hast hat haben habt haben"), past_of("hat")
BIN, WAR = six("bin bist ist sind seid sind"), six("war warst war waren wart waren")
WERDEN, WURDE = six("werde wirst wird werden werdet werden"), six("wurde wurdest wurde wurden wurdet wurden")
AM, WAS = six("am are is are are are"), six("was were was were were were")
DO, HAVE = six("do do does do do do"), six("have have has have have have")
# mode: German finite verb, English finite verb, its base form if it takes "do", what follows with the verb's base in {}
MODALS = {
    "future": (WERDEN, six("will"), "", "{}"),
    "can": (six("kann kannst kann können könnt können"), six("can"), "", "{}"),
    "could": (past_of("konn"), six("could"), "", "{}"),
    "must": (six("muss musst muss müssen müsst müssen"), HAVE, "have", "to {}"),
    "had to": (past_of("muss"), six("had"), "have", "to {}"),
    "want": (six("will willst will wollen wollt wollen"), six("want want wants want want want"), "want", "to {}"),
    "wanted": (past_of("woll"), six("wanted"), "want", "to {}"),
    "may": (six("darf darfst darf dürfen dürft dürfen"), AM, "", "allowed to {}"),
    "might": (past_of("durf"), WAS, "", "allowed to {}"),
    "should": (six("soll sollst soll sollen sollt sollen"), six("should"), "", "{}"),
    "would like": (six("möchte möchtest möchte möchten möchtet möchten"), six("would"), "", "like to {}"),
}
PAST_MODES = frozenset({"past", "could", "had to", "wanted", "might"})


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb in all its modes. `zu` is the German infinitive with zu; `base` and `ing` are English."""

    lemma: str
    prefix: str
    letters: str
    de: dict[str, GermanMode]
    en: dict[str, EnglishMode]
    zu: str
    base: str
    ing: str
    passive: Verb | None = None


def german_mode(finite: Six, right: str, join: str = " ") -> GermanMode:
    return finite, right, tuple(right + join + form if right else form for form in finite)


def english_mode(finite: Six, rest: str = "", do: str = "", past: bool = False) -> EnglishMode:
    """(finite, rest, takes do, auxiliary, rest after it, auxiliary negated); `do`: the base of a verb that takes do."""
    helpers = (six("did") if past else DO) if do else finite
    after = f"{do} {rest}".strip()
    return [
        (verb, rest, bool(do), helper, after, "cannot" if helper == "can" else f"{helper} not")
        for verb, helper in zip(finite, helpers, strict=True)
    ]


def modal_modes(infinitive: str, base: str) -> tuple[dict[str, GermanMode], dict[str, EnglishMode]]:
    english = {
        mode: english_mode(finite, rest.format(base), do, mode in PAST_MODES)
        for mode, (_, finite, do, rest) in MODALS.items()
    }
    return {mode: german_mode(row[0], infinitive) for mode, row in MODALS.items()}, english


def inflect(verb: str, ending: str) -> str:
    """Regular -s, -ed and -ing of an English verb; a particle ("turn on") stays behind."""
    word, _, particle = verb.partition(" ")
    if ending == "s":
        word = "has" if word == "have" else plural_of(word)
    else:
        if word in ("plan", "put", "sit", "run", "get", "forget", "begin", "shop"):
            word += word[-1]
        elif ending == "ed" and word.endswith("y") and word[-2] not in VOWELS:
            word = word[:-1] + "i"
        word = word.removesuffix("e") + ending
    return f"{word} {particle}".strip()


def stem_of(infinitive: str) -> tuple[str, str]:
    """The stem and the e that links it to -t and -st where it could not be spoken otherwise."""
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    return stem, "e" if stem.endswith(("t", "d", "ffn", "chn", "gn")) else ""


def present_tense(infinitive: str, third: str) -> Six:
    """The present of a verb without prefix; `third` (the er-form) only if its stem changes."""
    if third == "weiß":
        return six("weiß weißt weiß wissen wisst wissen")
    stem, link = stem_of(infinitive)
    second = third[:-1] if third else stem + link
    second += "t" if second.endswith(("s", "ß", "z", "x")) else "st"
    return stem + "e", second, third or stem + link + "t", infinitive, stem + link + "t", infinitive


def participle_of(infinitive: str) -> str:
    """The regular participle, without ge- after an unstressed prefix and in -ieren."""
    stem, link = stem_of(infinitive)
    bare = infinitive.endswith("ieren") or infinitive.startswith(("be", "er", "ver", "zer", "ge", "über"))
    return ("" if bare else "ge") + stem + link + "t"


def parse_verb(entry: str) -> Verb:
    description, _, letters = entry.partition(" : ")
    german, english = (side.strip().rstrip("+") for side in description.split(" = "))
    lemma, third, participle = [*german.split("/"), "", ""][:3]
    prefix, _, stem = lemma.rpartition("|")
    perfect, pluperfect = (BIN, WAR) if participle.endswith("*") else (HABEN, HATTE)
    participle = prefix + (participle.rstrip("*") or participle_of(stem))
    base, past, done = [*english.replace("_", " ").split("/"), "", ""][:3]
    past, done, ing = past or inflect(base, "ed"), done or past or inflect(base, "ed"), inflect(base, "ing")
    de, en = modal_modes(prefix + stem, base)
    for mode in ("present", "progressive", "since", "gern"):
        de[mode] = german_mode(present_tense(stem, third), prefix, "")
    de["past"] = german_mode(HATTE, "") if stem == "haben" else german_mode(perfect, participle)
    de["pluperfect"] = german_mode(pluperfect, participle)
    en |= {
        "present": english_mode(tuple(inflect(base, "s") if i == 2 else base for i in range(6)), "", base),
        "past": english_mode((past,) * 6, "", base, past=True),
        "pluperfect": english_mode(six("had"), done),
        "progressive": english_mode(AM, ing),
        "since": english_mode(HAVE, f"been {ing}"),
        "gern": english_mode(six("like like likes like like like"), f"to {base}", "like"),
    }
    passive = None if set(letters) & set("+-") else passive_of(participle, done)
    zu = f"{prefix}zu{stem}" if prefix else f"zu {stem}"
    return Verb(prefix + stem, prefix, letters, de, en, zu, base, ing, passive)


def passive_of(participle: str, done: str) -> Verb:
    de, en = modal_modes(f"{participle} werden", f"be {done}")
    de |= {"present": german_mode(WERDEN, participle), "past": german_mode(WURDE, participle)}
    en |= {"present": english_mode(AM, done), "past": english_mode(WAS, done)}
    return Verb("werden", "", "", de, en, f"{participle} zu werden", f"be {done}", f"being {done}")


def copula() -> Verb:
    de, en = modal_modes("sein", "be")
    de |= {"present": german_mode(BIN, ""), "past": german_mode(WAR, ""), "pluperfect": german_mode(WAR, "gewesen")}
    en |= {"present": english_mode(AM), "past": english_mode(WAS), "pluperfect": english_mode(six("had"), "been")}
    return Verb("sein", "", "", de, en, "zu sein", "be", "being")


SEIN = copula()
GEFALLEN = parse_verb("gefallen/gefällt/gefallen = like : tcvsegb")
GEHÖREN = parse_verb("gehören = belong_to : acmvsg")


# ------------------------------------------------------------------------------------------------------------- phrases
LEXICON_NOUNS = [parse_noun(entry) for entry in entries(NOUNS)]
LEXICON_ADJECTIVES = [parse_adjective(entry) for entry in entries(ADJECTIVES)]
LEXICON_VERBS = {frame: [parse_verb(entry) for entry in entries(table)] for frame, table in VERBS.items()}
Options = list[tuple[Verb, list[Noun]]]
Odds = tuple[bool, ...]


def of_kind(letters: str) -> list[Noun]:
    return [noun for noun in LEXICON_NOUNS if noun.letters[0] in letters]


PEOPLE, PLACES, FURNITURE = of_kind("p"), of_kind("b"), of_kind("g")


def split_of(first: str, second: str) -> str:
    """The split that alone may use this combination of content lemmas."""
    return HELD_OUT.get(key("translation", first, second) % 20, "train")


@dataclass(frozen=True, slots=True)
class Pool:
    """What a split may combine: verbs with nouns (by frame), nouns with adjectives, places with what is there."""

    verbs: dict[str, Options]
    adjectives: dict[Noun, list[Adjective]]
    described: dict[str, list[Noun]]
    found: list[tuple[Noun, list[Noun]]]


def verb_options(split: str, verbs: list[Verb], letters: str, flags: str = "", genders: str = "012") -> Options:
    """The verbs without these flags, each with the nouns of these letters and genders that the split puts to it."""
    chosen = []
    for verb in verbs:
        kinds = set(verb.letters) & set(letters)
        nouns = [noun for noun in LEXICON_NOUNS if kinds & set(noun.letters) and str(noun.gender) in genders]
        nouns = [noun for noun in nouns if split_of(verb.lemma, noun.lemma) == split]
        if nouns and not set(flags) & set(verb.letters):
            chosen.append((verb, nouns))
    return chosen


@functools.cache
def pool(split: str) -> Pool:
    """Built once for each split from the lexicon."""
    things, every = "atnfkdcomvsgbre", "patnfkdcomvsgbrewy"
    verbs = {frame: verb_options(split, table, every) for frame, table in LEXICON_VERBS.items()}
    acting = LEXICON_VERBS["object"]
    verbs |= {"object": verb_options(split, acting, things), "active": verb_options(split, acting, things, "+")}
    verbs |= {"person": verb_options(split, acting, "p"), "passive": verb_options(split, acting, every, "+-")}
    verbs["masculine"] = verb_options(split, acting, things.replace("d", ""), "", "0")
    verbs["known"] = [(verb, nouns) for verb, nouns in verbs["person"] if not verb.prefix]
    verbs |= {verb.lemma: verb_options(split, [verb], things) for verb in (GEFALLEN, GEHÖREN)}
    adjectives = {
        noun: [a for a in LEXICON_ADJECTIVES if noun.letters[0] in a.letters and split_of(a.lemma, noun.lemma) == split]
        for noun in LEXICON_NOUNS
    }
    compared = [n for n in LEXICON_NOUNS if not n.mass and any(len(a.degrees) > 1 for a in adjectives[n])]
    described = {"is": [noun for noun in LEXICON_NOUNS if adjectives[noun]], "more": compared, "equal": compared}
    there = [(place, [n for n in of_kind("avgps") if split_of(place.lemma, n.lemma) == split]) for place in PLACES]
    return Pool(verbs, adjectives, described, [(place, nouns) for place, nouns in there if nouns])


class Subject(NamedTuple):
    """`own` indexes POSSESSIVES (-1: none fits), `gender` the pronoun that takes the subject up (-1: none does)."""

    de: str
    en: str
    person: int
    own: int = -1
    gender: int = -1


IT, ICH, DU = Subject("es", "it", 2), Subject("ich", "I", 0, 0), Subject("du", "you", 1, 1)
ER, SIE, SIE_PLURAL = Subject("er", "he", 2, 2, 0), Subject("sie", "she", 2, 3, 1), Subject("sie", "they", 5, 6, 3)
WIR, IHR = Subject("wir", "we", 3, 4), Subject("ihr", "you", 4, 5)
PRONOUNS = [ICH, DU, ER, SIE, WIR, IHR, SIE_PLURAL]
TAKEN_UP = {0: ER, 1: SIE, 3: SIE_PLURAL}
NAMED = [Subject(name, name, 2, 2 + "mf".index(sex), "mf".index(sex)) for name, sex in pairs(NAMES)]
SIMPLE = [*PRONOUNS, *NAMED]
# By the subject's person: the object pronouns that are not the subject itself.
FIRST, SECOND = {DAT: "mir me; uns us", ACC: "mich me; uns us"}, {DAT: "dir you; euch you", ACC: "dich you; euch you"}
THIRD = {DAT: "ihm him; ihr her; ihnen them", ACC: "ihn him"}
OBJECT_PRONOUNS = {
    case: [
        pairs(f"{THIRD[case]}; {SECOND[case] if i % 3 != 1 else ''}; {FIRST[case] if i % 3 else ''}") for i in range(6)
    ]
    for case in (ACC, DAT)
}
Choice = tuple[Determiner, int]  # and whether plural


def choices(text: str, own: int = -1) -> list[Choice]:
    """Determiners with their weights: "4 the, 2 the+, number"; + is the plural, "own" the subject's possessive."""
    chosen: list[Choice] = []
    for item in text.split(", "):
        weight, _, name = item.partition(" ") if item[0].isdigit() else ("1", "", item)
        plural = int(name.endswith("+"))
        if name == "number":
            chosen += [(det, 1) for det in COUNTS] * int(weight)
        elif not name.startswith("own"):
            chosen += [(DETERMINERS[name.rstrip("+")], plural)] * int(weight)
        elif own >= 0:
            chosen += [(POSSESSIVES[own], plural)] * int(weight)
    return chosen


AS_SUBJECT = choices("40 the, 20 the+, 10 a, 5 this, 5 this+, 5 every, 5 my, 5 your, 5 our, 5 my+, 5 many+, number")
AS_HEAD = choices("6 the, 3 the+, this")
AS_PATIENT = choices("40 the, 30 the+, 10 this, 10 my, 10 our+, number")
AS_PLACE = choices("14 the, 2 this, 2 a, my, our")
MASS_HEAD = choices("2 the, this")
DEFINITE = choices("8 the, 4 the+, 2 this, this+, 2 my, our")
AS_FOUND = choices("20 a, number, 5 many+")
BY_OWNER = (*range(7), -1)  # so that -1 finds the last
THING = "60 the, 30 the+, 40 a, 15 bare+, 10 this, 5 this+, 10 my, 5 some+, 5 many+, 2 number, 20 own, 10 own+"
PERSON = "60 the, 30 the+, 30 a, 10 this, 5 this+, 10 my, 5 many+, number, 20 own, 5 own+"
THINGS, PERSONS = [choices(THING, i) for i in BY_OWNER], [choices(PERSON, i) for i in BY_OWNER]
MASSES = [choices("3 the, 3 bare, this, own", i) for i in BY_OWNER]
# Under a condition: kein is itself the determiner, beside nicht only a definite object is German, and one in first
# place must show its case.
LIMITS = {
    "kein": (choices("not a, not a+"), choices("not any")),
    "nicht": (DEFINITE, MASS_HEAD),
    "first": (choices("4 the, 2 a, this, my, our"), MASS_HEAD),
}
ONE_IN_TWO, ONE_IN_THREE, ONE_IN_FOUR, ONE_IN_SIX, ONE_IN_EIGHT = ((True,) + (False,) * n for n in (1, 2, 3, 5, 7))
NEVER: Odds = (False,)
RARELY: Odds = (True,) + (False,) * 11


def phrase(
    d: Draw, p: Pool, noun: Noun, case: int, of: list[Choice], odds: Odds = ONE_IN_FOUR
) -> tuple[str, str, Choice]:
    """A noun phrase; now and then with an adjective that the split puts to the noun, rarely in another degree."""
    det, plural = choice = d.pick(of)
    degree = None
    if d.pick(odds) and (adjectives := p.adjectives[noun]):
        adjective = d.pick(adjectives)
        d.combine(adjective.lemma, noun.lemma)
        degree = adjective.degrees[0]
        if len(adjective.degrees) > 1 and (det is DEF or det is INDEF) and d.pick(RARELY):
            degree = adjective.degrees[1 if det is INDEF else 2]
    return *decline(det, noun, case, plural, degree), choice


CONTRACTED = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
    ("von", "dem"): "vom",
}


def with_preposition(preposition: str, de: str, choice: Choice) -> str:
    """Contracts a preposition and a definite article in the singular: in dem → im."""
    if choice[0] is DEF and not choice[1]:
        article, _, rest = de.partition(" ")
        if contracted := CONTRACTED.get((preposition, article)):
            return f"{contracted} {rest}"
    return f"{preposition} {de}"


IN_PLACE = [("in", "in")] * 5 + [("vor", "in front of"), ("hinter", "behind"), ("neben", "next to")]
ON_FURNITURE = [("auf", "on")] * 3 + [("unter", "under"), ("neben", "next to"), ("hinter", "behind")]
INTO_PLACE = [("in", ACC, "into")] * 2 + [("zu", DAT, "to")] * 2 + [("aus", DAT, "out of")]


def location(d: Draw, p: Pool, noun: Noun) -> Pair:
    if noun.letters == "y":
        return f"in {noun.lemma}", f"in {noun.en[0]}"
    preposition, english = d.pick(ON_FURNITURE if noun.letters == "g" else IN_PLACE)
    de, en, choice = phrase(d, p, noun, DAT, AS_PLACE, ONE_IN_SIX)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def direction(d: Draw, p: Pool, verb: Verb, noun: Noun) -> Pair:
    """Where to; with verbs of coming also where from."""
    if noun.letters == "y":
        if verb.zu.endswith("kommen") and d.pick(ONE_IN_TWO):
            return f"aus {noun.lemma}", f"from {noun.en[0]}"
        return f"nach {noun.lemma}", f"to {noun.en[0]}"
    preposition, case, english = d.pick(INTO_PLACE)
    de, en, choice = phrase(d, p, noun, case, AS_PLACE, ONE_IN_SIX)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def noun_subject(d: Draw, p: Pool, noun: Noun, of: list[Choice], odds: Odds = ONE_IN_FOUR) -> Subject:
    de, en, (_, plural) = phrase(d, p, noun, NOM, of, odds)
    if noun.letters != "p":
        return Subject(de, en, 5 if plural else 2)
    if plural:
        return Subject(de, en, 5, 6, PLURAL)
    # "das Kind … sein Buch" would be his, her or its: a neuter person owns nothing here.
    return Subject(de, en, 2, (2, 3, -1)[noun.gender], (0, 1, -1)[noun.gender])


WHO_SPEAKS = ("pronoun",) * 4 + ("name",) * 2 + ("noun",) * 6


def subject(d: Draw, p: Pool, of: list[Choice] = AS_SUBJECT) -> Subject:
    kind = d.pick(WHO_SPEAKS)
    if kind == "pronoun":
        return d.pick(PRONOUNS)
    return d.pick(NAMED) if kind == "name" else noun_subject(d, p, d.pick(PEOPLE), of)


def times() -> dict[str, list[tuple[Pair, ...]]]:
    """Groups of time and cause phrases by tense; a group is drawn first, so that long groups do not dominate."""

    def around(preposition: str, case: int, before: str, letter: str) -> tuple[Pair, ...]:
        phrases = (decline(DEF, noun, case, 0) for noun in of_kind(letter))
        return tuple((f"{preposition} {de}", f"{before} {en}") for de, en in phrases)

    def counted(de: str, en: str) -> tuple[Pair, ...]:
        spans = pairs("Tagen days; Wochen weeks; Jahren years")
        return tuple(
            (f"{de} {n} {span}", en.format(f"{m} {spans_en}")) for n, m in pairs(NUMBERS) for span, spans_en in spans
        )

    always = [
        tuple((f"am {de}", f"on {en}") for de, en in pairs(DAYS)),
        tuple((f"um {de} Uhr", f"at {en} o'clock") for de, en in pairs(NUMBERS)),
        pairs("am_Morgen in_the_morning; am_Nachmittag in_the_afternoon; am_Abend in_the_evening; heute today"),
        around("nach", DAT, "after", "e") + around("vor", DAT, "before", "e") + around("während", GEN, "during", "e"),
        around("wegen", GEN, "because of", "w") + around("trotz", GEN, "despite", "w"),
    ]
    return {
        "always": always,
        "present": [*always, pairs("jeden_Tag every_day; jede_Woche every_week")],
        "past": [
            *always,
            pairs("gestern yesterday; letzte_Woche last_week; letztes_Jahr last_year"),
            counted("vor", "{} ago"),
        ],
        "future": [*always, pairs("morgen tomorrow; bald soon; nächste_Woche next_week"), counted("in", "in {}")],
        "since": [counted("seit", "for {}")],
    }


TIMES = times()
TENSES = {"present": "present", "gern": "present", "pluperfect": "always", "progressive": "always", "since": "since"}
TENSES |= dict.fromkeys(MODALS, "future") | dict.fromkeys(PAST_MODES, "past")


def time_phrase(d: Draw, mode: str) -> Pair:
    return d.pick(d.pick(TIMES[TENSES[mode]]))


# ------------------------------------------------------------------------------------------------------------- clauses
class Clause(NamedTuple):
    """One clause before its word order is chosen; German goes on with pronoun, time, adverb, objects, nicht, tail.

    `agent` is the English subject, another one than the German with gefallen. `tail` is a place, direction, predicate.
    `neg` is "", "nicht" or "kein" (which negates the English verb only).
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


LIGHT = frozenset(s.de for s in (*PRONOUNS, IT))  # subjects that stay before an object pronoun


def german(c: Clause, order: str = "statement", front: str = "") -> str:
    """order: statement (verb after the subject or `front`), question (verb first), final (verb last, `front` first)."""
    finite, right, final = c.verb.de[c.mode]
    s, verb, pronoun = c.subject.de, finite[c.subject.person], c.pronoun
    middle = (c.time, c.adverb, c.objects, c.neg if c.neg == "nicht" else "", c.tail)
    if order == "final":
        words: tuple[str, ...] = (front, s, pronoun, *middle, final[c.subject.person])
    elif order == "statement" and not front:
        words = (s, verb, pronoun, *middle, right)
    elif s in LIGHT or pronoun == "ihr":  # "zeigt ihr der Mann …" could first be read as "you show"
        words = (front, verb, s, pronoun, *middle, right)
    else:
        words = (front, verb, pronoun, s, *middle, right)
    return " ".join([word for word in words if word])


def english(c: Clause, order: str = "statement") -> str:
    finite, rest, takes_do, auxiliary, after, negated = c.verb.en[c.mode][c.agent.person]
    if order == "question":
        words: tuple[str, ...] = (auxiliary, c.agent.en, after, c.en, c.time_en)
    elif c.neg:
        words = (c.agent.en, negated, after, c.en, c.time_en)
    elif takes_do:
        words = (c.agent.en, c.adverb_en, finite, rest, c.en, c.time_en)
    else:
        words = (c.agent.en, finite, c.adverb_en, rest, c.en, c.time_en)
    return " ".join([word for word in words if word])


Modes = tuple[str, ...]
Parts = tuple[Subject, Verb, str, str, str, str]  # subject, verb, pronoun, objects, tail, English
Frame = Callable[["Draw", Pool, Subject, str], Parts]  # the last: a key of LIMITS or ""


def choose(d: Draw, options: Options) -> tuple[Verb, Noun]:
    """A verb and one of the nouns that the split puts to it."""
    verb, nouns = d.pick(options)
    noun = d.pick(nouns)
    d.combine(verb.lemma, noun.lemma)
    return verb, noun


def noun_object(d: Draw, p: Pool, s: Subject, noun: Noun, case: int, limit: str = "") -> Pair:
    """An object beside the subject `s`; one in eight definite things has an owner: das Buch des Mannes."""
    if limit:
        of = LIMITS[limit][noun.mass]
    else:
        of = (MASSES if noun.mass else PERSONS if noun.letters == "p" else THINGS)[s.own]
    de, en, choice = phrase(d, p, noun, case, of)
    if choice[0] is not DEF or noun.letters == "p" or not d.pick(ONE_IN_EIGHT):
        return de, en
    plural = d.pick((0, 0, 1))
    de_owner, en_owner = decline(DEF, d.pick(PEOPLE), GEN, plural)
    mark = "'" if plural and en_owner.endswith("s") else "'s"
    return f"{de} {de_owner}", f"{en_owner}{mark} {en.removeprefix('the ')}"


def with_object(frame: str, case: int) -> Frame:
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
        de, en, choice = phrase(d, p, noun, case, (PERSONS if noun.letters == "p" else THINGS)[s.own])
        return s, verb, "", "", with_preposition(preposition, de, choice), en

    return build


def receiver(d: Draw, p: Pool, s: Subject) -> tuple[str, str, str]:
    """A person in the dative: (pronoun, noun phrase, English), one of the German ones empty."""
    if d.pick(ONE_IN_TWO):
        de, en = d.pick(OBJECT_PRONOUNS[DAT][s.person])
        return de, "", en
    return "", *noun_object(d, p, s, d.pick(PEOPLE), DAT)


def giving(frame: str, template: str) -> Frame:
    """Dative and accusative; English either "gives her the book" or "explains the book to her"."""

    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[frame])
        pronoun, dative, who = receiver(d, p, s)
        de, what = noun_object(d, p, s, noun, ACC, limit)
        return s, verb, pronoun, f"{dative} {de}" if dative else de, "", template.format(who=who, what=what)

    return build


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
    goal, goal_en, _ = phrase(d, p, d.pick(FURNITURE), ACC, AS_PLACE, ONE_IN_SIX)
    return s, verb, "", de, f"{preposition} {goal}", f"{en} {where} {goal_en}"


def weather(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return IT, d.pick(LEXICON_VERBS["weather"]), "", "", "", ""


def state(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    degree = d.pick(PERSONAL).degrees[0]
    return s, SEIN, "", "", degree.predicate, degree.en


def toward_pronoun(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    frame, case = d.pick((("person", ACC), ("dative", DAT)))
    de, en = d.pick(OBJECT_PRONOUNS[case][s.person])
    return s, d.pick(p.verbs[frame])[0], de, "", "", en


def rise(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return s, d.pick(LEXICON_VERBS["rise"]), "", "", "", ""


PERSONAL, ADVERBS = [a for a in LEXICON_ADJECTIVES if "p" in a.letters], pairs(FREQUENCY)
FRAMES: dict[str, Frame] = {
    **{name: with_object(name, ACC) for name in ("object", "person", "active", "masculine", "known")},
    "dative": with_object("dative", DAT),
    "auf": with_prepositional_object("auf", ACC),
    "an": with_prepositional_object("an", ACC),
    "mit": with_prepositional_object("mit", DAT),
    "von": with_prepositional_object("von", DAT),
    "give": giving("give", "{who} {what}"),
    "explain": giving("explain", "{what} to {who}"),
    "place": stay,
    "go": go,
    "put": put,
    "weather": weather,
    "state": state,
    "pronoun": toward_pronoun,
    "rise": rise,
}
SPARE = (
    "weather",
    "state",
    "state",
    "pronoun",
    "pronoun",
    "rise",
    "rise",
)  # no combination: beside another clause only
ACTS: tuple[str, ...] = (
    ("object",) * 8 + ("person",) * 3 + ("dative", "dative", "auf", "an", "mit", "von", "give", "give", "give")
)
ACTS += ("explain", "place", "place", "place", "go", "go", "put")


def clause(
    d: Draw,
    p: Pool,
    frames: tuple[str, ...],
    modes: Modes,
    s: Subject | None = None,
    short: bool = False,
    neg: str = "",
    limit: str = "",
) -> Clause:
    """A clause of one of the frames; a short one has fewer time phrases and no extra place."""
    s = s or subject(d, p, DEFINITE if neg else AS_SUBJECT)
    s, verb, pronoun, objects, tail, en = FRAMES[d.pick(frames)](d, p, s, limit or neg)
    mode = d.pick(modes)
    if "+" in verb.letters and mode in MODALS:
        mode = "past" if mode in PAST_MODES else "present"
    time = adverb = ("", "")
    if mode in ("progressive", "gern"):  # German says with an adverb what English says with the verb
        adverb = ("gerade" if mode == "progressive" else "gern", "")
    elif mode == "since" or d.pick(ONE_IN_SIX if short else ONE_IN_THREE):
        time = time_phrase(d, mode)
    elif mode in ("present", "past") and not neg and verb is not SEIN and d.pick(ONE_IN_SIX):
        adverb = d.pick(ADVERBS)
    if not tail and not short and d.pick(ONE_IN_SIX):
        tail, where = location(d, p, d.pick(PLACES))
        en = f"{en} {where}"
    return Clause(s, s, verb, mode, pronoun, objects, tail, en, *time, *adverb, neg)


def passive(d: Draw, p: Pool, modes: Modes) -> Clause:
    """Das Buch wird von der Frau gelesen."""
    verb, noun = choose(d, p.verbs["passive"])
    s = noun_subject(d, p, noun, MASS_HEAD if noun.mass else AS_PATIENT)
    by, time, mode = ("", ""), ("", ""), d.pick(modes)
    if d.pick(ONE_IN_FOUR):
        name = d.pick(NAMED)
        by = f"von {name.de}", f"by {name.en}"
    elif d.pick(ONE_IN_TWO):
        de, en, choice = phrase(d, p, d.pick(PEOPLE), DAT, AS_HEAD)
        by = with_preposition("von", de, choice), f"by {en}"
    if d.pick(ONE_IN_FOUR):
        time = time_phrase(d, mode)
    assert verb.passive is not None, f"{verb.lemma} is among the verbs with a passive"
    return Clause(s, s, verb.passive, mode, "", "", *by, *time)


def quality(d: Draw, p: Pool, modes: Modes, kind: str = "is", neg: str = "") -> Clause:
    """A noun and an adjective of it: is, more (älter als) or equal (so alt wie)."""
    noun = d.pick(p.described[kind])
    adjective = d.pick([a for a in p.adjectives[noun] if kind == "is" or len(a.degrees) > 1])
    d.combine(adjective.lemma, noun.lemma)
    s = noun_subject(d, p, noun, MASS_HEAD if noun.mass else AS_HEAD, NEVER)
    degree = adjective.degrees[kind == "more"]
    tail, en = degree.predicate, degree.en
    if kind != "is":
        det, plural = d.pick(DEFINITE)
        de_other, en_other = decline(det, d.pick([n for n in LIKE[noun.letters[0]] if n is not noun]), NOM, plural)
        tail = f"{tail} als {de_other}" if kind == "more" else f"so {tail} wie {de_other}"
        en = f"{en} than {en_other}" if kind == "more" else f"as {en} as {en_other}"
    return Clause(s, s, SEIN, d.pick(modes), tail=tail, en=en, neg=neg)


LIKE = {letter: [noun for noun in of_kind(letter) if not noun.mass] for letter in "patnfdcomvsgbe"}
DATIVE_OF = list(zip(("mir", "dir", "ihm", "ihr", "uns", "euch", "ihnen"), PRONOUNS, strict=True))


def pleasing(d: Draw, p: Pool, modes: Modes, neg: str = "") -> Clause:
    """The German subject is the English object: das Buch gefällt dem Mann, the man likes the book."""
    verb, noun = choose(d, p.verbs["gefallen"])
    s = noun_subject(d, p, noun, AS_HEAD)
    if d.pick(ONE_IN_TWO):
        de, agent = d.pick(DATIVE_OF)
        return Clause(s, agent, verb, d.pick(modes), pronoun=de, en=s.en, neg=neg)
    de, en, (_, plural) = phrase(d, p, d.pick(PEOPLE), DAT, AS_HEAD)
    return Clause(s, Subject(de, en, 5 if plural else 2), verb, d.pick(modes), objects=de, en=s.en, neg=neg)


def belonging(d: Draw, p: Pool, modes: Modes, neg: str = "") -> Clause:
    """Das Auto gehört dem Mann."""
    verb, noun = choose(d, p.verbs["gehören"])
    s = noun_subject(d, p, noun, AS_HEAD)
    pronoun, de, en = receiver(d, p, s)
    return Clause(s, s, verb, d.pick(modes), pronoun=pronoun, objects=de, en=en, neg=neg)


# ------------------------------------------------------------------------------------------------------------ patterns
Sentence = tuple[str, str, str]  # German, English, closing mark
Build = Callable[["Draw", Pool], Sentence]
Make = Callable[["Draw", Pool], Clause]
NOW, PAST, PLUPERFECT, FUTURE = ("present",), ("past",), ("pluperfect",), ("future",)
MODAL, MODAL_PAST = ("can", "must", "want", "may", "should", "would like"), ("could", "had to", "wanted", "might")
BOTH, ANY = ("present", "past"), ("present", "past", "past", "must", "can", "want")
OPENERS = pairs(OPENING)
WHERE = pairs("wo where; wann when; warum why; wie_oft how_often")


def told(d: Draw, p: Pool, make: Make) -> Sentence:
    c = make(d, p)
    return german(c), english(c), "."


def time_first(d: Draw, p: Pool, make: Make) -> Sentence:
    """A time phrase in the first place, so that the German subject follows the verb."""
    c = make(d, p)
    time, time_en = (c.time, c.time_en) if c.time else time_phrase(d, c.mode)
    c = c._replace(time="", time_en="", adverb="", adverb_en="")
    return german(c, front=time), f"{time_en} {english(c)}", "."


def opener_first(d: Draw, p: Pool, make: Make) -> Sentence:
    c, (de, en) = make(d, p), d.pick(OPENERS)
    return german(c, front=de), f"{en} {english(c)}", "."


def object_first(d: Draw, p: Pool, make: Make) -> Sentence:
    """The German object in the first place: its case tells it, English keeps its order."""
    c = make(d, p)
    return german(c._replace(pronoun="", objects=""), front=c.pronoun or c.objects), english(c), "."


def place_first(d: Draw, p: Pool, make: Make) -> Sentence:
    c = make(d, p)
    return german(c._replace(tail=""), front=c.tail), english(c), "."


def asked(d: Draw, p: Pool, make: Make, asks: tuple[Pair, ...] = (("", ""),)) -> Sentence:
    c, (de, en) = make(d, p), d.pick(asks)
    return german(c, "question", de), f"{en} {english(c, 'question')}".strip(), "?"


def who(d: Draw, p: Pool, make: Callable[..., Clause]) -> Sentence:
    c = make(d, p, s=Subject("wer", "who", 2))
    return german(c), english(c), "?"


def which(d: Draw, p: Pool, of: list[Choice]) -> Sentence:
    """Welches Buch …, wie viele Bücher …"""
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass:  # every split has nouns that are counted
        verb, noun = choose(d, p.verbs["object"])
    det, plural = d.pick(of)
    de, en = decline(det, noun, ACC, plural)
    s = subject(d, p)
    c = Clause(s, s, verb, d.pick(BOTH if "+" in verb.letters else ANY))
    return german(c, "question", de), f"{en} {english(c, 'question')}", "?"


def exists(d: Draw, p: Pool, of: list[Choice], ask: bool = False) -> Sentence:
    """Im Garten gibt es einen Hund: there is a dog in the garden."""
    place, things = d.pick(p.found)
    noun = d.pick(things)
    d.combine(place.lemma, noun.lemma)
    where, where_en = location(d, p, place)
    de, en, (_, plural) = phrase(d, p, noun, ACC, of)
    gives, be = d.pick((("gibt", ("is", "are")), ("gibt", ("is", "are")), ("gab", ("was", "were"))))
    if ask:
        return f"{gives} es {where} {de}", f"{be[plural]} there {en} {where_en}", "?"
    return f"{where} {gives} es {de}", f"there {be[plural]} {en} {where_en}", "."


def command(d: Draw, p: Pool, frames: tuple[str, ...], neg: str = "") -> Sentence:
    """Macht bitte die Tür zu!"""
    c = clause(d, p, frames, NOW, IHR, short=True, neg=neg)
    c = c._replace(subject=c.subject._replace(de=""), time="", adverb="" if neg else "bitte")
    return german(c, "question"), f"{'do not' if neg else 'please'} {c.verb.base} {c.en}", "!"


def second_subject(d: Draw, p: Pool, first: Subject) -> Subject:
    """Half the time the pronoun for the first subject."""
    if first.gender >= 0 and d.pick(ONE_IN_TWO):
        return TAKEN_UP[first.gender]
    return subject(d, p)


def companion(d: Draw, p: Pool, modes: Modes, first: Subject) -> Clause:
    """A short clause beside another; one without a combination has a pronoun or a name as its subject."""
    frame = d.pick(ACTS_AND_SPARE)
    s = second_subject(d, p, first)
    if frame in SPARE and s not in SIMPLE:
        s = d.pick(SIMPLE)
    if frame in ("state", "weather"):
        modes = tuple(mode for mode in modes if mode not in MODALS) or NOW
    return clause(d, p, (frame,), modes, s, short=True)._replace(time="", time_en="")


def content(d: Draw, p: Pool, main: Clause, kinds: tuple[str, ...]) -> Clause:
    """What is believed or asked: an action, a passive, a quality, a pleasure, a possession; past under a past verb."""
    kind, told_before = d.pick(kinds), main.mode == "past"
    if kind == "act":
        return clause(d, p, ACTS, PAST if told_before else ANY, second_subject(d, p, main.subject), short=True)
    modes = PAST if told_before else BOTH
    if kind in ("is", "more"):
        return quality(d, p, modes, kind)
    return {"passive": passive, "pleasing": pleasing, "belonging": belonging}[kind](d, p, modes)


ACTS_AND_SPARE = ACTS + SPARE + SPARE + SPARE
CONTENTS = ("act",) * 8 + ("passive", "is", "more", "pleasing", "belonging")
KNOW, ASK = next(verb for verb in LEXICON_VERBS["dass"] if verb.lemma == "wissen"), LEXICON_VERBS["ob"][0]
JUDGEMENTS = pairs(JUDGED)


def that(d: Draw, p: Pool, ask: bool = False) -> Sentence:
    """Ich glaube, dass …"""
    s = subject(d, p)
    main = Clause(s, s, d.pick(LEXICON_VERBS["dass"]), d.pick(("present", "present", "past")))
    c, order = content(d, p, main, CONTENTS), "question" if ask else "statement"
    return (
        f"{german(main, order)}, {german(c, 'final', 'dass')}",
        f"{english(main, order)} that {english(c)}",
        ".?"[ask],
    )


def impersonal(d: Draw, p: Pool) -> Sentence:
    """Es ist gut, dass …"""
    (de, en), c = d.pick(JUDGEMENTS), content(d, p, Clause(IT, IT, SEIN, "present"), CONTENTS)
    return f"es ist {de}, {german(c, 'final', 'dass')}", f"it is {en} that {english(c)}", "."


def whether(d: Draw, p: Pool, asks: tuple[Pair, ...]) -> Sentence:
    """Ich weiß nicht, ob (wo, wann) …"""
    s, (de, en), knows = subject(d, p), d.pick(asks), d.pick(ONE_IN_TWO)
    main = Clause(s, s, KNOW if knows else ASK, d.pick(BOTH), neg="nicht" if knows else "")
    c = content(d, p, main, CONTENTS if de == "ob" else ("act",))
    return f"{german(main)}, {german(c, 'final', de)}", f"{english(main)} {en} {english(c)}", "."


def last(d: Draw, p: Pool, link: Pair, main: Modes, sub: Modes) -> Sentence:
    """Er schläft, weil er müde ist."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return f"{german(a)}, {german(b, 'final', link[0])}", f"{english(a)} {link[1]} {english(b)}", "."


def first(d: Draw, p: Pool, link: Pair, main: Modes, sub: Modes) -> Sentence:
    """Weil er müde ist, schläft er."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return f"{german(b, 'final', link[0])}, {german(a, 'question')}", f"{link[1]} {english(b)}, {english(a)}", "."


def joined(d: Draw, p: Pool, link: Pair, modes: Modes) -> Sentence:
    """Two main clauses: er ist müde, aber er arbeitet."""
    a = clause(d, p, ACTS, modes, short=True)
    b = companion(d, p, modes, a.subject)
    return f"{german(a)}{link[0]} {german(b)}", f"{english(a)}{link[1]} {english(b)}", "."


def infinitive(d: Draw, p: Pool, kind: str) -> Sentence:
    """Er versucht, das Buch zu lesen; er geht nach Rom, um das Buch zu lesen; … ohne das Buch zu lesen."""
    s = subject(d, p)
    if kind == "":
        main = Clause(s, s, d.pick(LEXICON_VERBS["zu"]), d.pick(BOTH))
    else:
        main = clause(d, p, ("go", "place", "rise", "object"), ("present", "past", "must", "want"), s, short=True)
    _, verb, pronoun, objects, tail, en = FRAMES[d.pick(DOING)](d, p, s, "")
    words = [word for word in (kind, pronoun, objects, tail, verb.zu) if word]
    to = f"without {verb.ing}" if kind == "ohne" else f"to {verb.base}"
    return f"{german(main)}, {' '.join(words)}", f"{english(main)} {to} {en}", "."


DOING = tuple("active" if frame == "object" else frame for frame in ACTS)


def head_of(d: Draw, p: Pool, noun: Noun, odds: Odds = ONE_IN_FOUR) -> tuple[Subject, int]:
    """A subject for a relative clause to describe, and the gender of the relative pronoun."""
    head = noun_subject(d, p, noun, AS_HEAD, odds)
    return head, PLURAL if head.person == 5 else noun.gender


def described(head: Subject, de: str, en: str) -> Subject:
    return head._replace(de=f"{head.de}, {de},", en=f"{head.en} {en}")


def relative_subject(d: Draw, p: Pool) -> Sentence:
    """Der Mann, der das Buch gelesen hat, wohnt in Berlin."""
    head, gender = head_of(d, p, d.pick(PEOPLE))
    inner = clause(d, p, WHAT_PEOPLE_DO, ANY, head._replace(de=RELATIVE[NOM][gender], en="who"), short=True)
    head = described(head, german(inner, "final"), english(inner))
    return told(d, p, partial(clause, frames=(*WHAT_PEOPLE_DO, "rise", "pronoun"), modes=BOTH, s=head, short=True))


def relative_dative(d: Draw, p: Pool) -> Sentence:
    """Der Mann, dem ich geholfen habe, wohnt in Berlin."""
    verb, noun = choose(d, p.verbs["dative"])
    head, gender = head_of(d, p, noun)
    s = d.pick(SIMPLE)
    inner = Clause(s, s, verb, d.pick(BOTH))
    head = described(head, german(inner, "final", RELATIVE[DAT][gender]), f"whom {english(inner)}")
    return told(d, p, partial(clause, frames=WHAT_PEOPLE_DO, modes=BOTH, s=head, short=True))


def relative_object(d: Draw, p: Pool) -> Sentence:
    """Das Buch, das der Mann gelesen hat, ist interessant."""
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass or not p.adjectives[noun]:
        verb, noun = choose(d, p.verbs["object"])
    adjective = d.pick(p.adjectives[noun])
    d.combine(adjective.lemma, noun.lemma)
    (head, gender), s = head_of(d, p, noun, NEVER), subject(d, p)
    inner = Clause(s, s, verb, d.pick(BOTH if "+" in verb.letters else ANY))
    head = described(head, german(inner, "final", RELATIVE[ACC][gender]), f"that {english(inner)}")
    main = Clause(head, head, SEIN, d.pick(BOTH), tail=adjective.lemma, en=adjective.degrees[0].en)
    return german(main), english(main), "."


def relative_last(d: Draw, p: Pool) -> Sentence:
    """Ich kenne den Mann, der das Buch gelesen hat."""
    s, (verb, noun) = subject(d, p), choose(d, p.verbs["known"])
    de, en, (_, plural) = phrase(d, p, noun, ACC, AS_HEAD)
    gender = PLURAL if plural else noun.gender
    pronoun = Subject(RELATIVE[NOM][gender], "who", 5 if plural else 2, (2, 3, -1, 6)[gender])
    inner = clause(d, p, WHAT_PEOPLE_DO, ANY, pronoun, short=True)
    main = Clause(s, s, verb, "present", objects=f"{de}, {german(inner, 'final')}", en=f"{en} {english(inner)}")
    return german(main), english(main), "."


WHAT_PEOPLE_DO = ("object", "object", "object", "place", "go", "explain", "dative")


class Pattern(NamedTuple):
    """A sentence pattern: its weight among those with as many clauses, and what builds a sentence of it."""

    name: str
    weight: int
    build: Build


def act(
    modes: Modes, frames: tuple[str, ...] = ACTS, short: bool = False, neg: str = "", limit: str = ""
) -> partial[Clause]:
    return partial(clause, frames=frames, modes=modes, short=short, neg=neg, limit=limit)


OBJECTS = ("object", "person", "dative")
ONE_CLAUSE = (
    Pattern("present", 3, partial(told, make=act(NOW))),
    Pattern("perfect", 4, partial(told, make=act(PAST))),
    Pattern("future", 3, partial(told, make=act(FUTURE))),
    Pattern("modal", 4, partial(told, make=act(MODAL))),
    Pattern("modal past", 3, partial(told, make=act(MODAL_PAST))),
    Pattern("happening now", 2, partial(told, make=act(("progressive",), ("active",)))),
    Pattern("since when", 2, partial(told, make=act(("since",), ("place",)))),
    Pattern("liking to", 2, partial(told, make=act(("gern",), ("active", "place")))),
    Pattern("not, present", 2, partial(told, make=act(NOW, neg="nicht"))),
    Pattern("not, perfect", 2, partial(told, make=act(PAST, neg="nicht"))),
    Pattern("not, modal", 2, partial(told, make=act(MODAL, neg="nicht"))),
    Pattern("no object", 3, partial(told, make=act(ANY, ("object", "give"), neg="kein"))),
    Pattern("time first, present", 2, partial(time_first, make=act(NOW))),
    Pattern("time first, perfect", 3, partial(time_first, make=act(PAST))),
    Pattern("time first, modal", 3, partial(time_first, make=act(MODAL + FUTURE + MODAL_PAST))),
    Pattern("opening adverb", 3, partial(opener_first, make=act(ANY))),
    Pattern("object first, present", 2, partial(object_first, make=act(NOW, ("masculine",), limit="first"))),
    Pattern("object first, perfect", 2, partial(object_first, make=act(PAST, ("masculine",), limit="first"))),
    Pattern("object first, modal", 1, partial(object_first, make=act(MODAL, ("masculine",), limit="first"))),
    Pattern("dative first", 2, partial(object_first, make=act(BOTH, ("dative",), limit="first"))),
    Pattern("place first", 2, partial(place_first, make=act(ANY, ("place",)))),
    Pattern("question, present", 3, partial(asked, make=act(NOW, short=True))),
    Pattern("question, perfect", 3, partial(asked, make=act(PAST, short=True))),
    Pattern("question, modal", 2, partial(asked, make=act(MODAL + FUTURE, short=True))),
    Pattern("question, where", 3, partial(asked, make=act(ANY, OBJECTS, short=True), asks=WHERE)),
    Pattern("question, who", 2, partial(who, make=act(ANY))),
    Pattern("question, which", 2, partial(which, of=choices("which"))),
    Pattern("question, how many", 2, partial(which, of=choices("how many+"))),
    Pattern("question, quality", 1, partial(asked, make=partial(quality, modes=BOTH))),
    Pattern("passive, present", 2, partial(told, make=partial(passive, modes=NOW))),
    Pattern("passive, past", 2, partial(told, make=partial(passive, modes=PAST))),
    Pattern(
        "passive, modal", 2, partial(told, make=partial(passive, modes=("must", "can", "should", "future", "had to")))
    ),
    Pattern("quality", 2, partial(told, make=partial(quality, modes=BOTH))),
    Pattern("not, quality", 1, partial(told, make=partial(quality, modes=BOTH, neg="nicht"))),
    Pattern("comparison, more", 3, partial(told, make=partial(quality, modes=BOTH, kind="more"))),
    Pattern("comparison, equal", 2, partial(told, make=partial(quality, modes=BOTH, kind="equal"))),
    Pattern("pleasing", 1, partial(told, make=partial(pleasing, modes=BOTH))),
    Pattern("not, pleasing", 1, partial(told, make=partial(pleasing, modes=BOTH, neg="nicht"))),
    Pattern("pleasing, dative first", 1, partial(object_first, make=partial(pleasing, modes=BOTH))),
    Pattern("belonging", 1, partial(told, make=partial(belonging, modes=BOTH))),
    Pattern("there is", 2, partial(exists, of=AS_FOUND)),
    Pattern("there is no", 1, partial(exists, of=choices("no, no+"))),
    Pattern("is there", 1, partial(exists, of=AS_FOUND, ask=True)),
    Pattern("command", 2, partial(command, frames=("active", "put", "give"))),
    Pattern("not, command", 1, partial(command, frames=("active",), neg="nicht")),
)
TWO_CLAUSES = (
    Pattern("that", 4, that),
    Pattern("that, asked", 1, partial(that, ask=True)),
    Pattern("that, impersonal", 2, impersonal),
    Pattern("whether", 3, partial(whether, asks=(("ob", "whether"),))),
    Pattern("indirect question", 3, partial(whether, asks=WHERE)),
    Pattern("because last", 3, partial(last, link=("weil", "because"), main=ANY, sub=ANY)),
    Pattern("because first", 2, partial(first, link=("weil", "because"), main=ANY, sub=ANY)),
    Pattern("although last", 1, partial(last, link=("obwohl", "although"), main=ANY, sub=ANY)),
    Pattern("although first", 2, partial(first, link=("obwohl", "although"), main=ANY, sub=ANY)),
    Pattern("if last", 1, partial(last, link=("wenn", "if"), main=("future", "can", "must", "should"), sub=NOW)),
    Pattern("if first", 3, partial(first, link=("wenn", "if"), main=("future", "can", "must", "present"), sub=NOW)),
    Pattern("before", 2, partial(last, link=("bevor", "before"), main=PAST, sub=PAST)),
    Pattern("after", 2, partial(first, link=("nachdem", "after"), main=PAST, sub=PLUPERFECT)),
    Pattern("while", 1, partial(last, link=("während", "while"), main=NOW, sub=NOW)),
    Pattern("so that", 1, partial(last, link=("damit", "so that"), main=("present", "must"), sub=("can",))),
    Pattern("but", 2, partial(joined, link=(", aber", ", but"), modes=ANY)),
    Pattern("and", 2, partial(joined, link=(" und", ", and"), modes=ANY)),
    Pattern("for", 2, partial(joined, link=(", denn", " because"), modes=ANY)),
    Pattern("infinitive", 3, partial(infinitive, kind="")),
    Pattern("infinitive of purpose", 2, partial(infinitive, kind="um")),
    Pattern("infinitive without", 1, partial(infinitive, kind="ohne")),
    Pattern("relative, subject", 3, relative_subject),
    Pattern("relative, dative", 1, relative_dative),
    Pattern("relative, object", 3, relative_object),
    Pattern("relative, last", 2, relative_last),
)
PATTERNS = ONE_CLAUSE + TWO_CLAUSES
DRAWN = tuple([row for row in rows for _ in range(row.weight)] for rows in (ONE_CLAUSE, TWO_CLAUSES))


def spell(d: Draw, p: Pool, chosen: Pattern) -> Pair:
    """A sentence of the pattern, with its capital and closing mark."""
    de, en, mark = chosen.build(d, p)
    return f"{de[0].upper()}{de[1:]}{mark}", f"{en[0].upper()}{en[1:]}{mark}"


def generate(d: Draw, split: str) -> Pair:
    """One row of a split in German and English; `d.combinations` then holds the row's combinations."""
    chosen = d.pick(DRAWN[d.below(100) < TWO_CLAUSE_SHARE])
    return spell(d, pool(split), chosen)
