"""The metrics of classification: names, meanings and directions."""

from trainer.task.metrics import Metric

SPECS = (
    Metric(
        "accuracy",
        "max",
        "Accuracy",
        "Share of rows whose predicted class is the true one.",
        "{:.1%}",
        (0, 1),
        share_of_rows=True,
    ),
    Metric(
        "f1",
        "max",
        "F1, macro",
        "Precision and recall of a class in one number, averaged over the classes that occur.",
        scale=(0, 1),
    ),
    Metric(
        "mcc",
        "max",
        "MCC",
        "Matthews correlation of truth and prediction: 1 is perfect, 0 is guessing.",
        scale=(-1, 1),
    ),
    Metric(
        "roc_auc",
        "max",
        "ROC-AUC",
        "Chance that a row of a class gets a higher probability for it than a row of another.",
        scale=(0, 1),
    ),
    Metric("ece", "min", "ECE", "Expected calibration error: mean gap of confidence and accuracy.", scale=(0, 1)),
    Metric("loss", "min", "Loss", "Mean negative log probability of the true class, in nats."),
    Metric("precision", "max"),
    Metric("recall", "max"),
    Metric("average_precision", "max"),
)
