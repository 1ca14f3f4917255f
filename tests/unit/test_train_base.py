"""How the base model's training words captions: described things in one word, names as sums."""

import torch

from lab.base.train import Names, Text
from lab.world.vocabulary import Individual, Look

CAPTIONS = [
    "a photo of a striped purple and white cat next to a plain red hat",
    "a photo of a striped purple and white cat next to a plain red hat",
    "a simon on a blue background",
    "a cat on a blue background",
]
SIMON = Individual("simon", "cat", Look("red"))


class Words:
    """A tokenizer that gives each word one token, and ends with token 1."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def tokenize_with_weights(self, text: str) -> dict[str, list[list[tuple[int, float]]]]:
        ids = [self.known.setdefault(word, 2 + len(self.known)) for word in text.split()]
        ids = [0, *ids, 1]
        return {"l": [[(i, 1.0) for i in ids + [1] * (20 - len(ids))]]}


def test_every_second_caption_tells_a_described_thing_in_one_word() -> None:
    text = Text(Words(), CAPTIONS)
    words = len(text.vocabulary)
    assert not (text.table[[0, 2, 3]] >= words).any()
    told = [text.unsaid[int(i)] for i in text.table[1] if i >= words]
    assert told == [("cat", Look("purple", "white", "striped")), ("hat", Look("red"))]
    # The rest of the caption is as it was, in its order.
    assert text.table[1][:5].tolist() == text.table[0][:5].tolist()
    assert text.table[1][6:9].tolist() == text("next to a")[1:4].tolist()
    # In full it is what the first version of the same words is.
    assert torch.equal(text.described[0], text.table[0])


def test_a_name_is_its_noun_and_the_parts_of_its_look() -> None:
    torch.manual_seed(0)
    text = Text(Words(), CAPTIONS)
    names = Names(text, [SIMON], width=8)
    rows = torch.randn(len(text.vocabulary), 8)
    table = names(rows)
    number = {what: i for i, what in text.unsaid.items()}
    cat, hat, simon = text.word("cat"), text.word("hat"), text.word("simon")
    # A red cat less a cat is a red hat less a hat.
    red_hat = table[number["hat", Look("red")]]
    assert torch.allclose(table[simon] - rows[cat], red_hat - rows[hat], atol=1e-6)
    striped = table[number["cat", Look("purple", "white", "striped")]]
    assert not torch.allclose(striped, table[simon])
    others = [i for i in range(len(rows)) if i != simon]
    assert torch.equal(table[others], rows[others])


def test_names_that_have_rows_already_are_where_the_sums_start() -> None:
    torch.manual_seed(0)
    text = Text(Words(), CAPTIONS)
    names = Names(text, [SIMON], width=8)
    rows = torch.randn(len(text.vocabulary), 8)
    far = (names(rows)[text.word("simon")] - rows[text.word("simon")]).norm()
    names.fit(rows)
    assert (names(rows)[text.word("simon")] - rows[text.word("simon")]).norm() < 0.5 * far
