"""The words of the German-English corpus, and the inflection of its nouns and adjectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

NOM, ACC, DAT, GEN = range(4)
PLURAL = 3  # as a gender

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
