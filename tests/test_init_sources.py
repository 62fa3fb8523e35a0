"""`rankzero init` on URLs, data sets of the Hub, odd files and other languages, and a training of what it writes."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hub_helpers
import pytest
from slow import slow_except
from typer.testing import CliRunner

from launch.cli import app
from trainer import train
from trainer.data import hub_datasets
from trainer.data.language import language_of, languages_of
from trainer.data.roles import list_in
from trainer.errors import DataError, UsageError
from trainer.models import suggested
from trainer.recipe import read_yaml
from trainer.recipe_loading import load_recipe

DRAW = random.Random(5)
ENGLISH = "the app does not start after my update and we want a refund for this order please because it is broken"
GERMAN = "die App startet nicht nach dem Update und wir wollen das Geld für diese Bestellung bitte weil sie kaputt ist"
LABELS = ("billing", "delivery", "technical")
TEXTS = {
    "cs": "Objednávka ještě nedorazila a nikdo mi neodpovídá, který je problém?",
    "da": "Hvad er der sket med min ordre? Jeg har ikke fået noget af jer efter to uger.",
    "de": "Meine Bestellung ist noch nicht angekommen und ich warte seit zwei Wochen auf eine Antwort.",
    "en": "My order has not arrived and I have been waiting for an answer for two weeks.",
    "es": "El pedido no ha llegado y los de la tienda son muy lentos, pero esperamos una respuesta.",
    "fi": "Tilaus ei ole tullut, ja minä olen odottanut kaksi viikkoa, mutta hän ei vastaa kun soitan.",
    "fr": "Ma commande n'est pas arrivée et cela fait deux semaines que nous attendons une réponse.",
    "hu": "A rendelésem még nem érkezett meg, és két hete várok egy válaszra, de nem jön.",
    "it": "Il mio ordine non è arrivato e da due settimane sono in attesa di una risposta.",
    "nl": "Mijn bestelling is nog niet aangekomen en ik wacht al twee weken op een antwoord van het bedrijf.",
    "pl": "Moje zamówienie jeszcze nie dotarło i nie wiem, co się z nim stało.",
    "pt": "O meu pedido não chegou e há duas semanas que espero uma resposta, mas não há nada.",
    "ro": "Comanda mea nu a sosit și sunt două săptămâni de când aștept un răspuns din partea lor.",
    "sv": "Min beställning har inte kommit och jag har väntat på ett svar i två veckor.",
    "tr": "Siparişim daha gelmedi ve iki haftadır bir cevap bekliyorum ama kimse yok.",
    "vi": "Đơn hàng của tôi không được giao và tôi đã chờ câu trả lời trong hai tuần.",
    "ar": "لم يصل الطلب من المتجر إلى البيت في هذا الأسبوع",
    "fa": "سفارش من هنوز نرسیده است و از این فروشگاه برای آن پاسخ می خواهم",
    "bg": "Поръчката ми не е пристигнала и чакам отговор от две седмици, но няма да се отказвам.",
    "ru": "Мой заказ ещё не пришёл, и я уже две недели не получаю ответа из магазина.",
    "uk": "Моє замовлення ще не прийшло, і я вже два тижні чекаю на відповідь від магазину.",
    "el": "Η παραγγελία μου δεν έφτασε.", "he": "ההזמנה שלי לא הגיעה.", "hi": "मेरा ऑर्डर नहीं आया है।",
    "ja": "注文した商品がまだ届きません。", "ko": "주문한 상품이 아직 오지 않았습니다.", "th": "สินค้ายังไม่มาถึง",
    "zh": "我订的商品还没有到。",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    DRAW.seed(5)
    for cached in (hub_datasets._place, hub_datasets._commit):  # of other tests
        cached.cache_clear()
    return tmp_path


def text(words: str = ENGLISH, count: int = 9) -> str:
    return " ".join(DRAW.choices(words.split(), k=count)).capitalize() + "."


def tickets(rows: int = 90, words: str = ENGLISH) -> list[dict[str, Any]]:
    return [{"text": text(words), "label": LABELS[n % 3]} for n in range(rows)]


def write_csv(path: str, rows: list[dict[str, Any]], header: bool = True, encoding: str = "utf-8", **more: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), **more)
        if header:
            writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def init(*words: str) -> tuple[dict[str, Any], str]:
    """Run the command. Return the values of the recipe, which must be valid, and what is printed."""
    done = CliRunner().invoke(app, ["init", *words, "-o", "made.yaml", "--force"])
    if done.exception is not None:
        raise done.exception
    load_recipe("made.yaml")
    return read_yaml(Path("made.yaml")), " ".join(done.stdout.split())


# -- URLs --------------------------------------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


class _NoIndex(_Quiet):
    def list_directory(self, path: Any) -> None:
        self.send_error(403)


@pytest.fixture
def serve(here: Path) -> Iterator[Callable[..., str]]:
    """Return a function that serves the folder over HTTP and returns its URL."""
    pytest.importorskip("aiohttp")
    servers: list[ThreadingHTTPServer] = []

    def start(handler: type[_Quiet] = _Quiet) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(here / "www"))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_file_of_a_web_server_with_its_neighbors(serve: Callable[..., str]) -> None:
    write_csv("www/mail/train.csv", tickets())
    write_csv("www/mail/test.csv", tickets(12))
    root = f"{serve()}/mail"
    for path in (f"{root}/train.csv", root, f"{root}/"):
        values, _ = init(path)
        data = values["data"]
        assert (data["root"].rstrip("/"), data["train"], data["test"]) == (root, "train.csv", "test.csv")
        assert values["name"] == "mail" and values["task"]["labels"] == list(LABELS)


def test_a_web_server_that_lists_no_files(serve: Callable[..., str]) -> None:
    write_csv("www/rows.csv", tickets())
    write_csv("www/test.csv", tickets(12))
    url = serve(_NoIndex)
    values, _ = init(f"{url}/rows.csv")
    assert (values["data"]["root"], values["data"]["train"], "test" in values["data"]) == (url, "rows.csv", False)
    with pytest.raises(DataError, match=r"/missing.csv cannot be read: there is no such file, or its store refuses it"):
        init(f"{url}/missing.csv")
    with pytest.raises(UsageError, match=r"has a query.*download the file"):
        init(f"{url}/rows.csv?download=1")


def test_a_password_in_a_url_is_not_printed(serve: Callable[..., str]) -> None:
    write_csv("www/rows.csv", tickets())
    url = serve().replace("http://", "http://ci:TOPSECRET@")
    values, printed = init(f"{url}/rows.csv")
    assert values["data"]["root"] == url, "the recipe needs it"
    assert "TOPSECRET" not in printed and "data.root holds a password" in printed
    assert Path("made.yaml").read_text(encoding="utf-8").count("TOPSECRET") == 1


def test_other_file_systems_are_those_of_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, rows in (("train", 90), ("dev", 20)):
        lines = [json.dumps(row) for row in tickets(rows)]
        memory.pipe(f"/bucket/mail/{name}.jsonl", "\n".join(lines).encode())
    for path in ("memory://bucket/mail", "memory://bucket/mail/train.jsonl"):
        values, _ = init(path)
        assert values["data"]["root"] == "memory://bucket/mail"
        assert (values["data"]["train"], values["data"]["validation"]) == ("train.jsonl", "dev.jsonl")
    with pytest.raises(DataError, match=r"cannot be opened.*foo"):
        init("foo://bucket/rows.csv")


# -- data sets of the Hub ----------------------------------------------------------------------------------------------


def test_a_copy_of_a_data_set_with_configurations(here: Path) -> None:
    (here / "copy").mkdir()
    hub_helpers.write(here / "copy", {"s/a-train.parquet": 60, "long/train-0.parquet": 60, "long/extra-0.parquet": 9,
                                    "long/extra-1.parquet": 9}, hub_helpers.CONFIGS)  # fmt: skip
    values, _ = init("./copy:long")
    assert values["data"]["dataset"] == "./copy:long" and "root" not in values["data"]
    assert (values["data"]["train"], values["data"]["validation"]) == ("train", 0.2)
    assert values["task"]["labels"] == {"0": "0", "1": "1"}
    with pytest.raises(DataError, match=r"no data set that can be read.*has no configuration 'lng'"):
        init("./copy:lng")


def test_a_data_set_in_the_cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(here / "cache"))
    folder = hub_helpers.cached(here / "cache")
    hub_helpers.write(folder, {"data/train-00000-of-00001.parquet": 60, "data/validation-00000-of-00001.parquet": 20})
    values, printed = init(hub_helpers.NAME)
    assert values["data"]["dataset"] == hub_helpers.NAME and values["name"] == "reviews"
    assert (values["data"]["train"], values["data"]["validation"]) == ("train", "validation")
    assert "train: 60 rows, train validation: 20 rows, validation" in printed
    assert init(f"hf://datasets/{hub_helpers.NAME}")[0]["data"]["dataset"] == hub_helpers.NAME


def test_a_name_that_is_neither_a_file_nor_a_data_set() -> None:
    with pytest.raises(DataError, match=r"me/nothing is no file or folder here, and no data set that can be read"):
        init("me/nothing")
    with pytest.raises(UsageError, match=r"me/rows.csv does not exist.*owner/name"):
        init("me/rows.csv")


# -- languages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", TEXTS)
def test_the_language_of_a_sentence(code: str) -> None:
    assert language_of(TEXTS[code]) == code


def test_texts_without_a_clear_language() -> None:
    for unclear in ("", "12345 !!", "Ada ran to Rome", "3f2a-d0l1 https://the.and.of/is", "Anna Kim", "OK"):
        assert language_of(unclear) is None
    assert languages_of(["Ada", "Kim", "42"]) == {}
    assert languages_of([TEXTS["de"], TEXTS["de"], TEXTS["en"], "42"]) == pytest.approx({"de": 2 / 3, "en": 1 / 3})


def test_an_english_model_on_other_texts_is_a_note() -> None:
    write_csv("rows.csv", tickets(words=GERMAN))
    values, printed = init("rows.csv")
    assert f"German 100%; {suggested.ENCODER} was pretrained on English. For others: sentence-transformers/" in printed
    assert values["model"]["name"] == suggested.ENCODER
    assert "pretrained on English" in Path("made.yaml").read_text(encoding="utf-8")
    assert "pretrained on English" not in init("rows.csv", "model.name=some/german-model")[1]


def test_the_multilingual_model_is_taken_if_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggested, "is_here", lambda name: True)
    assert suggested.encoder_for({"de": 0.7, "en": 0.3}) == suggested.MULTILINGUAL
    assert suggested.encoder_for({"en": 0.9, "de": 0.1}) == suggested.encoder_for({}) == suggested.ENCODER
    monkeypatch.setattr(suggested, "is_here", lambda name: False)
    assert suggested.encoder_for({"de": 1.0}) == suggested.ENCODER, "offline"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert suggested.encoder_for({"de": 1.0}) == suggested.MULTILINGUAL, "both need a download"


def test_languages_of_a_translation() -> None:
    write_csv("a.tsv", [{"source": text(GERMAN), "target": text()} for _ in range(60)], delimiter="\t")
    assert init("a.tsv")[0]["task"] == {"kind": "translation", "src_language": "German", "trg_language": "English"}
    write_csv("b.csv", [{"original": text(), "kopie": TEXTS["zh"] * (1 + n % 3) + str(n)} for n in range(60)])
    values, _ = init("b.csv")
    assert values["task"] == {"kind": "translation", "src_language": "Chinese", "trg_language": "English"}
    values, _ = init("b.csv", "data.columns={src: original, trg: kopie}")
    assert values["task"]["trg_language"] == "Chinese", "BLEU splits it as Chinese"
    write_jsonl("c.jsonl", [{"en": text(GERMAN), "de": text()} for _ in range(60)])
    values, printed = init("c.jsonl")
    assert (values["data"]["columns"], values["task"]["src_language"]) == ({"src": "de", "trg": "en"}, "English")
    assert "'de' names German, but the texts look like English: check task.src_language" in printed
    write_jsonl("d.jsonl", [{"hr": TEXTS["cs"] + str(n), "en": text()} for n in range(60)])
    assert init("d.jsonl")[0]["task"]["src_language"] == "hr", "a code that is not known is kept"


# -- odd files ---------------------------------------------------------------------------------------------------------


def test_encodings_are_guessed_by_language_and_are_a_note() -> None:
    for encoding, code in (
        ("cp1252", "de"),
        ("shift_jis", "ja"),
        ("gb18030", "zh"),
        ("cp1251", "ru"),
        ("cp1250", "pl"),
    ):
        write_csv("rows.csv", [{"text": f"{TEXTS[code]} {n} ü" if code == "de" else f"{TEXTS[code]} {n}",
                                "label": LABELS[n % 3]} for n in range(60)], encoding=encoding)  # fmt: skip
        values, printed = init("rows.csv")
        assert values["data"]["encoding"] == encoding
        assert f"data.encoding: init guessed {encoding}, as the file is not UTF-8: it reads" in printed
    assert init("rows.csv", "data.encoding=latin-1")[0]["data"]["encoding"] == "latin-1"


def test_a_first_line_of_a_label_is_no_header() -> None:
    rows = [{"label": LABELS[n % 3], "text": text(count=2)} for n in range(90)]
    write_csv("bare.csv", rows, header=False)
    values, printed = init("bare.csv")
    assert values["data"]["header"] is False and values["data"]["columns"] == {"text": "1", "label": "0"}
    assert "train: 7" in printed and "data.header: init read the first line as a row" in printed
    write_csv("spam.csv", [{"text": text(), "spam": ("spam", "ham")[n % 2]} for n in range(60)])
    assert "header" not in init("spam.csv")[0]["data"], "a header may name one of its labels"


def test_conll_in_a_text_file() -> None:
    sentence = "{} NNP B-NP B-PER\nlives VBZ B-VP O\nin IN B-PP O\nRome NNP B-NP {}\n\n"
    names = ["".join(DRAW.choices("abcdefgh", k=6)) for _ in range(60)]
    content = "-DOCSTART- -X- O O\n\n" + "".join(
        sentence.format(n, "B-LOC" if i % 2 else "O") for i, n in enumerate(names)
    )
    Path("train.txt").write_text(content)
    assert init("train.txt")[0]["task"] == {"kind": "token_classification", "labels": ["LOC", "PER"]}


def test_lists_as_python_prints_them() -> None:
    lists = [["a"], ["a", "it's"], [], ["c"]]
    write_csv("rows.csv", [{"text": text(), "labels": str(lists[n % 4])} for n in range(80)])
    values, printed = init("rows.csv")
    assert values["task"] == {"kind": "classification", "mode": "multi", "labels": ["a", "c", "it's"]}
    assert "bad" not in printed
    assert list_in("['a' 'b']") is None, "of numpy: Python would read ['ab']"
    assert list_in("['\\x']") is list_in("__import__('os')") is list_in("[f()]") is None


def test_ids_urls_and_dates_are_no_texts() -> None:
    row = {"uid": "{:032x}", "link": "https://example.org/the/{:x}/very/long/path?of=a&ticket=and-more"}
    ids = [{name: form.format(DRAW.getrandbits(99)) for name, form in row.items()} for _ in range(60)]
    rows = [one | {"note": text(count=3), "topic": LABELS[n % 3]} for n, one in enumerate(ids)]
    write_csv("rows.csv", rows)
    assert init("rows.csv")[0]["data"]["columns"] == {"text": "note", "label": "topic"}


def test_numbers_may_be_classes_or_a_scale() -> None:
    write_jsonl("stars.jsonl", [{"text": text(), "stars": n % 5 + 1} for n in range(90)])
    values, printed = init("stars.jsonl")
    assert values["task"]["labels"] == {str(n): str(n) for n in range(1, 6)}
    assert (
        "the 5 numbers in column 'stars' are taken as classes; to predict the number: data.columns.value=stars"
        in printed
    )
    assert init("stars.jsonl", "data.columns.value=stars")[0]["task"]["mode"] == "regression"
    write_jsonl("score.jsonl", [{"text": text(), "score": n % 60} for n in range(240)])
    values, printed = init("score.jsonl")
    assert values["task"]["mode"] == "regression" and "for classes: data.columns.label=score" in printed
    assert len(init("score.jsonl", "data.columns.label=score")[0]["task"]["labels"]) == 60
    write_jsonl("intent.jsonl", [{"text": text(), "intent": n % 60} for n in range(240)])
    assert len(init("intent.jsonl")[0]["task"]["labels"]) == 60, "ids of classes"


def test_labels_that_need_a_look() -> None:
    write_csv("rows.csv", [{"text": text(), "label": ["Spam", "spam ", "ham"][n % 3]} for n in range(60)]
              + [{"text": text(), "label": "rare"}])  # fmt: skip
    printed = init("rows.csv")[1]
    assert "labels 'Spam' and 'spam' differ by case or spaces only" in printed
    assert "classes with fewer than 5 rows: rare 1." in printed
    write_csv("flags.csv", [{"text": text(), "toxic": n % 2, "threat": n % 3 % 2} for n in range(60)])
    assert "columns toxic, threat hold 0 and 1, and only 'toxic' is predicted" in init("flags.csv")[1]


def test_files_that_need_a_step_before() -> None:
    write_csv("one.csv", [{"text": text(), "label": "spam"} for _ in range(60)])
    with pytest.raises(UsageError, match=r"column 'label' has one value, 'spam': a classifier needs rows of two"):
        init("one.csv")
    Path("nested.json").write_text(json.dumps({"data": tickets()}))
    with pytest.raises(UsageError, match=r"rows are below the key 'data': jq -c '.\[\"data\"\]\[\]' FILE"):
        init("nested.json")
    Path("sheet.xlsx").write_bytes(b"PK\x03\x04xl/")
    with pytest.raises(DataError, match=r"unknown format '.xlsx'. Save the sheet as CSV"):
        init("sheet.xlsx")
    for name in ("neg", "pos"):
        write_csv(f"classes/{name}.txt", tickets(20))
    with pytest.raises(UsageError, match=r"If a name is the label of its texts, write one CSV file"):
        init("classes")


# -- what is written can be trained ------------------------------------------------------------------------------------

TINY = [
    *("loop.max_steps=1", "evaluation.bootstrap=5", "evaluation.max_rows=6"),
    *("export.model=false", "export.onnx=false", "export.int8=false"),
]
ENCODER = ["model={kind: encoder, d_model: 16, layers: 1, heads: 2, feed_forward: 16}",
           "tokenizer={train: {kind: wordpiece, vocab_size: 200}}"]  # fmt: skip
T5 = ["model={kind: pretrained, architecture: t5, size: tiny}", "tokenizer={train: {kind: unigram, vocab_size: 60}}",
      "evaluation.beam_size=1"]  # fmt: skip


def _gz() -> str:
    write_csv("rows.csv", tickets())
    Path("rows.csv.gz").write_bytes(gzip.compress(Path("rows.csv").read_bytes()))
    Path("rows.csv").unlink()
    return "rows.csv.gz"


def _saved() -> str:
    from datasets import Dataset

    Dataset.from_list(tickets()).save_to_disk("saved")
    return "saved"


def _written(write: Callable[[], object], path: str) -> str:
    write()
    return path


FILES: dict[str, tuple[Callable[[], str], list[str]]] = {
    "semicolon": (lambda: _written(lambda: write_csv("a.csv", tickets(), delimiter=";"), "a.csv"), ENCODER),
    "bom": (lambda: _written(lambda: write_csv("a.csv", tickets(), encoding="utf-8-sig"), "a.csv"), ENCODER),
    "utf-16": (lambda: _written(lambda: write_csv("a.csv", tickets(), encoding="utf-16"), "a.csv"), ENCODER),
    "cp1252": (
        lambda: _written(lambda: write_csv("a.csv", tickets(words=f"{GERMAN} für"), encoding="cp1252"), "a.csv"),
        ENCODER,
    ),
    "no-header": (lambda: _written(lambda: write_csv("a.csv", tickets(), header=False), "a.csv"), ENCODER),
    "gz": (_gz, ENCODER),
    "array": (lambda: _written(lambda: Path("a.json").write_text(json.dumps(tickets(), indent=1)), "a.json"), ENCODER),
    "saved": (_saved, ENCODER),
    "lists": (
        lambda: _written(
            lambda: write_csv(
                "a.csv", [{"text": text(), "labels": str([["a"], ["a", "b"], []][n % 3])} for n in range(60)]
            ),
            "a.csv",
        ),
        ENCODER,
    ),
    "scale": (
        lambda: _written(
            lambda: write_jsonl("a.jsonl", [{"text": text(), "score": n % 60} for n in range(180)]), "a.jsonl"
        ),
        ENCODER,
    ),
    "long": (
        lambda: _written(
            lambda: write_jsonl("a.jsonl", [{"text": text(count=1500), "label": n % 2} for n in range(30)]), "a.jsonl"
        ),
        ENCODER,
    ),
    "few": (lambda: _written(lambda: write_csv("a.csv", tickets(6)), "a.csv"), ENCODER),
    "pairs": (
        lambda: _written(
            lambda: write_csv("a.csv", [{"one": text(GERMAN), "two": text()} for _ in range(60)]), "a.csv"
        ),
        ["evaluation.beam_size=1"],
    ),
    "summaries": (
        lambda: _written(
            lambda: write_jsonl("a.jsonl", [{"article": text(count=40), "highlights": text()} for _ in range(60)]),
            "a.jsonl",
        ),
        T5,
    ),
}


@pytest.mark.parametrize("kind", slow_except(FILES, "cp1252"))
def test_what_is_written_trains(kind: str, here: Path) -> None:
    """One step with a small model and the keys of `data` and `task` as they are written."""
    write, small = FILES[kind]
    init(write())
    run = train("made.yaml", [*TINY, *small], run=here / "run")
    assert run.step == 1 and (here / "run/evaluation").is_dir()
    shutil.rmtree(here / "run")
