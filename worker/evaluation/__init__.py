"""Reading labelled examples, and measuring on them how good the labels of a model are."""
