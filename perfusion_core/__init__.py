"""Perfusion (arXiv 2305.01644) for ComfyUI, room by room.

`method` is the maths and `concept` what is learned and its file; `families` says which models it
fits; `draw` makes pictures. They stand on torch alone. `comfy` is the one room that imports
ComfyUI, inside its functions, so that every module imports without it. `learn` and `page` work
through it: training for the nodes, answers for the page.
"""
