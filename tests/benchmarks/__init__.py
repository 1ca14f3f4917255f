"""What the edit costs, side by side with the stock host and with perfusion-pytorch: `make bench`.

Figures, never a pass or a fail: nothing here is a test.
"""
