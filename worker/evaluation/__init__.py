"""Labelled examples, and how good the labels of a model are."""
