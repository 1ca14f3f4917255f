"""The method of Perfusion (arXiv 2305.01644), on torch alone: nothing here needs ComfyUI.

One module, `bridge`, is the way to the host; it imports the host inside its functions.
"""
