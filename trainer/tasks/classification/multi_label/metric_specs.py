"""The metrics of several labels per row: names, meanings and directions."""

from trainer.task.metrics import Metric

SPECS = (
    Metric(
        "f1_micro",
        "max",
        "F1, micro",
        "Precision and recall of all predicted labels in one number; frequent labels count more.",
        scale=(0, 1),
    ),
    Metric(
        "f1_macro",
        "max",
        "F1, macro",
        "Precision and recall of a label in one number, averaged over all labels.",
        scale=(0, 1),
    ),
    Metric(
        "subset_accuracy",
        "max",
        "Subset accuracy",
        "Share of rows whose predicted labels are exactly the true ones.",
        "{:.1%}",
        (0, 1),
        share_of_rows=True,
    ),
    Metric(
        "hamming_loss", "min", "Hamming loss", "Share of all decisions (row and label) that are wrong.", scale=(0, 1)
    ),
    Metric(
        "lrap",
        "max",
        "LRAP",
        "Label-ranking average precision: how high the true labels of a row rank among all.",
        scale=(0, 1),
    ),
    Metric("loss", "min", "Loss", "Mean binary cross-entropy of a label, in nats."),
    Metric("precision_micro", "max"),
    Metric("recall_micro", "max"),
)
