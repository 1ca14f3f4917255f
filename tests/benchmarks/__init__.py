"""What the edit costs, side by side with stock ComfyUI and with perfusion-pytorch: `make bench`.

Figures, never a pass or a fail: nothing here is a test.
"""
