"""The native decoder: families as data, weights, one layer, the steps that run it."""
