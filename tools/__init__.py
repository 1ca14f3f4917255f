"""The development tools: they find or make the ComfyUI of the tests, start it, and talk to it.

Standard library only, because it runs before anything is installed. Nothing of the pack imports it.
"""
