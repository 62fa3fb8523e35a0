"""The metrics of token classification: names, meanings and directions."""

from trainer.task.metrics import Metric

SPECS = (
    Metric(
        "f1",
        "max",
        "Entity F1, micro",
        "Precision and recall in one number. An entity counts if its boundaries and its type are right.",
        "{:.1%}",
        (0, 1),
    ),
    Metric("precision", "max", "Precision", "Share of the predicted entities that are right.", "{:.1%}", (0, 1)),
    Metric("recall", "max", "Recall", "Share of the true entities that were found.", "{:.1%}", (0, 1)),
    Metric(
        "macro_f1", "max", "Entity F1, macro", "F1 of a type, averaged over the types that occur.", "{:.1%}", (0, 1)
    ),
    Metric("loss", "min", "Loss", "Mean negative log probability of the true tag, in nats."),
)
