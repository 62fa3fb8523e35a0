"""`rankzero push`: upload the model, artifacts, evaluation and card of a finished run to the Hugging Face Hub."""
