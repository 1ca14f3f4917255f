"""The quality lab: the paper's ablations, and what users train instead, in the emoji world.

subjects.py   what is learned: a concept of the world, or a folder of pictures
recipe.py     how the demo trains, which is how the lab does
methods.py    what a way of training and using a concept must offer; Perfusion itself
rejected.py   the two designs that the paper rejects; they live here alone
rivals/       textual inversion, the host's LoRA node, fine-tuning of K/V and of the whole UNet
ablations.py  what is compared, and which direction the paper reports
exams.py      identity and text alignment of a picture, by the judge
measure.py    trains and measures, with a cache that survives a stop
figures.py    fronts, hypervolume, bootstrap intervals
tuning.py     rates of every method, chosen alike
report.py     lab.json, plots and contact sheet
tables.py     lab.json as tables, lab.md
publish.py    what docs/lab/ shows of a run
"""
