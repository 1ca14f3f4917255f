"""Starts the commands: `python -m fleet` in the pack's folder, or `python FOLDER/fleet` anywhere.

The second is for a Python that looks for modules in its own folders alone, such as the embedded one
of ComfyUI for Windows.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from fleet.commands import main

    sys.exit(main(sys.argv[1:]))
