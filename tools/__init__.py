"""The house: finds or makes the ComfyUI that the tests and the demo run in, starts it, talks to it.

Standard library only, because it runs before anything is installed. Nothing of the pack imports it.
"""
