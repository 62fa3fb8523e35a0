"""chrF++ of documents (Popović 2017): the sentences of a document are scored as one text.

A translation that orders sentences otherwise, or moves a word from one to the next, loses less than by sentences. The
interval is that of a bootstrap over documents, which are independent of each other where sentences are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF

from trainer.data.paths import MISSING, value_at
from trainer.data.roles import Text
from trainer.data.sources import Split, open_split
from trainer.errors import DataError
from trainer.evaluation.predictions import ordered
from trainer.evaluation.resampling import bootstrap_interval
from trainer.recipe.sections import DataConfig

ROLE = "document"


def documents_of(data: DataConfig, split: Split, column: str) -> dict[str, str]:
    """Return the name of the document of each row, by the id of the row.

    Args:
        data: of the recipe.
        split: an evaluated one.
        column: with the names, as `evaluation.document_column`.

    Raises:
        DataError: the rows have no such column, or one has no value.
    """
    reading = data.model_copy(update={"columns": {**data.columns, ROLE: column}})
    source = open_split(reading, split, {ROLE: Text()})
    found: dict[str, str] = {}
    for row in source or ():
        value = value_at(row.values, column)
        row_id = source.name_of(row.id)  # type: ignore[union-attr]
        if value is MISSING or value is None or value == "":
            there = ", ".join(map(str, row.values)) or "none"
            raise DataError(
                f"evaluation.document_column={column!r}: row {row_id} has no value there; columns: {there}. Name the "
                "column with the documents, or leave the key out"
            )
        found[row_id] = str(value)
    return found


def score_documents(
    records: Iterable[Mapping[str, Any]], documents: Mapping[str, str], resamples: int
) -> dict[str, Any]:
    """Return document_chrf (percent), its interval and signature, and the number of documents.

    Args:
        records: with `id`, `target` and `prediction`, in any order.
        documents: name of the document by id. The rows of a document follow each other.
        resamples: behind the interval; 0 = none.

    Raises:
        DataError: the rows of a document are not together.
    """
    scorer = CHRF(word_order=2)
    # an inner method of sacreBLEU, as in trainer.evaluation.metrics: counts of a document, of which it makes the score
    counts = [scorer._extract_corpus_statistics([made], [[target]])[0] for made, target in _texts(records, documents)]
    table = np.array(counts, dtype=np.float64)

    def score(sums: Any) -> float:
        return float(scorer._compute_score_from_stats([int(count) for count in sums]).score)

    found: dict[str, Any] = {
        "document_chrf": score(table.sum(axis=0)),
        "document_chrf_signature": str(scorer.get_signature()),
        "documents": len(table),
    }
    if resamples:
        found["document_chrf_ci95"] = bootstrap_interval(table, score, resamples)
    return found


def _texts(records: Iterable[Mapping[str, Any]], documents: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield prediction and target of each document."""
    seen: set[str] = set()
    for name, rows in groupby(ordered(records), key=lambda record: documents[record["id"]]):
        if name in seen:
            raise DataError(
                f"evaluation.document_column: the rows of document {name[:60]!r} are not together; sort the file by "
                "document, with sentences in their order"
            )
        seen.add(name)
        pairs = [(record["prediction"], record["target"]) for record in rows]
        yield " ".join(made for made, _ in pairs), " ".join(target for _, target in pairs)
