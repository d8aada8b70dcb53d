"""What a person types: one thin module a command."""

import gc

# Hundreds of files under way are thousands of live objects, hardly ever in cycles: looking for cycles after every 700 new ones, as Python does, took
# 8 % of a first pull's CPU time. Set before anything else is loaded, for modules are such objects too.
gc.set_threshold(50_000, 20, 100)
