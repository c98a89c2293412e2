"""A training at one precision with one seed: how it runs, and what is stored of it."""
