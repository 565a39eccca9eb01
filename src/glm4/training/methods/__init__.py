"""Methods: which numbers of a model are trained, and how they are kept."""
