"""The metrics of regression: names, meanings and directions. With several targets each is a mean over them."""

from trainer.task.metrics import Metric

SPECS = (
    Metric("pearson", "max", "Pearson", "Linear correlation of prediction and truth: 1 is perfect.", scale=(-1, 1)),
    Metric("spearman", "max", "Spearman", "Correlation of the ranks: 1 is the true order.", scale=(-1, 1)),
    Metric("r2", "max", "R²", "Share of the variance that is predicted; the mean as answer gives 0.", scale=(0, 1)),
    Metric("mae", "min", "MAE", "Mean absolute error, in the unit of the target.", "{:.4g}"),
    Metric("mse", "min", "MSE", "Mean squared error, in the squared unit of the target.", "{:.4g}"),
    Metric("loss", "min", "Loss", "Mean loss of a target, standardized by the training rows."),
)
