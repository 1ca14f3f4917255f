"""The quality lab: the paper's ablations, and what users train instead, in the emoji world.

All that draws, trains, judges or compares is here. The pack imports none of it.

world/            the emoji world as drawings: vocabulary, scenes, captions, renderer, pictures
base/             trains the world's base model and autoencoder, and checks them
judge.py          the detector that says what a picture shows (train_judge.py trains it)
prompts.py        the prompts that measure a concept, and what their pictures must show
local_comfyui.py  ComfyUI in this process, with the world's model (after open_comfyui.py)
contact_sheet.py  rows of pictures with titles and captions
thumbnails.py     the pictures beside the example graphs

`make lab`:

subjects.py       what is learned: a concept of the world, or a folder of pictures
recipe.py         how the demo trains, which is how the lab does
methods.py        what a way of training and using a concept must offer; Perfusion itself
unused.py         what loading does to pictures that do not ask for it
seconds.py        how good every method is after how long
published.py      the edit as the paper has it, trained and used
rejected.py       the two designs that the paper rejects; they live here alone
rivals/           textual inversion, ComfyUI's LoRA node, fine-tuning of K/V and of the whole UNet
ablations.py      what is compared, and which direction the paper reports
groups.py         several concepts in one picture, and what became of each
marking.py        identity and text alignment of a picture, by the judge
measure.py        trains and measures
cache.py          what was done already, so that a stop loses nothing
figures.py        fronts, hypervolume, bootstrap intervals
tuning.py         rates of every method, chosen alike
report.py         lab.json, plots (plots.py) and contact sheet
tables.py         lab.json as tables, lab.md
publish.py        what docs/lab/ shows of a run
"""
