"""One module a study: a grid of settings and seeds, run through world, lift and answers, into records."""
