import torch
from hypothesis import given
from hypothesis import strategies as st

from common.tasks.batches import Example, padded_length
from simulations.engine.rows import row_width, shared_batches

CPU = torch.device("cpu")
lengths = st.lists(st.integers(1, 70), max_size=40)


def example(tokens: int) -> Example:
    return Example(tuple(range(5, 5 + tokens)), tokens % 3, padded_length(tokens, 70))


@given(lengths, st.integers(1, 300))
def test_every_example_is_in_one_batch_with_its_own_tokens(given_: list[int], most: int) -> None:
    examples = [example(n) for n in given_]
    seen = []
    for batch, places in shared_batches(examples, most, 3, CPU):
        seen += places
        assert len(places) == 1 or batch.input_ids.numel() <= most
        for row, place in enumerate(places):
            mask = batch.attention_mask[row].bool()
            assert tuple(batch.input_ids[row][mask].tolist()) == examples[place].input_ids
            assert batch.labels[row] == examples[place].label
    assert sorted(seen) == list(range(len(examples)))


@given(lengths, st.integers(1, 300), st.integers(1, 7))
def test_a_batch_has_no_more_rows_than_it_may(given_: list[int], most: int, rows: int) -> None:
    examples = [example(n) for n in given_]
    batches = [places for _, places in shared_batches(examples, most, 3, CPU, rows)]
    assert all(len(places) <= rows for places in batches)
    assert sorted(place for places in batches for place in places) == list(range(len(examples)))


@given(st.integers(1, 70))
def test_a_row_is_never_wider_than_the_sites_own_padding(tokens: int) -> None:
    assert tokens <= row_width(example(tokens)) <= padded_length(tokens, 70)


def test_rows_of_all_sites_together_hold_little_padding() -> None:
    draw = torch.Generator().manual_seed(3)
    counts = torch.randint(8, 70, (400,), generator=draw).tolist()
    batches = list(shared_batches([example(n) for n in counts], 1024, 0, CPU))
    assert sum(b.input_ids.numel() for b, _ in batches) / sum(counts) < 1.1
