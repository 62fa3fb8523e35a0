"""One module for each tracker of accelerate, with the name of the tracker."""
