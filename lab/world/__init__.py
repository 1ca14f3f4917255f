"""The emoji world as drawings: its vocabulary, random scenes and their captions, the renderer."""
