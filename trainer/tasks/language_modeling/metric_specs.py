"""The metrics of language modeling: names, meanings and directions."""

from trainer.task.metrics import Metric

PERPLEXITY = Metric(
    "perplexity",
    "min",
    "Perplexity",
    "Exponential of the loss: as hard as a choice among so many equally probable tokens. Depends on the tokenizer.",
    "{:.2f}",
)
ACCURACY = Metric(
    "accuracy", "max", "Accuracy", "Share of tokens for which the most probable one was right.", "{:.1%}", (0, 1)
)
LOSS = Metric("loss", "min", "Loss", "Mean negative log probability of a token, in nats.")
MASKED_SPECS = (PERPLEXITY, ACCURACY, LOSS)
SPECS = (
    PERPLEXITY,
    Metric(
        "bits_per_byte", "min", "Bits per byte", "Loss per byte of the text in bits: comparable between tokenizers."
    ),
    Metric(
        "word_perplexity",
        "min",
        "Perplexity per word",
        "Perplexity counted per word at white space: comparable between tokenizers.",
        "{:.1f}",
    ),
    ACCURACY,
    LOSS,
)
