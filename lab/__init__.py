"""The quality lab: the paper's ablations, and what users train instead, in the emoji world.

What draws, trains, judges or compares is here. The pack imports none of it.

world/        the emoji world as drawings: vocabulary, scenes, captions, renderer, training pictures
base/         trains the world's base model and autoencoder, and checks them
judge.py      the classifier that says what a picture shows
prompts.py    the prompts that measure a concept, and what their pictures must show
local_comfyui.py  ComfyUI in this process, with the world's model
subjects.py   what is learned: a concept of the world, or a folder of pictures
recipe.py     how the demo trains, which is how the lab does
methods.py    what a way of training and using a concept must offer; Perfusion itself
rejected.py   the two designs that the paper rejects; they live here alone
rivals/       textual inversion, ComfyUI's LoRA node, fine-tuning of K/V and of the whole UNet
ablations.py  what is compared, and which direction the paper reports
marking.py    identity and text alignment of a picture, by the judge
measure.py    trains and measures, with a cache that survives a stop
figures.py    fronts, hypervolume, bootstrap intervals
tuning.py     rates of every method, chosen alike
report.py     lab.json, plots and contact sheet
tables.py     lab.json as tables, lab.md
publish.py    what docs/lab/ shows of a run
"""
