"""Re-run, measure and question LIFT (Long Input Fine-Tuning); README.md lists the modules in import order."""

import warnings

# tqdm.auto, which the hub's client imports, says so in a notebook without widgets, and then shows the plain bar we want
warnings.filterwarnings("ignore", message="IProgress not found")
