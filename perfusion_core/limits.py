"""How much is read, drawn and answered of what a file, a field, a prompt or a request says.

All of it may be anybody's. The bounds are far above what the work needs, and low enough that
nothing takes more than some seconds or some hundred megabytes. What is longer is refused with the
bound; where less is shown, it is said what was left out.
"""

# --- concept files, checked on the header before anything else is read. A concept for the largest
# model that this pack may ever fit (80 layers of 5,120 numbers, with trained keys and 16 vectors)
# has 2 MB, and a header of 20 kB beside its preview: more than 16 MB is something else.
MAX_FILE = 16 << 20  # bytes
MAX_HEADER = 4 << 20  # bytes
MAX_LAYERS = 4096
MAX_PREVIEW = 1 << 20  # bytes
MAX_PREVIEW_SIDE = 2048  # pixels
MAX_ENTRY = 4096  # letters of author, licence and the like
MAX_TRAINING = 64 << 10  # letters of the notes on a training

# --- fields of nodes
MAX_FIELD = 64 << 10  # letters of one that is read number by number
MAX_MOVES = 1000  # as many as a run can have steps
MAX_CELLS = 100  # pictures of a sweep
MAX_VALIDATION = 64  # prompts, each a picture at every look

# --- prompts
MAX_PROMPT = 200_000  # letters that the gate inspector looks at; 10,000 words have a third of that
MAX_TABLED = 20_000  # tokens in its table
MAX_BARS = 1000  # in its picture, one for each token and concept

# --- what the page may ask
MAX_BODY = 64 << 10  # bytes of a request
MAX_WAITING = 32  # questions about prompts; a page asks one for each plot that is seen
MAX_TEXT = 4000  # letters of a prompt
MAX_CONCEPTS = 8  # in one plot
MAX_CARDS = 500  # of concept files; a longer list is no longer chosen from by looking
MAX_NODES = 64  # whose CLIPs are remembered
MAX_KEPT = 64  # answers a CLIP; each is a list of words and numbers

# --- pictures that show others: pixels, so that one takes 400 MB while it is made
MAX_GRID = 32 << 20

# --- files of other programs: a concept of ChenDarYen's for SD 2 has 12 MB, most of it a row for
# each of 77 positions in every layer
MAX_FOREIGN = 64 << 20  # bytes, unpacked as well
MAX_FOREIGN_PICKLE = 1 << 20  # bytes of structure, which has some kilobytes
MAX_FOREIGN_PARTS = 4096  # tensors
