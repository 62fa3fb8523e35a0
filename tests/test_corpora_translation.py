"""Test the generated German-English corpus: its size, grammar and splits, and that a dictionary cannot solve it."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import sacrebleu

from trainer.corpora import SPLITS, clauses, embedded_rows, phrases
from trainer.corpora import translation as grammar
from trainer.corpora.draw import split_of
from trainer.errors import DataError

ROWS = 5000


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, str]]]:
    return {split: list(embedded_rows("translation", split, ROWS, 0, 0, 1)) for split in SPLITS}


def sentences_of(split: str, row: int, seed: int = 0) -> grammar.Sentences:
    return grammar.Sentences(split, "translation", seed, split, row)


def words(text: str) -> list[str]:
    """Return words and punctuation, with the first letter in lower case."""
    return re.findall(r"\w+(?:'\w*)?|[^\w\s]", text[:1].lower() + text[1:])


def sentence(tokens: list[str]) -> str:
    text = re.sub(r" ([.,!?])", r"\1", " ".join(token for token in tokens if token))
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------------------------ contents
def test_at_least_300_lemmas_and_40_patterns() -> None:
    verbs = {verb.lemma for verbs in phrases.VERBS.values() for verb in verbs}
    nouns = {noun.lemma for noun in phrases.NOUNS}
    adjectives = {adjective.lemma for adjective in phrases.ADJECTIVES}
    others = {name.de for name in phrases.NAMES}
    others |= {de for table in ("numbers", "frequency") for de, _ in phrases.PAIRS[table]}
    assert len(verbs | nouns | adjectives | others) >= 300
    assert min(len(verbs), len(nouns), len(adjectives)) >= 50
    assert len(grammar.PATTERNS) >= 40


def test_every_content_lemma_is_trained_and_every_pattern_can_be_spelled_in_every_split() -> None:
    seen: Counter[str] = Counter()
    for row in range(ROWS):
        sentences = sentences_of("train", row)
        sentences.row()
        seen.update(itertools.chain.from_iterable(sentences.combinations))
    framed = [verb for frame in clauses.FRAMES for verb in phrases.VERBS.get(frame, [])]
    for word in [*framed, *phrases.ADJECTIVES]:
        assert seen[word.lemma] >= 3, f"{word.lemma} is in {seen[word.lemma]} of {ROWS} training rows"
    for (name, pattern), split in itertools.product(grammar.PATTERNS.items(), SPLITS):
        de, en = grammar.Sentences(split, name, split).spell(pattern)
        assert de[-1] == en[-1]
        assert de[-1] in ".?!", name


def test_sentences_are_short_and_well_formed(corpus: dict[str, list[dict[str, str]]]) -> None:
    rows = corpus["train"]
    lengths = [len(row["de"].split()) for row in rows]
    assert 7 <= np.mean(lengths) <= 11
    assert np.quantile(lengths, 0.99) <= 20
    for row in rows:
        for text in row.values():
            assert re.fullmatch(r"[A-ZÄÖÜ][^.?!]*[.?!]", text), text
            assert "  " not in text and " ," not in text and ",," not in text, text
    share = sum("," in row["de"] or " und " in row["de"] for row in rows) / len(rows)
    assert share == pytest.approx(grammar.TWO_CLAUSE_SHARE / 100, abs=0.03)


def test_english_articles_and_german_commas(corpus: dict[str, list[dict[str, str]]]) -> None:
    for row in corpus["train"]:
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", row["en"]), row["en"]
        assert not re.search(r"[^,] (dass|weil|ob|obwohl|wenn|bevor|damit|denn|aber) ", row["de"]), row["de"]
        assert not re.search(r"(?<!^)\bSie\b", row["de"]), f"polite Sie in {row['de']}"
        assert not re.search(r"\b(in dem|in das|zu dem|zu der|von dem)\b", row["de"]), row["de"]


def test_english_follows_from_german(corpus: dict[str, list[dict[str, str]]]) -> None:
    translations: dict[str, set[str]] = defaultdict(set)
    for row in itertools.chain.from_iterable(corpus.values()):
        translations[row["de"]].add(row["en"])
    assert not {de: en for de, en in translations.items() if len(en) > 1}


# --------------------------------------------------------------------------------------------------- rows and splits
def test_a_row_depends_on_its_key_only() -> None:
    pairs = [grammar.row("train", row) for row in range(50)]
    assert [grammar.row("train", row) for row in reversed(range(50))] == pairs[::-1]
    assert list(embedded_rows("translation", "train", 50, 0, 0, 1)) == pairs
    assert [grammar.row("train", row, seed=1) for row in range(50)] != pairs
    assert [grammar.row("test", row) for row in range(50)] != pairs


def test_shards_split_the_rows() -> None:
    all_rows = list(embedded_rows("translation", "validation", 103, 3, 0, 1))
    shards = [list(embedded_rows("translation", "validation", 103, 3, shard, 4)) for shard in range(4)]
    assert [len(shard) for shard in shards] == [26, 26, 26, 25]
    assert [row for group in itertools.zip_longest(*shards) for row in group if row] == all_rows


def test_few_rows_repeat(corpus: dict[str, list[dict[str, str]]]) -> None:
    for split, rows in corpus.items():
        assert len({row["de"] for row in rows}) >= 0.98 * len(rows), split


def test_combinations_of_a_split_never_occur_in_another(corpus: dict[str, list[dict[str, str]]]) -> None:
    used: dict[str, set[tuple[str, str]]] = {split: set() for split in SPLITS}
    for split, seed in itertools.product(SPLITS, (0, 1)):
        for row in range(2000):
            sentences = sentences_of(split, row, seed)
            de, _ = sentences.row()
            assert sentences.combinations, f"no combination of {split} in {de!r}"
            used[split].update(sentences.combinations)
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]
    assert len(used["test"]) > 300
    assert all(split_of("translation", *combination) == split for split in SPLITS for combination in used[split])
    texts = {split: {row["de"] for row in rows} for split, rows in corpus.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]


def test_verb_and_object_of_a_test_text_never_occur_together_in_training(
    corpus: dict[str, list[dict[str, str]]],
) -> None:
    """Compare the texts, not the generator's record: clauses that end with a participle, and their nouns."""
    participles = {phrases.conjugate(v, "past").right for table in phrases.VERBS.values() for v in table} - {""}
    others = ("person", "furniture", "place", "event", "weather", "town")
    things = {form: n.lemma for n in phrases.NOUNS if n.kind not in others for form in (*n.de[0], *n.de[1])}
    del things["Uhr"]  # um acht Uhr

    def pairs_of(split: str) -> set[tuple[str, str]]:
        texts = [words(row["de"]) for row in corpus[split] if not re.search(", | und ", row["de"])]
        done = [text for text in texts if len(text) > 2 and text[-2] in participles]
        return {(text[-2], things[word]) for text in done for word in text if word in things}

    assert len(pairs_of("test")) > 50
    assert not pairs_of("train") & pairs_of("test")
    assert not pairs_of("train") & pairs_of("validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reviews_", "train", 5, 0, 0, 1), "no embedded corpus 'reviews_'.*translation"),
        (("translation", "dev", 5, 0, 0, 1), "no split 'dev'.*train, validation, test"),
        (("translation", "train", 0, 0, 0, 1), "rows=0"),
        (("translation", "train", 5, 0, 2, 2), "shard 2 of 2"),
    ],
)
def test_errors_name_the_valid_values(arguments: tuple[str, str, int, int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(embedded_rows(*arguments))


# ------------------------------------------------------------------------------------------------------------- lookup
def best_dictionary(pairs: list[tuple[list[str], list[str]]], rounds: int = 8) -> dict[str, str]:
    """Return the most probable English word of each German one by IBM model 1 (Brown et al. 1993)."""
    de = {word: i for i, word in enumerate(sorted({"", *(w for source, _ in pairs for w in source)}))}
    en = sorted({w for _, target in pairs for w in target})
    place = {word: i for i, word in enumerate(en)}
    cells, slots, slot = [], [], 0
    for source, target in pairs:
        columns = np.array([de[w] for w in ["", *source]])
        for word in target:
            cells.append(columns * len(en) + place[word])
            slots.append(np.full(len(columns), slot))
            slot += 1
    ids, cell = np.unique(np.concatenate(cells), return_inverse=True)
    owner, which = ids // len(en), np.concatenate(slots)
    probability = np.ones(len(ids))
    for _ in range(rounds):
        weight = probability[cell]
        weight /= np.bincount(which, weight)[which]
        count = np.bincount(cell, weight)
        probability = count / np.bincount(owner, count)[owner]
    order = np.argsort(probability)  # so that the best of a word is written last
    best = dict(zip(owner[order].tolist(), (ids[order] % len(en)).tolist(), strict=True))
    return {word: en[best[i]] for word, i in de.items() if i in best}


def bleu(hypotheses: list[str], references: list[str]) -> float:
    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a").score


def test_a_dictionary_stays_far_below_a_model(corpus: dict[str, list[dict[str, str]]]) -> None:
    pairs = [(words(row["de"]), words(row["en"])) for row in corpus["train"]]
    dictionary = best_dictionary(pairs)
    assert dictionary["bücher" if "bücher" in dictionary else "Bücher"] == "books"
    assert dictionary["Berlin"] == "Berlin"
    rows = corpus["test"][:1000]
    guess = [sentence([dictionary.get(word, "") for word in words(row["de"])]) for row in rows]
    score = bleu(guess, [row["en"] for row in rows])
    assert 10 < score <= 45, f"a dictionary reaches BLEU {score:.1f}; the demo model reaches 80"


def test_the_nearest_training_sentence_stays_far_below_a_model(corpus: dict[str, list[dict[str, str]]]) -> None:
    train, rows = [words(row["de"]) for row in corpus["train"]], corpus["test"][:200]
    holders: dict[str, list[int]] = defaultdict(list)
    for i, tokens in enumerate(train):
        for token in set(tokens):
            holders[token].append(i)
    guess = []
    for row in rows:
        tokens = words(row["de"])
        shared = Counter(itertools.chain.from_iterable(holders[token] for token in set(tokens)))
        near = sorted(shared, key=lambda i: -shared[i] / (len(tokens) + len(train[i])))[:20]
        alike = [difflib.SequenceMatcher(None, tokens, train[i], autojunk=False).ratio() for i in near]
        guess.append(corpus["train"][near[int(np.argmax(alike))]]["en"])
    score = bleu(guess, [row["en"] for row in rows])
    assert score <= 45, f"the nearest training sentence reaches BLEU {score:.1f}; the demo model reaches 80"


# ------------------------------------------------------------------------------------------------------------ grammar
DECLENSIONS = """
the alt Mann 0: der alte Mann | den alten Mann | dem alten Mann | des alten Mannes
the jung Frau 0: die junge Frau | die junge Frau | der jungen Frau | der jungen Frau
the klein Haus 0: das kleine Haus | das kleine Haus | dem kleinen Haus | des kleinen Hauses
the müde Kind 1: die müden Kinder | die müden Kinder | den müden Kindern | der müden Kinder
a neu Tisch 0: ein neuer Tisch | einen neuen Tisch | einem neuen Tisch | eines neuen Tisches
a teuer Kleid 0: ein teures Kleid | ein teures Kleid | einem teuren Kleid | eines teuren Kleides
a dunkel Kirche 0: eine dunkle Kirche | eine dunkle Kirche | einer dunklen Kirche | einer dunklen Kirche
this arm Student 0: dieser arme Student | diesen armen Studenten | diesem armen Studenten | dieses armen Studenten
my nett Nachbar 1: meine netten Nachbarn | meine netten Nachbarn | meinen netten Nachbarn | meiner netten Nachbarn
our gut Freund 0: unser guter Freund | unseren guten Freund | unserem guten Freund | unseres guten Freundes
bare frisch Apfel 1: frische Äpfel | frische Äpfel | frischen Äpfeln | frischer Äpfel
bare kalt Wasser 0: kaltes Wasser | kaltes Wasser | kaltem Wasser | kalten Wassers
bare stark Kaffee 0: starker Kaffee | starken Kaffee | starkem Kaffee | starken Kaffees
many billig Auto 1: viele billige Autos | viele billige Autos | vielen billigen Autos | vieler billiger Autos
no rot Tür 0: keine rote Tür | keine rote Tür | keiner roten Tür | keiner roten Tür
every faul Chef 0: jeder faule Chef | jeden faulen Chef | jedem faulen Chef | jedes faulen Chefs
"""
CONJUGATIONS = """
lesen: lese liest liest lest | gelesen hat | zu lesen | reads read reading
essen: esse isst isst esst | gegessen hat | zu essen | eats ate eating
fahren: fahre fährst fährt fahrt | gefahren ist | zu fahren | drives drove driving
arbeiten: arbeite arbeitest arbeitet arbeitet | gearbeitet hat | zu arbeiten | works worked working
öffnen: öffne öffnest öffnet öffnet | geöffnet hat | zu öffnen | opens opened opening
nehmen: nehme nimmst nimmt nehmt | genommen hat | zu nehmen | takes took taking
waschen: wasche wäschst wäscht wascht | gewaschen hat | zu waschen | washes washed washing
genießen: genieße genießt genießt genießt | genossen hat | zu genießen | enjoys enjoyed enjoying
füttern: füttere fütterst füttert füttert | gefüttert hat | zu füttern | feeds fed feeding
reparieren: repariere reparierst repariert repariert | repariert hat | zu reparieren | repairs repaired repairing
besuchen: besuche besuchst besucht besucht | besucht hat | zu besuchen | visits visited visiting
wissen: weiß weißt weiß wisst | gewusst hat | zu wissen | knows knew knowing
haben: habe hast hat habt | hatte | zu haben | has had having
planen: plane planst plant plant | geplant hat | zu planen | plans planned planning
versuchen: versuche versuchst versucht versucht | versucht hat | zu versuchen | tries tried trying
aufmachen: aufmache aufmachst aufmacht aufmacht | aufgemacht hat | aufzumachen | opens opened opening
einladen: einlade einlädst einlädt einladet | eingeladen hat | einzuladen | invites invited inviting
abholen: abhole abholst abholt abholt | abgeholt hat | abzuholen | picks up picked up picking up
übersetzen: übersetze übersetzt übersetzt übersetzt | übersetzt hat | zu übersetzen | translates translated translating
anziehen: anziehe anziehst anzieht anzieht | angezogen hat | anzuziehen | puts on put on putting on
aufstehen: aufstehe aufstehst aufsteht aufsteht | aufgestanden ist | aufzustehen | gets up got up getting up
"""
DEGREES = """
alt: alt old | älter older | ältest oldest
groß: groß big | größer bigger | größt biggest
gut: gut good | besser better | best best
teuer: teuer expensive | teurer more expensive | teuerst most expensive
dunkel: dunkel dark | dunkler darker | dunkelst darkest
müde: müde tired | müder more tired | müdest most tired
kurz: kurz short | kürzer shorter | kürzest shortest
hungrig: hungrig hungry | hungriger hungrier | hungrigst hungriest
rot: rot red
"""


def table(text: str) -> list[tuple[str, str]]:
    return [(head, forms) for head, _, forms in (line.partition(": ") for line in text.strip().splitlines())]


def by_lemma(words: Iterable[Any], lemma: str) -> Any:
    return next(word for word in words if word.lemma == lemma)


@pytest.mark.parametrize(("phrase", "forms"), table(DECLENSIONS))
def test_declension(phrase: str, forms: str) -> None:
    name, adjective, lemma, plural = phrase.split()
    determiner = phrases.DETERMINERS["none" if name == "no" else name]
    degree, noun = by_lemma(phrases.ADJECTIVES, adjective).degrees[0], by_lemma(phrases.NOUNS, lemma)
    cases = [phrases.decline(determiner, noun, case, int(plural), degree)[0] for case in range(4)]
    assert " | ".join(cases) == forms


@pytest.mark.parametrize(("lemma", "forms"), table(CONJUGATIONS))
def test_conjugation(lemma: str, forms: str) -> None:
    """Compare the verb-final forms of ich, du, er, ihr, the perfect, the infinitive with zu, and English."""
    verb = by_lemma(itertools.chain(*phrases.VERBS.values()), lemma)
    present, past = phrases.conjugate(verb, "present"), phrases.conjugate(verb, "past")
    german = " ".join(present.final[person] for person in (0, 1, 2, 4))
    english = f"{present.en[2]} {past.en[2]} {verb.words['ing']}"
    assert " | ".join((german, past.final[2], verb.words["zu"], english)) == forms


@pytest.mark.parametrize(("lemma", "forms"), table(DEGREES))
def test_degrees(lemma: str, forms: str) -> None:
    degrees = by_lemma(phrases.ADJECTIVES, lemma).degrees
    assert " | ".join(f"{predicate} {en}" for _, predicate, en in degrees) == forms


def test_euer_loses_a_vowel_before_an_ending() -> None:
    cases = (("Hund", phrases.NOM), ("Hund", phrases.ACC), ("Katze", phrases.DAT))
    euer = phrases.DETERMINERS["your all"]
    forms = [phrases.decline(euer, by_lemma(phrases.NOUNS, lemma), case, 0)[0] for lemma, case in cases]
    assert forms == ["euer Hund", "euren Hund", "eurer Katze"]


# Checked by a person, one for each pattern: the pattern, the number of the draw, German, and English on the next line.
VERIFIED = """
present 0: Wir lieben um zehn Uhr unsere Königin.
We love our queen at ten o'clock.
perfect 0: Der schwache Polizist hat diese Königin gesehen.
The weak policeman saw this queen.
future 1: Ich werde ihm Orangen in meinem Restaurant bringen.
I will bring him oranges in my restaurant.
modal 0: Der berühmte Polizist darf in einem Laden spielen.
The famous policeman is allowed to play in a store.
modal past 0: Diese Töchter wollten dem gesunden Chef Computer zeigen.
These daughters wanted to show the healthy boss computers.
happening now 1: Anna räumt gerade mein Zimmer auf.
Anna is tidying up my room.
since when 0: Karl tanzt seit neun Jahren hinter dem warmen Theater.
Karl has been dancing behind the warm theater for nine years.
liking to 0: Unser lustiger Fahrer steht gern im Hotel.
Our funny driver likes to stand in the hotel.
not, present 0: Maria schläft nicht in einem Garten.
Maria does not sleep in a garden.
not, perfect 0: Karl hat den Vogel nicht beobachtet.
Karl did not watch the bird.
not, modal 0: Der Junge muss am Nachmittag meine Orange nicht nehmen.
The boy does not have to take my orange in the afternoon.
no object 0: Sie muss einer Richterin keine sauberen Autos leihen.
She does not have to lend a judge any clean cars.
time first, present 0: Jede Woche leihen wir einer Mutter Gedichte.
Every week we lend a mother poems.
time first, perfect 0: Vor zwei Wochen hat dir jeder Schüler ein Kleid geschickt.
Two weeks ago every pupil sent you a dress.
time first, modal 1: Am Abend darf Maria in einer Küche stehen.
In the evening Maria is allowed to stand in a kitchen.
opening adverb 0: Leider versteht der mutige Student den berühmten Brief.
Unfortunately the brave student understands the famous letter.
object first, present 0: Den kalten Fisch der Nachbarn bezahlt der Koch.
The cook pays for the neighbors' cold fish.
object first, perfect 0: Den Vogel hat er selten beobachtet.
He rarely watched the bird.
object first, modal 3: Diesen Stuhl kann dieser Vater verkaufen.
This father can sell this chair.
dative first 0: Dem Bruder dankt mein Mädchen am Freitag vor unserem Büro.
My girl thanks the brother in front of our office on Friday.
place first 0: In der Kirche hat die Königin am Samstag gesessen.
The queen sat in the church on Saturday.
question, present 0: Fängt der Koch wegen der Hitze diese Maus?
Does the cook catch this mouse because of the heat?
question, perfect 0: Hat unser Fahrer acht Schränke neben einen Tisch gestellt?
Did our driver put eight closets next to a table?
question, modal 0: Werden viele Gäste den Polizisten begrüßen?
Will many guests greet the policeman?
question, where 0: Warum bereiten wir langweilige Sitzungen vor?
Why do we prepare boring meetings?
question, who 0: Wer denkt am Montag an die Frau?
Who thinks of the woman on Monday?
question, which 2: Welche Tür macht eine Lehrerin auf?
Which door does a teacher open?
question, how many 1: Wie viele Motorräder muss unser Kollege ausleihen?
How many motorcycles does our colleague have to borrow?
question, quality 3: War die Kamera groß?
Was the camera big?
passive, present 1: Der Salat wird von der Schwester gekauft.
The salad is bought by the sister.
passive, past 0: Mein Artikel wurde vom Fahrer zurückgegeben.
My article was returned by the driver.
passive, modal 0: Die Mäuse müssen am Freitag gefangen werden.
The mice have to be caught on Friday.
quality 3: Das Hemd ist sauber.
The shirt is clean.
not, quality 3: Der Laden ist nicht groß.
The store is not big.
comparison, more 0: Die Lehrerin ist hungriger als der Schüler.
The teacher is hungrier than the pupil.
comparison, equal 0: Die Kurse sind so interessant wie diese Konzerte.
The courses are as interesting as these concerts.
pleasing 3: Die wichtige Hochzeit hat der freundlichen Königin gefallen.
The friendly queen liked the important wedding.
not, pleasing 1: Die Nachricht hat dem Chef nicht gefallen.
The boss did not like the message.
pleasing, dative first 0: Den Studenten gefällt das warme Hotel.
The students like the warm hotel.
belonging 1: Die blauen Bilder gehören meinem Mädchen.
The blue pictures belong to my girl.
there is 0: Im Park gibt es einen Bauern.
There is a farmer in the park.
there is no 0: Hinter unserem Zimmer gibt es keine Tochter.
There is no daughter behind our room.
is there 0: Gibt es vor dem Museum acht Tanten?
Are there eight aunts in front of the museum?
command 1: Legt bitte neue Kerzen auf das Bett!
Please put new candles on the bed!
not, command 6: Macht meine saubere Tür nicht auf!
Do not open my clean door!
that 1: Die müden Söhne glauben, dass sie nächste Woche einem Koch Fleisch bringen müssen.
The tired sons believe that they have to bring a cook meat next week.
that, asked 0: Haben wir gehofft, dass jede Richterin den Freunden Puppen gebracht hat?
Did we hope that every judge brought the friends dolls?
that, impersonal 0: Es ist wichtig, dass dein starkes Mädchen den Lehrerinnen mein Glas gegeben hat.
It is important that your strong girl gave the teachers my glass.
whether 0: Diese Fahrer fragen, ob sie oft den Studenten die Boote der Künstler zeigen.
These drivers ask whether they often show the students the artists' boats.
indirect question 0: Anna hat gefragt, wann sie viele Fahrer gesucht hat.
Anna asked when she looked for many drivers.
because last 0: Er muss vor dem Park lachen, weil er warme Milch genossen hat.
He has to laugh in front of the park because he enjoyed warm milk.
because first 0: Weil sie von meinem nervösen Bauern träumen muss, kann sie den dunklen Park besuchen.
Because she has to dream of my nervous farmer, she can visit the dark park.
although last 0: Diese neugierige Sängerin träumt von ihrem starken Arzt, obwohl Karl die Tochter beobachtet hat.
This curious singer dreams of her strong doctor although Karl watched the daughter.
although first 0: Obwohl sie die Geschenke braucht, hat diese Mutter oft einer Königin geholfen.
Although she needs the gifts, this mother often helped a queen.
if last 0: Die hungrigen Polizisten sollen an den starken Schüler denken, wenn Martin die Puppen ausleiht.
The hungry policemen should think of the strong pupil if Martin borrows the dolls.
if first 0: Wenn die höflichen Köche den Schüler fragen, bezahlt sie jede Woche dieses Fleisch.
If the polite cooks ask the pupil, she pays for this meat every week.
before 2: Julia hat die Tanten verstanden, bevor der Vater acht Zeitschriften versteckt hat.
Julia understood the aunts before the father hid eight magazines.
after 0: Nachdem sie reich gewesen waren, haben zehn Nachbarn nach der Hochzeit den Chef verstanden.
After they had been rich, ten neighbors understood the boss after the wedding.
while 0: Sie lacht neben diesem Bahnhof, während sie manchmal auf dem großen Sofa schläft.
She laughs next to this station while she sometimes sleeps on the big sofa.
so that 0: Sie kennen am Abend viele kalte Parks, damit ich ihr gratulieren kann.
They know many cold parks in the evening so that I can congratulate her.
but 0: Du liebst die Enten, aber der höfliche Koch will mit seinem Jungen sprechen.
You love the ducks, but the polite cook wants to talk to his boy.
and 0: Die lustigen Kundinnen wollen einige Tomaten bezahlen und sie können mit einer Mutter sprechen.
The funny customers want to pay for some tomatoes, and they can talk to a mother.
for 1: Ich muss in den Laden laufen, denn ihr habt ihnen gedroht.
I have to run into the store because you threatened them.
infinitive 3: Mein kranker Kollege hat versucht, der Richterin die Computer zu erklären.
My sick colleague tried to explain the computers to the judge.
infinitive of purpose 1: Zwei Mütter haben in diesem Zimmer gesessen, um ein Fenster zu holen.
Two mothers sat in this room to fetch a window.
infinitive without 0: Maria fährt manchmal zur Bibliothek, ohne neben der Küche zu spielen.
Maria sometimes drives to the library without playing next to the kitchen.
relative, subject 0: Das kranke Kind, das einen Schlüssel wegwerfen muss, hat neben der Fabrik geschlafen.
The sick child who has to throw away a key slept next to the factory.
relative, dative 0: Die Kundin, der Clara gratuliert, zieht den Mantel der Frauen aus.
The customer whom Clara congratulates takes off the women's coat.
relative, object 0: Der Mantel, den meine glücklichen Tanten ausziehen, ist lang.
The coat that my happy aunts take off is long.
relative, last 0: Sie beobachtet die Polizisten, die ihr ihren Computer erklären können.
She watches the policemen who can explain their computer to her.
"""


def test_every_pattern_has_a_verified_pair() -> None:
    lines = VERIFIED.strip().splitlines()
    verified = {}
    for head, english in zip(lines[::2], lines[1::2], strict=True):
        place, _, german = head.partition(": ")
        name, _, number = place.rpartition(" ")
        verified[name, int(number)] = (german, english)
    assert {name for name, _ in verified} == set(grammar.PATTERNS)
    assert len(verified) >= 40
    for (name, number), pair in verified.items():
        assert grammar.Sentences("train", "spot", name, number).spell(grammar.PATTERNS[name]) == pair
