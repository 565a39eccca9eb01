"""Batches and servers on a Ray cluster: reaching it and sharing it out; batches."""
